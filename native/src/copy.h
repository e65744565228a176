/* SPDX-License-Identifier: Apache-2.0 */
/*
 * copy.h - copies the bytes of frames, from one guest's memory into another's.
 *
 * How it works: most parts of a frame are short. Up to PVS_COPY_SHORT bytes are moved in line by a few vectors of 16
 * bytes, the last of which overlaps the one before it. What is longer goes to a kernel that is chosen once for the
 * processor at hand (pvs_copy_init). All of them touch nothing outside of the two ranges: what lies beside a guest's
 * buffer may be another thread's, or not be mapped. None goes around the caches: who gets a frame reads it soon.
 *
 * Where vectors overlap, bytes of the source are read twice, and the guest that owns it may change them in between. This
 * is harmless: either value is one that it has sent, and what is checked is checked in a private copy, afterwards. Only
 * what has to agree with the bytes that arrive, a checksum, can't be taken beside it: see pvs_sum_copy (checksum.h).
 *
 * Who may call: pvs_copy any thread. A kernel is chosen while nothing is copied: before the first worker starts.
 */
#ifndef PVS_COPY_H
#define PVS_COPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PVS_COPY_SHORT = 128 };

/* From the simplest to the widest. */
enum pvs_copy_kernel { PVS_COPY_PLAIN, PVS_COPY_AVX2, PVS_COPY_AVX512, PVS_COPY_KERNELS };

/* Choose the widest kernel that the processor has, unless one was chosen before. Until then it is the plain one. */
void pvs_copy_init(void);
/* Choose this one, for tests and measurements. False: the processor has not got it, and nothing has changed. */
bool pvs_copy_choose(enum pvs_copy_kernel kernel);

/* The kernel that is in use, for more than PVS_COPY_SHORT bytes. */
extern void (*pvs_copy_long)(void *to, const void *from, size_t len);

/* The line at `p` is about to be written: fetch it for that at once, not to be shared first. Any address will do. */
static inline void
pvs_prefetch_write(const void *p)
{
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" ::"m"(*(const char *)p));
#else
    __builtin_prefetch(p, 1);
#endif
}

/* A vector or word at any address, of any type. */
typedef uint8_t pvs_v16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint64_t pvs_u64 __attribute__((aligned(1), may_alias));
typedef uint32_t pvs_u32 __attribute__((aligned(1), may_alias));
typedef uint16_t pvs_u16 __attribute__((aligned(1), may_alias));

/* gcc warns of the vectors that a short range is too small for, although they are never moved. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Warray-bounds"
/* 16 to PVS_COPY_SHORT bytes: as many vectors from the front as from the end. */
static inline void
pvs_copy_vectors(uint8_t *to, const uint8_t *from, size_t len)
{
    const pvs_v16 *f = (const pvs_v16 *)from, *f_end = (const pvs_v16 *)(from + len);
    pvs_v16 *t = (pvs_v16 *)to, *t_end = (pvs_v16 *)(to + len);

    if (len > 64) {
        pvs_v16 a = f[2], b = f[3], c = f_end[-4], d = f_end[-3];
        t[2] = a;
        t[3] = b;
        t_end[-4] = c;
        t_end[-3] = d;
    }
    if (len > 32) {
        pvs_v16 a = f[1], b = f_end[-2];
        t[1] = a;
        t_end[-2] = b;
    }
    pvs_v16 a = f[0], b = f_end[-1];
    t[0] = a;
    t_end[-1] = b;
}
#pragma GCC diagnostic pop

/* Copy `len` bytes between ranges that don't overlap; if they do, which bytes arrive is not defined. */
static inline void
pvs_copy(void *to_, const void *from_, size_t len)
{
    uint8_t *to = to_;
    const uint8_t *from = from_;

    if (len > PVS_COPY_SHORT) {
        pvs_copy_long(to, from, len);
    } else if (len >= 16) {
        pvs_copy_vectors(to, from, len);
    } else if (len >= 8) {
        uint64_t first = *(const pvs_u64 *)from, last = *(const pvs_u64 *)(from + len - 8);
        *(pvs_u64 *)to = first;
        *(pvs_u64 *)(to + len - 8) = last;
    } else if (len >= 4) {
        uint32_t first = *(const pvs_u32 *)from, last = *(const pvs_u32 *)(from + len - 4);
        *(pvs_u32 *)to = first;
        *(pvs_u32 *)(to + len - 4) = last;
    } else if (len != 0) {
        uint8_t first = from[0], middle = from[len / 2], last = from[len - 1];
        to[0] = first;
        to[len / 2] = middle;
        to[len - 1] = last;
    }
}

#endif
