/* SPDX-License-Identifier: Apache-2.0 */
/* test_copy.c - every kernel of pvs_copy copies what it should, and touches nothing else. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "copy.h"
#include "lab.h"

enum { SHORT_LENGTHS = 600, GUARD = 80, EMPTY = 0xee };

/* ends on no border of a vector, at the longest frame, and about it */
static const uint32_t long_lengths[] = { 1390, 1500, 2048, 4096, 8999, 65535, 65567, PVS_MAX_FRAME, 70000 };
enum { LONG_LENGTHS = sizeof long_lengths / sizeof long_lengths[0], LONGEST = 70000 };

static uint8_t from[LONGEST + 4 * GUARD], to[LONGEST + 4 * GUARD], empty[LONGEST + 4 * GUARD];

static void
fill(uint8_t *bytes, size_t len, uint64_t seed)
{
    for (size_t i = 0; i < len; i++)
        bytes[i] = (uint8_t)lab_random(&seed, 256);
}

/* Copy to and from these places, each with at least a guard in front of it, and check what it did. */
static void
check_copy(size_t to_at, size_t from_at, size_t len)
{
    memset(to, EMPTY, to_at + len + GUARD);
    pvs_copy(to + to_at, from + from_at, len);
    CHECK(memcmp(to + to_at, from + from_at, len) == 0);
    CHECK(memcmp(to, empty, to_at) == 0);
    CHECK(memcmp(to + to_at + len, empty, GUARD) == 0);
}

static void
prepare(void)
{
    fill(from, sizeof from, 1);
    memset(empty, EMPTY, sizeof empty);
}

TEST(every_kernel_copies_every_short_length_at_every_alignment)
{
    static const size_t from_shift[] = { 0, 1, 8, 12, 31, 33, 63 };

    prepare();
    for (int kernel = 0; kernel < PVS_COPY_KERNELS; kernel++) {
        if (!pvs_copy_choose((enum pvs_copy_kernel)kernel))
            continue;
        for (size_t len = 0; len <= SHORT_LENGTHS; len++)
            for (size_t shift = 0; shift < 64; shift++)
                for (size_t i = 0; i < sizeof from_shift / sizeof from_shift[0]; i++)
                    check_copy(GUARD + shift, GUARD + from_shift[i], len);
    }
}

TEST(every_kernel_copies_long_frames)
{
    prepare();
    for (int kernel = 0; kernel < PVS_COPY_KERNELS; kernel++) {
        if (!pvs_copy_choose((enum pvs_copy_kernel)kernel))
            continue;
        for (uint32_t i = 0; i < LONG_LENGTHS; i++)
            for (size_t shift = 0; shift < 64; shift += 7)
                check_copy(GUARD + shift, GUARD + (shift * 5) % 64, long_lengths[i]);
    }
}

TEST(every_kernel_copies_whatever_comes)
{
    uint64_t seed = 42;

    prepare();
    for (uint32_t i = 0; i < 20000; i++) {
        if (!pvs_copy_choose((enum pvs_copy_kernel)lab_random(&seed, PVS_COPY_KERNELS)))
            continue;
        size_t len = lab_random(&seed, i % 16 == 0 ? LONGEST : 2048);
        check_copy(GUARD + lab_random(&seed, 128), GUARD + lab_random(&seed, 128), len);
    }
}

/* Pages between two that nobody may touch. */
static uint8_t *
fenced(size_t len, size_t page)
{
    uint8_t *all = mmap(NULL, len + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(all != MAP_FAILED);
    CHECK_EQ(mprotect(all + page, len, PROT_READ | PROT_WRITE), 0);
    return all + page;
}

/* A buffer may lie at either end of what its guest has shared. */
TEST(no_kernel_touches_what_is_beside_a_range)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (LONGEST / page + 1) * page;
    uint8_t *source = fenced(room, page), *target = fenced(room, page);

    fill(source, room, 2);
    for (int kernel = 0; kernel < PVS_COPY_KERNELS; kernel++) {
        if (!pvs_copy_choose((enum pvs_copy_kernel)kernel))
            continue;
        for (size_t i = 0; i <= SHORT_LENGTHS + LONG_LENGTHS; i++) {
            size_t len = i <= SHORT_LENGTHS ? i : long_lengths[i - SHORT_LENGTHS - 1];
            for (int ends = 0; ends < 4; ends++) {
                uint8_t *t = target + ((ends & 1) != 0 ? room - len : 0);
                const uint8_t *f = source + ((ends & 2) != 0 ? room - len : 0);
                memset(t, EMPTY, len);
                pvs_copy(t, f, len);
                CHECK(memcmp(t, f, len) == 0);
            }
        }
    }
}

TEST(the_widest_kernel_is_chosen_unless_one_was)
{
    CHECK(strcmp(pvs_copy_kernel_name(), "plain") == 0);
    pvs_copy_init();
    const char *widest = pvs_copy_kernel_name();
    for (int kernel = 0; kernel < PVS_COPY_KERNELS; kernel++) {
        if (pvs_copy_choose((enum pvs_copy_kernel)kernel))
            CHECK(kernel == PVS_COPY_PLAIN || strcmp(pvs_copy_kernel_name(), "plain") != 0);
    }
    CHECK(strcmp(pvs_copy_kernel_name(), widest) == 0); /* the last that the processor has */

    CHECK(pvs_copy_choose(PVS_COPY_PLAIN));
    pvs_copy_init();
    CHECK(strcmp(pvs_copy_kernel_name(), "plain") == 0);
    CHECK(!pvs_copy_choose(PVS_COPY_KERNELS));
    CHECK(strcmp(pvs_copy_kernel_name(), "plain") == 0);
}
