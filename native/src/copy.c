/* SPDX-License-Identifier: Apache-2.0 */
/* copy.c - the kernels behind pvs_copy; see copy.h. */
#include "copy.h"

#include "pvs_api.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/*
 * All kernels have the same shape. The first vector goes where the range begins; the loop goes on at the next place that
 * is aligned for the stores, each of which would touch two lines otherwise; the last vectors end where the range ends.
 * They are longer than that (PVS_COPY_SHORT), so these overlaps are within the range.
 */

static void
copy_plain(void *to_, const void *from_, size_t len)
{
    uint8_t *to = to_, *const to_end = to + len;
    const uint8_t *from = from_;
    size_t lead = 16 - ((uintptr_t)to & 15);

    *(pvs_v16 *)to = *(const pvs_v16 *)from;
    for (to += lead, from += lead; to_end - to > 64; to += 64, from += 64) {
        const pvs_v16 *f = (const pvs_v16 *)from;
        pvs_v16 a = f[0], b = f[1], c = f[2], d = f[3], *t = (pvs_v16 *)to;
        t[0] = a;
        t[1] = b;
        t[2] = c;
        t[3] = d;
    }
    size_t back = 64 - (size_t)(to_end - to);
    const pvs_v16 *f = (const pvs_v16 *)(from - back);
    pvs_v16 a = f[0], b = f[1], c = f[2], d = f[3], *t = (pvs_v16 *)(to - back);
    t[0] = a;
    t[1] = b;
    t[2] = c;
    t[3] = d;
}

#if defined(__x86_64__)

__attribute__((target("avx2"))) static void
copy_avx2(void *to_, const void *from_, size_t len)
{
    uint8_t *to = to_, *const to_end = to + len;
    const uint8_t *from = from_;
    size_t lead = 32 - ((uintptr_t)to & 31);

    _mm256_storeu_si256((__m256i *)to, _mm256_loadu_si256((const __m256i *)from));
    for (to += lead, from += lead; to_end - to > 128; to += 128, from += 128) {
        const __m256i *f = (const __m256i *)from;
        __m256i a = _mm256_loadu_si256(f), b = _mm256_loadu_si256(f + 1), c = _mm256_loadu_si256(f + 2),
                d = _mm256_loadu_si256(f + 3);
        __m256i *t = (__m256i *)to;
        _mm256_store_si256(t, a);
        _mm256_store_si256(t + 1, b);
        _mm256_store_si256(t + 2, c);
        _mm256_store_si256(t + 3, d);
    }
    for (; to_end - to > 32; to += 32, from += 32)
        _mm256_store_si256((__m256i *)to, _mm256_loadu_si256((const __m256i *)from));
    size_t back = 32 - (size_t)(to_end - to);
    _mm256_storeu_si256((__m256i *)(to - back), _mm256_loadu_si256((const __m256i *)(from - back)));
}

__attribute__((target("avx512f,avx512bw"))) static void
copy_avx512(void *to_, const void *from_, size_t len)
{
    uint8_t *to = to_, *const to_end = to + len;
    const uint8_t *from = from_;
    size_t lead = 64 - ((uintptr_t)to & 63);

    _mm512_storeu_si512(to, _mm512_loadu_si512(from));
    for (to += lead, from += lead; to_end - to > 256; to += 256, from += 256) {
        __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + 64), c = _mm512_loadu_si512(from + 128),
                d = _mm512_loadu_si512(from + 192);
        _mm512_store_si512(to, a);
        _mm512_store_si512(to + 64, b);
        _mm512_store_si512(to + 128, c);
        _mm512_store_si512(to + 192, d);
    }
    for (; to_end - to > 64; to += 64, from += 64)
        _mm512_store_si512(to, _mm512_loadu_si512(from));
    size_t back = 64 - (size_t)(to_end - to);
    _mm512_storeu_si512(to - back, _mm512_loadu_si512(from - back));
}

#endif

static const char *const name[PVS_COPY_KERNELS] = { "plain", "avx2", "avx512" };

void (*pvs_copy_long)(void *to, const void *from, size_t len) = copy_plain;

static enum pvs_copy_kernel chosen;
static bool is_chosen;

bool
pvs_copy_choose(enum pvs_copy_kernel kernel)
{
    switch (kernel) {
    case PVS_COPY_PLAIN:
        pvs_copy_long = copy_plain;
        break;
#if defined(__x86_64__)
    /* these ask whether the kernel saves the wide registers as well */
    case PVS_COPY_AVX2:
        if (!__builtin_cpu_supports("avx2"))
            return false;
        pvs_copy_long = copy_avx2;
        break;
    case PVS_COPY_AVX512:
        if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw"))
            return false;
        pvs_copy_long = copy_avx512;
        break;
#endif
    default:
        return false;
    }
    chosen = kernel;
    is_chosen = true;
    return true;
}

void
pvs_copy_init(void)
{
    for (int kernel = PVS_COPY_KERNELS - 1; !is_chosen; kernel--)
        pvs_copy_choose((enum pvs_copy_kernel)kernel);
}

const char *
pvs_copy_kernel_name(void)
{
    return name[chosen];
}
