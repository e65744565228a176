/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checksum.h - the Internet checksum (RFC 1071), alone or while copying.
 *
 * How it works: a sum is kept in 64 bits and folded to 16 at its end. 16-bit words are added as they lie in memory: the
 * sum of words in the other byte order is the sum in the other byte order (RFC 1071, 2 (B)), so nothing is swapped but
 * what begins at an odd offset. Lengths and addresses don't matter; bytes may come in parts of any size.
 *
 * Pure functions.
 */
#ifndef PVS_CHECKSUM_H
#define PVS_CHECKSUM_H

#include <stdbool.h>
#include <stdint.h>

/* A sum that runs over bytes that come one part after the other; all zero: none yet. Good for 2^32 bytes. */
struct pvs_sum {
    uint64_t words;
    bool odd; /* an odd number of bytes has come */
};

void pvs_sum_add(struct pvs_sum *sum, const uint8_t *from, uint32_t len);

/*
 * Copy, and add what was copied: each byte of `from` is read once. The two ranges don't overlap; a guest whose own
 * buffers do gets bytes and a sum that are not defined, in its own memory.
 */
void pvs_sum_copy(struct pvs_sum *sum, uint8_t *to, const uint8_t *from, uint32_t len);

/* The sum in 16 bits, not complemented, to be stored as it is. 0 only if all bytes were 0. */
static inline uint16_t
pvs_sum_fold(const struct pvs_sum *sum)
{
    uint64_t words = sum->words;
    while (words >> 16 != 0)
        words = (words & 0xffff) + (words >> 16);
    return (uint16_t)words;
}

#endif
