/* SPDX-License-Identifier: Apache-2.0 */
/* checksum.c - see checksum.h. */
#include "checksum.h"

#include <string.h>

/* What every 64-bit processor has a register for. Two pairs are under way at once: additions don't wait for each other. */
typedef uint64_t pair __attribute__((vector_size(16)));

static inline pair
pair_halves(pair words)
{
    return (words & 0xffffffff) + (words >> 32);
}

static inline uint64_t
halves(uint64_t word)
{
    return (word & 0xffffffff) + (word >> 32);
}

/* What comes behind an odd number of bytes has its bytes in the other halves of the words. */
static void
join(struct pvs_sum *sum, uint64_t words, uint32_t len)
{
    struct pvs_sum part = { .words = words };

    sum->words += sum->odd ? __builtin_bswap16(pvs_sum_fold(&part)) : words;
    sum->odd ^= (len & 1) != 0;
}

/* Word by word, and what is left of the last word; `to` may be NULL. */
static inline uint64_t
sum_words(uint8_t *to, const uint8_t *from, uint32_t len)
{
    uint64_t words = 0, word;

    for (; len >= sizeof word; len -= (uint32_t)sizeof word, from += sizeof word) {
        memcpy(&word, from, sizeof word);
        words += halves(word);
        if (to != NULL) {
            memcpy(to, &word, sizeof word);
            to += sizeof word;
        }
    }
    if (len == 0)
        return words;
    word = 0; /* RFC 1071, 1: an odd byte at the end is followed by a zero */
    memcpy(&word, from, len);
    if (to != NULL)
        memcpy(to, &word, len);
    return words + halves(word);
}

void
pvs_sum_add(struct pvs_sum *sum, const uint8_t *from, uint32_t len)
{
    join(sum, sum_words(NULL, from, len), len);
}

void
pvs_sum_copy(struct pvs_sum *sum, uint8_t *restrict to, const uint8_t *restrict from, uint32_t len)
{
    pair a, b, sum_a = { 0 }, sum_b = { 0 };
    uint32_t left = len;

    for (; left >= 2 * sizeof a; left -= (uint32_t)(2 * sizeof a), to += 2 * sizeof a, from += 2 * sizeof a) {
        memcpy(&a, from, sizeof a);
        memcpy(&b, from + sizeof a, sizeof b);
        sum_a += pair_halves(a);
        sum_b += pair_halves(b);
        memcpy(to, &a, sizeof a);
        memcpy(to + sizeof a, &b, sizeof b);
    }
    sum_a += sum_b;
    join(sum, sum_a[0] + sum_a[1] + sum_words(to, from, left), len);
}
