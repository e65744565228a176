/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_virtqueue_packed.c - a packed ring: what may be attached, what is available, how chains are given back, where a ring
 * stands when it is stopped. Chains are in test_virtqueue_packed_chain.c, events in test_virtqueue_packed_event.c.
 */
#include "virtqueue_lab.h"

#include <errno.h>
#include <string.h>

enum { A = PVD_DESC_AVAIL, U = PVD_DESC_USED, WRAP = 0x8000, MAX_SIZE = 32768 };

static const uint64_t PACKED = VQ_MODERN | 1ULL << VIRTIO_F_RING_PACKED;

static void
attach(uint32_t num, uint32_t base)
{
    struct pvs_ring_conf rc = vq_conf();
    rc.num = num;
    rc.base = base;
    CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), 0);
}

/* Make a descriptor available at a position. */
static void
put(uint16_t at, uint64_t addr, uint32_t len, uint16_t id, uint16_t flags)
{
    struct pvd_packed_desc d = { addr, len, id, (uint16_t)(flags | ((at & WRAP) != 0 ? A : U)) };
    CHECK_EQ(pvd_packed_set(guest, 1, at & (WRAP - 1), &d), 0);
}

/* ---- attaching ---- */

TEST(packed_attach_takes_any_size_up_to_32768)
{
    static const uint32_t bad[] = { 0, 32769, 65535, 65536, 65537, 1U << 31, UINT32_MAX };
    static const uint32_t good[] = { 1, 2, 3, 7, 255, 256, 257, 1000, 32767, MAX_SIZE };
    vq_set_up(PACKED, MAX_SIZE);
    struct pvs_ring_conf rc = vq_conf();
    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        rc.num = bad[i];
        CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), -EINVAL);
    }
    for (uint32_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        rc.num = good[i];
        CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), 0);
        CHECK_EQ(vq.num, good[i]);
    }
    vq_tear_down();
}

TEST(packed_attach_wants_a_base_inside_the_ring)
{
    static const uint32_t sizes[] = { 1, 2, 3, 8, 255, 256, 257, MAX_SIZE };
    vq_set_up(PACKED, MAX_SIZE);
    struct pvs_ring_conf rc = vq_conf();
    for (uint32_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        uint32_t index[] = { 0, sizes[i] / 2, sizes[i] - 1, sizes[i], sizes[i] + 1, MAX_SIZE - 1 };
        rc.num = sizes[i];
        for (uint32_t k = 0; k < 2 * 6; k++) {
            rc.base = index[k / 2] | (k % 2 != 0 ? WRAP : 0);
            CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), (rc.base & (WRAP - 1)) < sizes[i] ? 0 : -EINVAL);
        }
    }
    vq_tear_down();
}

TEST(packed_attach_goes_on_at_the_base_and_ignores_its_used_half)
{
    static const uint32_t used[] = { 0, 0x8000, 0x8005, 0x0003, 0xffff };
    vq_set_up(PACKED, VQ_NUM);
    for (uint32_t i = 0; i < sizeof used / sizeof used[0]; i++) {
        vq.signalled_valid = true;
        attach(VQ_NUM, 0x8005 | used[i] << 16); /* virtio-user 22.11 says nothing there, QEMU the same again */
        CHECK_EQ(vq.next_avail, 0x8005);
        CHECK_EQ(vq.next_used, 0x8005);
        CHECK_EQ(vq.published_used, 0x8005);
        CHECK_EQ(pvs_vq_base(&vq), 0x80058005);
        CHECK(!vq.signalled_valid);
    }
    attach(VQ_NUM, 0x0003);
    CHECK_EQ(pvs_vq_base(&vq), 0x00030003);
    vq_tear_down();
}

TEST(packed_attach_wants_the_alignments_of_the_specification)
{
    vq_set_up(PACKED, VQ_NUM);
    struct pvs_ring_conf good = vq_conf(), rc = good;
    rc.desc_uva += 8;
    CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), -EINVAL);
    rc = good;
    rc.avail_uva += 2;
    CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), -EINVAL);
    rc = good;
    rc.used_uva += 2;
    CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), -EINVAL);
    vq_tear_down();
}

TEST(packed_attach_refuses_memory_that_is_misaligned_in_its_file)
{
    vq_set_up(PACKED, VQ_NUM);
    struct pvs_ring_conf rc = { .num = 8, .desc_uva = VQ_UVA, .avail_uva = VQ_UVA + 1024, .used_uva = VQ_UVA + 2048 };
    rc.features = PACKED;
    for (uint64_t offset = 0; offset <= 8; offset++) {
        pvs_memory *odd = vq_one_region(8192, offset);
        CHECK_EQ(pvs_vq_attach(&vq, odd, &rc), offset % 8 == 0 ? 0 : -EINVAL);
        pvs_memory_destroy(odd);
    }
    vq_tear_down();
}

TEST(packed_cve_2018_1059_the_whole_ring_must_be_mapped)
{
    enum { SIZE = 8192 };
    static const uint32_t sizes[] = { 1, 3, 8, 255 };
    vq_set_up(PACKED, VQ_NUM);
    pvs_memory *m = vq_one_region(SIZE, 0);
    for (uint32_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct pvs_ring_conf good = { .num = sizes[i], .features = PACKED, .desc_uva = VQ_UVA };
        good.avail_uva = VQ_UVA + SIZE - 4;
        good.used_uva = VQ_UVA + SIZE - 4;
        struct pvs_ring_conf rc = good;
        CHECK_EQ(pvs_vq_attach(&vq, m, &rc), 0);
        rc.desc_uva = VQ_UVA + SIZE - 16 * sizes[i];
        CHECK_EQ(pvs_vq_attach(&vq, m, &rc), 0);
        rc.desc_uva += 16;
        CHECK_EQ(pvs_vq_attach(&vq, m, &rc), -EFAULT);
        rc.desc_uva = VQ_UVA - 16;
        CHECK_EQ(pvs_vq_attach(&vq, m, &rc), -EFAULT);
        rc = good;
        rc.avail_uva += 4;
        CHECK_EQ(pvs_vq_attach(&vq, m, &rc), -EFAULT);
        rc = good;
        rc.used_uva += 4;
        CHECK_EQ(pvs_vq_attach(&vq, m, &rc), -EFAULT);
        rc = good;
        rc.desc_uva = UINT64_MAX - 15;
        CHECK_EQ(pvs_vq_attach(&vq, m, &rc), -EFAULT);
        CHECK_EQ(pvs_vq_attach(&vq, NULL, &good), -EFAULT);
    }
    pvs_memory_destroy(m);
    vq_tear_down();
}

TEST(packed_header_is_always_12_bytes)
{
    vq_set_up(1ULL << VIRTIO_F_RING_PACKED, VQ_NUM);
    CHECK_EQ(vq.header_len, 12);
    vq_tear_down();
}

/* ---- positions ---- */

TEST(packed_positions_wrap_by_comparison)
{
    static const uint32_t sizes[] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 255, 256, 257, 32767, MAX_SIZE };
    vq_set_up(PACKED, MAX_SIZE);
    for (uint32_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        uint32_t num = sizes[i], at = WRAP;
        attach(num, WRAP);
        for (uint32_t steps = 0; steps < 2 * num + 1; steps++) {
            uint32_t wrap = at & WRAP, index = at & (WRAP - 1);
            CHECK_EQ(pvs_packed_index((uint16_t)at), index);
            /* one time round is where we are, in the other round */
            CHECK_EQ(pvs_packed_advance(&vq, (uint16_t)at, num), index | (wrap ^ WRAP));
            CHECK_EQ(pvs_packed_advance(&vq, (uint16_t)at, 0), at);
            uint32_t half = num / 2, there = index + half >= num ? (index + half - num) | (wrap ^ WRAP) : at + half;
            CHECK_EQ(pvs_packed_advance(&vq, (uint16_t)at, half), there);
            at = index + 1 == num ? wrap ^ WRAP : at + 1;
            CHECK_EQ(pvs_packed_advance(&vq, (uint16_t)(index | wrap), 1), at);
        }
    }
    vq_tear_down();
}

TEST(packed_descriptor_is_available_in_one_round_only)
{
    static const uint16_t bits[] = { 0, A, U, A | U };
    vq_set_up(PACKED, VQ_NUM);
    for (uint32_t wrap = 0; wrap < 2; wrap++) {
        for (uint32_t i = 0; i < 4; i++) {
            uint16_t at = (uint16_t)(3 | (wrap != 0 ? WRAP : 0));
            struct pvd_packed_desc d = { scratch, 100, 5, bits[i] };
            bool expected = bits[i] == (wrap != 0 ? A : U); /* neither used, nor left over from the last round */
            CHECK_EQ(pvd_packed_set(guest, 1, 3, &d), 0);
            CHECK_EQ(pvs_packed_ready(&vq, at), expected);
            broken = PVS_BROKEN_NONE;
            CHECK_EQ(pvs_vq_look(&vq, at, false, seg, PVS_MAX_SEGS, &chain, &broken), expected);
            CHECK_EQ(broken, PVS_BROKEN_NONE);
            if (!expected)
                CHECK_EQ(vq.seen_avail, at);
        }
    }
    vq_tear_down();
}

TEST(packed_expect_says_whether_there_is_one)
{
    vq_set_up(PACKED, 3);
    CHECK_EQ(pvs_vq_expect(&vq, 64, &broken), 0);
    put(WRAP, scratch, 10, 0, 0);
    CHECK_EQ(pvs_vq_expect(&vq, 64, &broken), 64);
    pvs_vq_take(&vq, WRAP | 1);
    CHECK_EQ(pvs_vq_expect(&vq, 64, &broken), 0);
    CHECK_EQ(broken, PVS_BROKEN_NONE);
    vq_tear_down();
}

/* ---- giving back ---- */

static struct pvd_packed_desc
desc(uint32_t i)
{
    struct pvd_packed_desc d;
    CHECK_EQ(pvd_packed_get(guest, 1, i, &d), 0);
    return d;
}

/* As its driver sees it: is the descriptor at this position used? */
static bool
used(uint16_t at)
{
    return (desc(at & (WRAP - 1)).flags & (A | U)) == ((at & WRAP) != 0 ? A | U : 0);
}

TEST(packed_nothing_is_shown_before_publish)
{
    for (uint32_t wrap = 0; wrap <= WRAP; wrap += WRAP) {
        uint16_t at = (uint16_t)(wrap | 5);
        vq_set_up(PACKED, VQ_NUM);
        attach(VQ_NUM, at);
        put(at, scratch, 100, 1, 0);
        struct pvd_packed_desc before = desc(5);
        CHECK_EQ(pvs_vq_expect(&vq, 1, &broken), 1);
        pvs_vq_take(&vq, at + 1);
        pvs_vq_give(&vq, 3, at + 1, 77);
        struct pvd_packed_desc after = desc(5);
        CHECK(memcmp(&before, &after, sizeof before) == 0);
        pvs_vq_publish(&vq);
        CHECK(used(at));
        CHECK_EQ(desc(5).addr, scratch);
        CHECK_EQ(desc(5).id, 3);
        CHECK_EQ(desc(5).len, 77);
        CHECK_EQ(desc(5).flags & ~(A | U), W); /* bytes were written */
        vq_tear_down();
    }
}

TEST(packed_used_descriptor_says_write_only_if_something_was_written)
{
    vq_set_up(PACKED, VQ_NUM);
    put(WRAP, scratch, 100, 1, N);
    pvs_vq_give(&vq, 1, WRAP | 2, 0);
    pvs_vq_publish(&vq);
    CHECK(used(WRAP));
    CHECK_EQ(desc(0).len, 0);
    CHECK_EQ(desc(0).flags & ~(A | U), 0);
    vq_tear_down();
}

TEST(packed_first_descriptor_of_a_batch_is_written_last)
{
    for (uint32_t num = 2; num <= 9; num++) {
        for (uint32_t start = 0; start < 2 * num; start++) {
            uint16_t first = (uint16_t)(start % num | (start < num ? WRAP : 0)), at = first, behind;
            vq_set_up(PACKED, num);
            attach(num, first);
            for (uint16_t i = 0; i < num; i++) { /* all round, and so over the end */
                put(at, scratch, 10, i, 0);
                behind = pvs_packed_advance(&vq, at, 1);
                pvs_vq_give(&vq, i, behind, 10 + i);
                CHECK(!used(first)); /* so the driver looks no further */
                at = behind;
            }
            pvs_vq_publish(&vq);
            for (uint16_t i = 0; i < num; i++) {
                at = pvs_packed_advance(&vq, first, i);
                CHECK(used(at));
                CHECK_EQ(desc(pvs_packed_index(at)).id, i);
                CHECK_EQ(desc(pvs_packed_index(at)).len, 10 + i);
            }
            CHECK_EQ(vq.next_used, pvs_packed_advance(&vq, first, num));
            vq_tear_down();
        }
    }
}

TEST(packed_next_batch_hides_its_own_first_descriptor)
{
    vq_set_up(PACKED, VQ_NUM);
    for (uint16_t i = 0; i < 4; i++)
        put(WRAP | i, scratch, 10, i, 0);
    pvs_vq_give(&vq, 0, WRAP | 1, 1);
    pvs_vq_give(&vq, 1, WRAP | 2, 1);
    pvs_vq_publish(&vq);
    pvs_vq_give(&vq, 2, WRAP | 3, 1);
    pvs_vq_give(&vq, 3, WRAP | 4, 1);
    CHECK(used(WRAP | 1) && !used(WRAP | 2));
    pvs_vq_publish(&vq);
    CHECK(used(WRAP | 2) && used(WRAP | 3));
    vq_tear_down();
}

TEST(packed_publish_of_nothing_writes_nothing)
{
    vq_set_up(PACKED, VQ_NUM);
    put(WRAP, scratch, 10, 0, 0);
    put(WRAP | 1, scratch, 10, 1, 0);
    pvs_vq_publish(&vq);
    CHECK(!used(WRAP));
    pvs_vq_give(&vq, 0, WRAP | 1, 0);
    pvs_vq_publish(&vq);
    put(WRAP, scratch, 10, 5, 0);
    pvs_vq_publish(&vq);
    CHECK(!used(WRAP) && !used(WRAP | 1));
    vq_tear_down();
}

TEST(packed_chain_is_given_back_at_its_first_descriptor)
{
    vq_set_up(PACKED, VQ_NUM); /* three descriptors, one, two over the end */
    pvs_vq_give(&vq, 5, WRAP | 3, 1);
    pvs_vq_give(&vq, 6, WRAP | 4, 2);
    pvs_vq_publish(&vq);
    CHECK(used(WRAP) && !used(WRAP | 1) && !used(WRAP | 2) && used(WRAP | 3));
    attach(VQ_NUM, WRAP | 7);
    pvs_vq_give(&vq, 7, 1, 3);
    pvs_vq_give(&vq, 2, 2, 4);
    pvs_vq_publish(&vq);
    CHECK(used(WRAP | 7));
    CHECK_EQ(desc(7).id, 7);
    CHECK(used(1)); /* in the second round, so neither bit is set */
    CHECK_EQ(desc(1).id, 2);
    CHECK_EQ(desc(0).id, 5); /* what the first chain had behind the end is left alone */
    vq_tear_down();
}

TEST(packed_batch_in_order_is_one_used_descriptor)
{
    vq_set_up(PACKED | 1ULL << VIRTIO_F_IN_ORDER, VQ_NUM);
    CHECK(vq.in_order);
    for (uint16_t i = 0; i < 6; i++)
        put(WRAP | i, scratch, 10, i, 0);
    pvs_vq_give_batch(&vq, 2, WRAP | 3, 3);
    CHECK(!used(WRAP));
    pvs_vq_publish(&vq);
    CHECK(used(WRAP));
    CHECK_EQ(desc(0).id, 2); /* the last one's */
    CHECK_EQ(desc(0).len, 0);
    for (uint16_t i = 1; i < 6; i++) {
        CHECK(!used(WRAP | i));
        CHECK_EQ(desc(i).id, i);
    }
    pvs_vq_give_batch(&vq, 3, WRAP | 4, 1);
    pvs_vq_give_batch(&vq, 5, WRAP | 6, 2);
    CHECK(!used(WRAP | 3));
    pvs_vq_publish(&vq);
    CHECK(used(WRAP | 3) && used(WRAP | 4) && !used(WRAP | 5));
    CHECK_EQ(desc(4).id, 5);
    CHECK_EQ(vq.next_used, WRAP | 6);
    vq_tear_down();
}

/* ---- where it stands ---- */

TEST(packed_base_goes_on_where_it_stopped)
{
    static const uint32_t sizes[] = { 1, 2, 3, 8, 255, 257 };
    for (uint32_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        uint32_t num = sizes[i];
        uint16_t at = WRAP;
        vq_set_up(PACKED, num);
        for (uint32_t step = 0; step < 4 * num + 3; step++) {
            uint16_t next = pvs_packed_advance(&vq, at, 1), seen, given;
            put(at, scratch, 60, 0, 0);
            pvs_vq_progress(&vq, &seen, &given);
            CHECK_EQ(seen, next); /* there is more */
            CHECK_EQ(given, at);
            CHECK(pvs_vq_look(&vq, at, false, seg, 1, &chain, &broken));
            pvs_vq_take(&vq, next);
            pvs_vq_give(&vq, 0, next, 0);
            pvs_vq_publish(&vq);
            pvs_vq_progress(&vq, &seen, &given);
            CHECK_EQ(seen, next);
            CHECK_EQ(given, next);
            CHECK_EQ(pvs_vq_base(&vq), next | (uint32_t)next << 16);
            attach(num, pvs_vq_base(&vq));
            CHECK_EQ(vq.next_avail, next);
            at = next;
        }
        vq_tear_down();
    }
}
