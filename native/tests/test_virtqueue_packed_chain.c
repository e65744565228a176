/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_virtqueue_packed_chain.c - a packed ring: which chains are legal, and what each illegal one is called.
 */
#include "virtqueue_lab.h"

#include <errno.h>
#include <string.h>

enum { A = PVD_DESC_AVAIL, U = PVD_DESC_USED, WRAP = 0x8000, MAX_SIZE = 32768 };

static const uint64_t PACKED = VQ_MODERN | 1ULL << VIRTIO_F_RING_PACKED;

/* Make a descriptor available at a position. */
static void
put(uint16_t at, uint64_t addr, uint32_t len, uint16_t id, uint16_t flags)
{
    struct pvd_packed_desc d = { addr, len, id, (uint16_t)(flags | ((at & WRAP) != 0 ? A : U)) };
    CHECK_EQ(pvd_packed_set(guest, 1, at & (WRAP - 1), &d), 0);
}

/* Entry i of an indirect table at scratch. */
static void
entry(uint32_t i, uint64_t addr, uint32_t len, uint16_t flags)
{
    struct pvd_packed_desc *table = pvd_ptr(guest, scratch, (i + 1) * sizeof *table);
    CHECK(table != NULL);
    table[i] = (struct pvd_packed_desc){ .addr = addr, .len = len, .id = 0xffff, .flags = flags };
}

/* Is there a chain? If it is wrong, `broken` says so. */
static bool
look(uint16_t at, bool writable, uint32_t cap)
{
    broken = PVS_BROKEN_NONE;
    return pvs_vq_look(&vq, at, writable, seg, cap, &chain, &broken);
}

static enum pvs_broken
walk(uint16_t at)
{
    bool found = look(at, false, PVS_MAX_SEGS);
    CHECK(found == (broken == PVS_BROKEN_NONE));
    return broken;
}

/* ---- legal chains ---- */

TEST(packed_chain_of_one)
{
    vq_set_up(PACKED, VQ_NUM);
    put(WRAP | 2, scratch, 100, VQ_NUM - 1, 0);
    CHECK_EQ(walk(WRAP | 2), PVS_BROKEN_NONE);
    CHECK_EQ(chain.id, VQ_NUM - 1);
    CHECK_EQ(chain.next, WRAP | 3);
    CHECK_EQ(chain.n, 1);
    CHECK_EQ(chain.len, 100);
    CHECK(!chain.wrong_direction);
    vq_tear_down();
}

TEST(packed_chain_over_the_end_of_a_ring_of_any_size)
{
    for (uint32_t num = 1; num <= 9; num++) {
        vq_set_up(PACKED, num);
        for (uint32_t start = 0; start < 2 * num; start++) {
            uint16_t first = (uint16_t)(start % num | (start < num ? WRAP : 0));
            for (uint32_t n = 1; n <= num; n++) {
                uint16_t at = first;
                for (uint32_t i = 0; i < n; i++) { /* the last one's id counts; the others' may be anything */
                    put(at, scratch + 100 * i, 10 + i, (uint16_t)(i + 1 < n ? 0xffff : n - 1), i + 1 < n ? N : 0);
                    at = pvs_packed_advance(&vq, at, 1);
                }
                CHECK_EQ(walk(first), PVS_BROKEN_NONE);
                CHECK_EQ(chain.id, n - 1);
                CHECK_EQ(chain.n, n);
                CHECK_EQ(chain.walked, n);
                CHECK_EQ(chain.len, 10 * n + n * (n - 1) / 2);
                CHECK_EQ(chain.next, at);
                for (uint32_t i = 1; i < n; i++)
                    CHECK(seg[i].base == seg[0].base + 100 * i);
            }
        }
        vq_tear_down();
    }
}

TEST(packed_only_the_first_descriptor_must_be_available)
{
    vq_set_up(PACKED, VQ_NUM); /* the guest writes the first flags last, so the others' bits say nothing */
    put(WRAP, scratch, 10, 0, N);
    struct pvd_packed_desc second = { scratch, 20, 3, 0 };
    CHECK_EQ(pvd_packed_set(guest, 1, 1, &second), 0);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_NONE);
    CHECK_EQ(chain.len, 30);
    vq_tear_down();
}

TEST(packed_indirect_table)
{
    vq_set_up(PACKED, VQ_NUM);
    put(WRAP | 7, scratch, 3 * 16, 4, I | W /* which means nothing there */);
    entry(0, scratch + 1000, 1, 0);
    entry(1, scratch + 2000, 2, N); /* but for WRITE, flags in a table mean nothing either: it is read to its end */
    entry(2, scratch + 3000, 3, A | U);
    CHECK_EQ(walk(WRAP | 7), PVS_BROKEN_NONE);
    CHECK_EQ(chain.id, 4);
    CHECK_EQ(chain.next, 0);
    CHECK_EQ(chain.n, 3);
    CHECK_EQ(chain.len, 6);
    CHECK(!chain.wrong_direction);
    CHECK(seg[1].base == seg[0].base + 1000);
    CHECK(seg[2].base == seg[0].base + 2000);
    entry(1, scratch + 2000, 2, W);
    CHECK_EQ(walk(WRAP | 7), PVS_BROKEN_NONE);
    CHECK(chain.wrong_direction);
    vq_tear_down();
}

TEST(packed_indirect_table_as_long_as_the_ring)
{
    vq_set_up(PACKED, 7);
    put(WRAP, scratch, 7 * 16, 0, I);
    for (uint32_t i = 0; i < 7; i++)
        entry(i, scratch + 4096, 1, 0);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_NONE);
    CHECK_EQ(chain.n, 7);
    CHECK_EQ(chain.next, WRAP | 1);
    vq_tear_down();
}

TEST(packed_indirect_table_may_lie_at_an_odd_address)
{
    vq_set_up(PACKED, VQ_NUM);
    struct pvd_packed_desc d = { .addr = scratch + 1000, .len = 7 };
    memcpy(pvd_ptr(guest, scratch + 3, sizeof d), &d, sizeof d);
    put(WRAP, scratch + 3, 16, 0, I);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_NONE);
    CHECK_EQ(chain.len, 7);
    vq_tear_down();
}

TEST(packed_buffer_across_two_regions_is_two_segments)
{
    struct pvd_region r;
    vq_set_up(PACKED, VQ_NUM);
    CHECK_EQ(pvd_region_get(guest, 1, &r), 0);
    put(WRAP, r.gpa - 10, 30, 0, 0);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_NONE);
    CHECK_EQ(chain.n, 2);
    CHECK_EQ(seg[0].len, 10);
    CHECK_EQ(seg[1].len, 20);
    vq_tear_down();
}

TEST(packed_cve_2020_10725_zero_length_is_nothing_wherever_it_points)
{
    vq_set_up(PACKED, VQ_NUM);
    put(WRAP, UINT64_MAX, 0, 0, N);
    put(WRAP | 1, scratch, 50, 0, N);
    put(WRAP | 2, 0, 0, 6, 0);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_NONE);
    CHECK_EQ(chain.id, 6);
    CHECK_EQ(chain.n, 1);
    CHECK_EQ(chain.len, 50);
    put(WRAP, UINT64_MAX, 0, 0, 0);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_NONE);
    CHECK_EQ(chain.n, 0);
    CHECK_EQ(chain.len, 0);
    CHECK_EQ(chain.next, WRAP | 1);
    vq_tear_down();
}

TEST(packed_wrong_direction_is_seen_in_both_directions)
{
    vq_set_up(PACKED, VQ_NUM);
    put(WRAP, scratch, 50, 0, N);
    put(WRAP | 1, scratch, 50, 0, W);
    CHECK(look(WRAP, false, PVS_MAX_SEGS) && chain.wrong_direction);
    CHECK(look(WRAP, true, PVS_MAX_SEGS) && chain.wrong_direction);
    CHECK(look(WRAP | 1, true, PVS_MAX_SEGS) && !chain.wrong_direction);
    CHECK(look(WRAP | 1, false, PVS_MAX_SEGS) && chain.wrong_direction);
    vq_tear_down();
}

TEST(packed_more_segments_than_room_is_truncated_not_overrun)
{
    struct pvd_region r;
    vq_set_up(PACKED, VQ_NUM);
    CHECK_EQ(pvd_region_get(guest, 1, &r), 0);
    put(WRAP, scratch, 10, 0, N);
    put(WRAP | 1, r.gpa - 10, 30, 0, N); /* two segments */
    put(WRAP | 2, scratch, 5, 1, 0);
    for (uint32_t cap = 0; cap <= 4; cap++) {
        memset(seg, 0xee, sizeof seg);
        CHECK(look(WRAP, false, cap));
        CHECK_EQ(chain.truncated, cap < 4);
        CHECK(chain.n <= cap);
        CHECK_EQ(chain.len, cap == 0 ? 0 : cap < 3 ? 10 : cap < 4 ? 40 : 45);
        CHECK_EQ(seg[cap].len, 0xeeeeeeee);
        CHECK_EQ(chain.id, 1);
        CHECK_EQ(chain.next, WRAP | 3); /* all the same: it is given back as a whole */
    }
    vq_tear_down();
}

/* ---- illegal chains ---- */

TEST(packed_id_beyond_the_ring)
{
    static const uint16_t ids[] = { VQ_NUM, VQ_NUM + 1, 0x7fff, 0x8000, 0xffff };
    vq_set_up(PACKED, VQ_NUM);
    for (uint32_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        put(WRAP, scratch, 10, ids[i], 0);
        CHECK_EQ(walk(WRAP), PVS_BROKEN_ID_RANGE);
        put(WRAP, scratch, 10, 0, N);
        put(WRAP | 1, scratch, 10, ids[i], 0);
        CHECK_EQ(walk(WRAP), PVS_BROKEN_ID_RANGE);
        put(WRAP, scratch, 16, ids[i], I);
        entry(0, scratch + 100, 10, 0);
        CHECK_EQ(walk(WRAP), PVS_BROKEN_ID_RANGE);
    }
    vq_tear_down();
}

TEST(packed_chain_that_goes_round)
{
    static const uint32_t sizes[] = { 1, 3, 8, 255, 257 };
    for (uint32_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        vq_set_up(PACKED, sizes[i]);
        for (uint32_t len = 0; len < 20; len += 10) { /* also without a byte in it */
            for (uint32_t k = 0; k < sizes[i]; k++)
                put((uint16_t)(WRAP | k), scratch, len, 0, N);
            CHECK_EQ(walk(WRAP), PVS_BROKEN_CHAIN_LONG);
            CHECK_EQ(walk((uint16_t)(WRAP | (sizes[i] - 1))), PVS_BROKEN_CHAIN_LONG);
            CHECK_EQ(chain.walked, sizes[i] + 1); /* once round is enough to know */
        }
        vq_tear_down();
    }
}

TEST(packed_chain_of_more_than_1024_descriptors)
{
    vq_set_up(PACKED, 2048);
    for (uint16_t i = 0; i < 2048; i++)
        put(WRAP | i, scratch, 0, 0, N);
    put(WRAP | (PVS_MAX_SEGS - 1), scratch, 10, 0, 0);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_NONE);
    CHECK_EQ(chain.next, WRAP | PVS_MAX_SEGS);
    put(WRAP | (PVS_MAX_SEGS - 1), scratch, 10, 0, N);
    put(WRAP | PVS_MAX_SEGS, scratch, 10, 0, 0);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_CHAIN_LONG);
    put(WRAP, scratch, (PVS_MAX_SEGS + 1) * 16, 0, I); /* nor in a table, which lies over what it points to */
    for (uint32_t i = 0; i <= PVS_MAX_SEGS; i++)
        entry(i, scratch, 1, 0);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_CHAIN_LONG);
    vq_tear_down();
}

TEST(packed_address_outside_memory)
{
    static const uint64_t nowhere[] = { 0, 1, 0x1000, UINT64_MAX, UINT64_MAX - 10, 1ULL << 63 };
    vq_set_up(PACKED, VQ_NUM);
    for (uint32_t i = 0; i < sizeof nowhere / sizeof nowhere[0]; i++) {
        put(WRAP, nowhere[i], 10, 0, 0);
        CHECK_EQ(walk(WRAP), PVS_BROKEN_BAD_ADDRESS);
        put(WRAP, scratch, 10, 0, N);
        put(WRAP | 1, nowhere[i], 10, 0, 0);
        CHECK_EQ(walk(WRAP), PVS_BROKEN_BAD_ADDRESS);
    }
    put(WRAP, scratch + 65536 - 10, 11, 0, 0); /* scratch ends where the last region does */
    CHECK_EQ(walk(WRAP), PVS_BROKEN_BAD_ADDRESS);
    put(WRAP, scratch + 65536 - 10, 10, 0, 0);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_NONE);
    put(WRAP, scratch, UINT32_MAX, 0, 0);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_BAD_ADDRESS);
    vq_tear_down();
}

TEST(packed_indirect_without_the_feature)
{
    vq_set_up(1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_F_RING_PACKED, VQ_NUM);
    put(WRAP, scratch, 16, 0, I);
    entry(0, scratch, 10, 0);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_INDIRECT_REFUSED);
    vq_tear_down();
}

TEST(packed_indirect_inside_an_indirect_table)
{
    vq_set_up(PACKED, VQ_NUM);
    put(WRAP, scratch, 32, 0, I);
    entry(0, scratch + 1024, 16, 0);
    entry(1, scratch + 1024, 16, I);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_INDIRECT_REFUSED);
    entry(0, scratch, 16, I); /* itself */
    CHECK_EQ(walk(WRAP), PVS_BROKEN_INDIRECT_REFUSED);
    vq_tear_down();
}

TEST(packed_indirect_in_a_list)
{
    vq_set_up(PACKED, VQ_NUM);
    entry(0, scratch, 10, 0);
    put(WRAP, scratch, 16, 0, I | N);
    put(WRAP | 1, scratch, 16, 0, 0);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_INDIRECT_NEXT);
    put(WRAP, scratch, 10, 0, N); /* nor as the last one, which a split ring may have */
    put(WRAP | 1, scratch, 16, 0, I);
    CHECK_EQ(walk(WRAP), PVS_BROKEN_INDIRECT_NEXT);
    vq_tear_down();
}

TEST(packed_indirect_table_of_a_wrong_size)
{
    static const uint32_t bad[] = { 0, 1, 15, 17, 31, (VQ_NUM + 1) * 16, 16 * 65536, 0xfffffff0, UINT32_MAX };
    vq_set_up(PACKED, VQ_NUM);
    entry(0, scratch, 10, 0);
    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        put(WRAP, scratch, bad[i], 0, I);
        CHECK_EQ(walk(WRAP), PVS_BROKEN_INDIRECT_SIZE);
    }
    vq_tear_down();
}

TEST(packed_indirect_table_not_in_memory_or_across_regions)
{
    struct pvd_region r;
    vq_set_up(PACKED, VQ_NUM);
    CHECK_EQ(pvd_region_get(guest, 1, &r), 0);
    uint64_t bad[] = { r.gpa - 16, 0, UINT64_MAX - 15, scratch + 65536 - 16 };
    for (uint32_t i = 0; i < 4; i++) {
        put(WRAP, bad[i], 32, 0, I);
        CHECK_EQ(walk(WRAP), PVS_BROKEN_INDIRECT_ADDRESS);
    }
    vq_tear_down();
}
