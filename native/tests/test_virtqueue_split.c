/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_virtqueue_split.c - a split ring: what is legal, what each illegal ring is called, who is told when.
 */
#include "virtqueue_lab.h"

#include <errno.h>
#include <string.h>

static void
desc(uint32_t i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    struct pvd_desc d = { .addr = addr, .len = len, .flags = flags, .next = next };
    CHECK_EQ(pvd_desc_set(guest, 1, i, &d), 0);
}

/* Entry i of an indirect table at scratch. */
static void
entry(uint32_t i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    struct pvd_desc *table = pvd_ptr(guest, scratch, (i + 1) * sizeof *table);
    CHECK(table != NULL);
    table[i] = (struct pvd_desc){ .addr = addr, .len = len, .flags = flags, .next = next };
}

static enum pvs_broken
walk(uint16_t head)
{
    return pvs_split_chain(&vq, head, false, seg, PVS_MAX_SEGS, &chain);
}

/* ---- attaching ---- */

TEST(attach_takes_powers_of_two_up_to_32768)
{
    static const uint32_t bad[] = { 0, 3, 7, 9, 255, 32767, 32769, 65535, 65536, 1U << 31, UINT32_MAX };
    vq_set_up(VQ_MODERN, VQ_NUM);
    struct pvs_ring_conf rc = vq_conf();
    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        rc.num = bad[i];
        CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), -EINVAL);
    }
    for (rc.num = 1; rc.num <= VQ_NUM; rc.num *= 2)
        CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), 0);
    vq_tear_down();
    vq_set_up(VQ_MODERN, 32768);
    vq_tear_down();
}

TEST(attach_wants_the_alignments_of_the_specification)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    struct pvs_ring_conf good = vq_conf(), rc = good;
    rc.desc_uva += 8;
    CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), -EINVAL);
    rc = good;
    rc.avail_uva += 1;
    CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), -EINVAL);
    rc = good;
    rc.used_uva += 2;
    CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), -EINVAL);
    vq_tear_down();
}

TEST(attach_refuses_memory_that_is_misaligned_in_its_file)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    pvs_memory *odd = vq_one_region(8192, 1);
    struct pvs_ring_conf rc = { .num = 8, .desc_uva = VQ_UVA, .avail_uva = 0x100400, .used_uva = 0x100800 };
    CHECK_EQ(pvs_vq_attach(&vq, odd, &rc), -EINVAL);
    pvs_memory_destroy(odd);
    vq_tear_down();
}

/* Place each part of the ring so that it ends `beyond` bytes behind the end of memory. */
static void
check_ends(uint64_t features, uint64_t event)
{
    enum { SIZE = 8192 };
    pvs_memory *m = vq_one_region(SIZE, 0);
    uint64_t base = VQ_UVA, end = base + SIZE;
    struct pvs_ring_conf good = {
        .num = 8, .features = features, .desc_uva = base, .avail_uva = base + 512, .used_uva = base + 1024
    };
    struct pvs_ring_conf rc = good;
    CHECK_EQ(pvs_vq_attach(&vq, m, &rc), 0);
    rc.desc_uva = end - 16 * 8;
    CHECK_EQ(pvs_vq_attach(&vq, m, &rc), 0);
    rc.desc_uva += 16;
    CHECK_EQ(pvs_vq_attach(&vq, m, &rc), -EFAULT);
    rc = good;
    rc.avail_uva = end - (4 + 2 * 8 + event);
    CHECK_EQ(pvs_vq_attach(&vq, m, &rc), 0);
    rc.avail_uva += 2;
    CHECK_EQ(pvs_vq_attach(&vq, m, &rc), -EFAULT);
    rc = good;
    rc.used_uva = end - (4 + 8 * 8 + 2 * event); /* rounded up to the alignment of 4 */
    CHECK_EQ(pvs_vq_attach(&vq, m, &rc), 0);
    rc.used_uva += 4;
    CHECK_EQ(pvs_vq_attach(&vq, m, &rc), -EFAULT);
    pvs_memory_destroy(m);
}

TEST(cve_2018_1059_the_whole_ring_must_be_mapped)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    check_ends(0, 0);
    check_ends(1ULL << VIRTIO_F_EVENT_IDX, 2);
    vq_tear_down();
}

TEST(attach_without_memory_does_not_translate)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    struct pvs_ring_conf rc = vq_conf();
    CHECK_EQ(pvs_vq_attach(&vq, NULL, &rc), -EFAULT);
    vq_tear_down();
}

TEST(header_is_12_bytes_with_version_1_or_mergeable_buffers_else_10)
{
    static const struct {
        uint64_t features;
        uint8_t length;
    } expected[] = { { 0, 10 },
                     { 1ULL << VIRTIO_F_VERSION_1, 12 },
                     { 1ULL << VIRTIO_NET_F_MRG_RXBUF, 12 },
                     { 1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_NET_F_MRG_RXBUF, 12 },
                     { 1ULL << VIRTIO_F_EVENT_IDX | 1ULL << VIRTIO_F_ANY_LAYOUT, 10 } };
    vq_set_up(VQ_MODERN, VQ_NUM);
    for (uint32_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        struct pvs_ring_conf rc = vq_conf();
        rc.features = expected[i].features;
        CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), 0);
        CHECK_EQ(vq.header_len, expected[i].length);
    }
    vq_tear_down();
}

/* ---- the avail index ---- */

TEST(available_counts_up_to_the_ring_size)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    for (uint16_t n = 0; n <= VQ_NUM; n++) {
        CHECK_EQ(pvd_avail_idx_set(guest, 1, n), 0);
        CHECK_EQ(pvs_split_available(&vq, &broken), n);
        CHECK_EQ(broken, PVS_BROKEN_NONE);
    }
    vq_tear_down();
}

TEST(available_is_dead_when_the_index_jumps)
{
    static const uint16_t jump[] = { VQ_NUM + 1, 0x7fff, 0x8000, 0xffff };
    vq_set_up(VQ_MODERN, VQ_NUM);
    for (uint32_t i = 0; i < sizeof jump / sizeof jump[0]; i++) {
        broken = PVS_BROKEN_NONE;
        CHECK_EQ(pvd_avail_idx_set(guest, 1, jump[i]), 0);
        CHECK_EQ(pvs_split_available(&vq, &broken), 0);
        CHECK_EQ(broken, PVS_BROKEN_AVAIL_JUMP);
    }
    vq_tear_down();
}

TEST(available_goes_on_over_the_16_bit_wrap)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    vq.next_avail = vq.next_used = 0xfffd;
    for (uint16_t i = 0; i < VQ_NUM; i++)
        CHECK_EQ(pvd_avail_entry_set(guest, 1, (uint16_t)(0xfffd + i), (uint16_t)(VQ_NUM - 1 - i)), 0);
    CHECK_EQ(pvd_avail_idx_set(guest, 1, 5), 0);
    CHECK_EQ(pvs_split_available(&vq, &broken), VQ_NUM);
    for (uint16_t i = 0; i < VQ_NUM; i++)
        CHECK_EQ(pvs_split_head(&vq, i), VQ_NUM - 1 - i);
    for (uint16_t i = 0; i < VQ_NUM; i++)
        pvs_split_give(&vq, i, i);
    pvs_split_take(&vq, VQ_NUM);
    pvs_split_publish(&vq);
    CHECK_EQ(vq.next_avail, 5);
    CHECK_EQ(pvd_used_idx(guest, 1), 5);
    CHECK_EQ(pvs_split_available(&vq, &broken), 0);
    CHECK_EQ(pvd_avail_idx_set(guest, 1, 5 + VQ_NUM + 1), 0);
    CHECK_EQ(pvs_split_available(&vq, &broken), 0);
    CHECK_EQ(broken, PVS_BROKEN_AVAIL_JUMP);
    vq_tear_down();
}

TEST(attach_goes_on_at_the_used_index)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    vq.next_used = 0xfffe;
    pvs_split_publish(&vq);
    CHECK_EQ(pvd_avail_idx_set(guest, 1, 1), 0);
    struct pvs_ring_conf rc = vq_conf();
    CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), 0);
    CHECK_EQ(vq.next_avail, 0xfffe);
    CHECK_EQ(pvs_split_available(&vq, &broken), 3);
    CHECK(!vq.signalled_valid);
    vq_tear_down();
}

/* ---- legal chains ---- */

TEST(chain_of_one)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    desc(VQ_NUM - 1, scratch, 100, 0, 77 /* not followed */);
    CHECK_EQ(walk(VQ_NUM - 1), PVS_BROKEN_NONE);
    CHECK_EQ(chain.id, VQ_NUM - 1);
    CHECK_EQ(chain.n, 1);
    CHECK_EQ(chain.len, 100);
    CHECK(!chain.wrong_direction);
    vq_tear_down();
}

TEST(chain_as_long_as_the_ring)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    for (uint16_t i = 0; i < VQ_NUM; i++)
        desc(i, scratch + i * 16, 16, i + 1 < VQ_NUM ? N : 0, (uint16_t)(i + 1));
    CHECK_EQ(walk(0), PVS_BROKEN_NONE);
    CHECK_EQ(chain.n, VQ_NUM);
    CHECK_EQ(chain.len, VQ_NUM * 16);
    vq_tear_down();
}

TEST(indirect_table_alone)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    desc(0, scratch, 3 * 16, I, 0);
    entry(0, scratch + 1000, 1, N, 2);
    entry(2, scratch + 2000, 2, N, 1);
    entry(1, scratch + 3000, 3, 0, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_NONE);
    CHECK_EQ(chain.n, 3);
    CHECK_EQ(chain.len, 6);
    CHECK(seg[1].base == seg[0].base + 1000);
    CHECK(seg[2].base == seg[0].base + 2000);
    vq_tear_down();
}

TEST(indirect_table_after_direct_descriptors)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    desc(0, scratch + 100, 10, N, 5);
    desc(5, scratch + 200, 20, N, 3);
    desc(3, scratch, 2 * 16, I, 0);
    entry(0, scratch + 300, 30, N, 1);
    entry(1, scratch + 400, 40, 0, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_NONE);
    CHECK_EQ(chain.n, 4);
    CHECK_EQ(chain.len, 100);
    vq_tear_down();
}

TEST(write_on_an_indirect_descriptor_is_ignored)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    desc(0, scratch, 16, I | W, 0);
    entry(0, scratch + 300, 30, 0, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_NONE);
    CHECK(!chain.wrong_direction);
    vq_tear_down();
}

TEST(indirect_table_as_long_as_the_ring)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    desc(0, scratch, VQ_NUM * 16, I, 0);
    for (uint16_t i = 0; i < VQ_NUM; i++)
        entry(i, scratch + 4096, 1, i + 1 < VQ_NUM ? N : 0, (uint16_t)(i + 1));
    CHECK_EQ(walk(0), PVS_BROKEN_NONE);
    CHECK_EQ(chain.n, VQ_NUM);
    vq_tear_down();
}

TEST(buffer_across_two_regions_is_two_segments)
{
    struct pvd_region r;
    vq_set_up(VQ_MODERN, VQ_NUM);
    CHECK_EQ(pvd_region_get(guest, 1, &r), 0);
    desc(0, r.gpa - 10, 30, 0, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_NONE);
    CHECK_EQ(chain.n, 2);
    CHECK_EQ(chain.len, 30);
    CHECK_EQ(seg[0].len, 10);
    CHECK_EQ(seg[1].len, 20);
    vq_tear_down();
}

TEST(cve_2020_10725_zero_length_is_nothing_wherever_it_points)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    desc(0, UINT64_MAX, 0, N, 1);
    desc(1, scratch, 50, N, 2);
    desc(2, 0, 0, 0, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_NONE);
    CHECK_EQ(chain.n, 1);
    CHECK_EQ(chain.len, 50);
    desc(0, 0, 0, 0, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_NONE);
    CHECK_EQ(chain.n, 0);
    CHECK_EQ(chain.len, 0);
    vq_tear_down();
}

TEST(wrong_direction_is_seen_in_both_directions)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    desc(0, scratch, 50, N, 1);
    desc(1, scratch, 50, W, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_NONE);
    CHECK(chain.wrong_direction);
    CHECK_EQ(pvs_split_chain(&vq, 0, true, seg, PVS_MAX_SEGS, &chain), PVS_BROKEN_NONE);
    CHECK(chain.wrong_direction);
    CHECK_EQ(pvs_split_chain(&vq, 1, true, seg, PVS_MAX_SEGS, &chain), PVS_BROKEN_NONE);
    CHECK(!chain.wrong_direction);
    vq_tear_down();
}

TEST(more_segments_than_room_is_truncated_not_overrun)
{
    struct pvd_region r;
    vq_set_up(VQ_MODERN, VQ_NUM);
    CHECK_EQ(pvd_region_get(guest, 1, &r), 0);
    desc(0, scratch, 10, N, 1);
    desc(1, r.gpa - 10, 30, N, 2); /* two segments */
    desc(2, scratch, 5, 0, 0);
    for (uint32_t cap = 0; cap <= 4; cap++) {
        memset(seg, 0xee, sizeof seg);
        CHECK_EQ(pvs_split_chain(&vq, 0, false, seg, cap, &chain), PVS_BROKEN_NONE);
        CHECK_EQ(chain.truncated, cap < 4);
        CHECK(chain.n <= cap);
        CHECK_EQ(chain.len, cap == 0 ? 0 : cap < 3 ? 10 : cap < 4 ? 40 : 45);
        CHECK_EQ(seg[cap].len, 0xeeeeeeee);
    }
    vq_tear_down();
}

/* ---- illegal chains ---- */

TEST(head_beyond_the_ring)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    CHECK_EQ(walk(VQ_NUM), PVS_BROKEN_HEAD_RANGE);
    CHECK_EQ(walk(0xffff), PVS_BROKEN_HEAD_RANGE);
    vq_tear_down();
}

TEST(next_beyond_the_ring)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    desc(0, scratch, 10, N, VQ_NUM);
    CHECK_EQ(walk(0), PVS_BROKEN_NEXT_RANGE);
    desc(0, scratch, 10, N, 0xffff);
    CHECK_EQ(walk(0), PVS_BROKEN_NEXT_RANGE);
    vq_tear_down();
}

TEST(next_beyond_the_indirect_table)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    desc(0, scratch, 2 * 16, I, 0);
    entry(0, scratch + 100, 10, N, 2); /* inside the ring, but not inside the table */
    entry(2, scratch + 100, 10, 0, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_NEXT_RANGE);
    vq_tear_down();
}

TEST(cve_2019_9547_chain_that_points_at_itself)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    desc(0, scratch, 10, N, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_CHAIN_LONG);
    desc(0, scratch, 0, N, 0); /* also without a byte in it */
    CHECK_EQ(walk(0), PVS_BROKEN_CHAIN_LONG);
    vq_tear_down();
}

TEST(cve_2019_3900_chain_that_goes_round)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    for (uint16_t i = 0; i < VQ_NUM; i++)
        desc(i, scratch, 10, N, (uint16_t)((i + 1) % VQ_NUM));
    CHECK_EQ(walk(3), PVS_BROKEN_CHAIN_LONG);
    vq_tear_down();
}

TEST(indirect_table_that_goes_round)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    desc(0, scratch, 2 * 16, I, 0);
    entry(0, scratch, 10, N, 1);
    entry(1, scratch, 10, N, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_CHAIN_LONG);
    vq_tear_down();
}

TEST(chain_of_more_than_1024_descriptors)
{
    vq_set_up(VQ_MODERN, 2048);
    for (uint16_t i = 0; i < 2048; i++)
        desc(i, scratch, 0, N, (uint16_t)(i + 1) % 2048);
    desc(PVS_MAX_SEGS - 1, scratch, 10, 0, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_NONE);
    desc(PVS_MAX_SEGS - 1, scratch, 10, N, PVS_MAX_SEGS);
    desc(PVS_MAX_SEGS, scratch, 10, 0, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_CHAIN_LONG);
    vq_tear_down();
}

TEST(address_outside_memory)
{
    static const uint64_t nowhere[] = { 0, 1, 0x1000, UINT64_MAX, UINT64_MAX - 10, 1ULL << 63 };
    vq_set_up(VQ_MODERN, VQ_NUM);
    for (uint32_t i = 0; i < sizeof nowhere / sizeof nowhere[0]; i++) {
        desc(0, nowhere[i], 10, 0, 0);
        CHECK_EQ(walk(0), PVS_BROKEN_BAD_ADDRESS);
    }
    desc(0, scratch + 65536 - 10, 11, 0, 0); /* scratch ends where the last region does */
    CHECK_EQ(walk(0), PVS_BROKEN_BAD_ADDRESS);
    desc(0, scratch + 65536 - 10, 10, 0, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_NONE);
    desc(0, scratch, UINT32_MAX, 0, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_BAD_ADDRESS);
    vq_tear_down();
}

TEST(indirect_without_the_feature)
{
    vq_set_up(1ULL << VIRTIO_F_VERSION_1, VQ_NUM);
    desc(0, scratch, 16, I, 0);
    entry(0, scratch, 10, 0, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_INDIRECT_REFUSED);
    vq_tear_down();
}

TEST(indirect_inside_an_indirect_table)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    desc(0, scratch, 16, I, 0);
    entry(0, scratch + 1024, 16, I, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_INDIRECT_REFUSED);
    entry(0, scratch, 16, I, 0); /* itself */
    CHECK_EQ(walk(0), PVS_BROKEN_INDIRECT_REFUSED);
    vq_tear_down();
}

TEST(indirect_with_next)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    desc(0, scratch, 16, I | N, 1);
    desc(1, scratch, 16, 0, 0);
    entry(0, scratch, 10, 0, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_INDIRECT_NEXT);
    vq_tear_down();
}

TEST(indirect_table_of_a_wrong_size)
{
    static const uint32_t bad[] = { 0, 1, 15, 17, 31, (VQ_NUM + 1) * 16, 16 * 65536, 0xfffffff0, UINT32_MAX };
    vq_set_up(VQ_MODERN, VQ_NUM);
    entry(0, scratch, 10, 0, 0);
    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        desc(0, scratch, bad[i], I, 0);
        CHECK_EQ(walk(0), PVS_BROKEN_INDIRECT_SIZE);
    }
    vq_tear_down();
}

TEST(indirect_table_not_in_memory_or_across_regions)
{
    struct pvd_region r;
    vq_set_up(VQ_MODERN, VQ_NUM);
    CHECK_EQ(pvd_region_get(guest, 1, &r), 0);
    desc(0, r.gpa - 16, 32, I, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_INDIRECT_ADDRESS);
    desc(0, 0, 32, I, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_INDIRECT_ADDRESS);
    desc(0, UINT64_MAX - 15, 32, I, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_INDIRECT_ADDRESS);
    vq_tear_down();
}

TEST(indirect_table_may_lie_at_an_odd_address)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    struct pvd_desc d = { .addr = scratch + 1000, .len = 7 };
    memcpy(pvd_ptr(guest, scratch + 3, sizeof d), &d, sizeof d);
    desc(0, scratch + 3, 16, I, 0);
    CHECK_EQ(walk(0), PVS_BROKEN_NONE);
    CHECK_EQ(chain.len, 7);
    vq_tear_down();
}

TEST(every_broken_code_has_its_sentence)
{
    for (uint32_t i = 0; i < PVS_BROKEN_COUNT; i++)
        for (uint32_t k = 0; k < i; k++)
            CHECK(strcmp(pvs_broken_reason(i), pvs_broken_reason(k)) != 0);
    CHECK(strcmp(pvs_broken_reason(PVS_BROKEN_COUNT), "unknown") == 0);
}

/* ---- giving back ---- */

TEST(nothing_is_shown_before_publish)
{
    uint32_t id, len;
    vq_set_up(VQ_MODERN, VQ_NUM);
    pvs_split_give(&vq, 5, 77);
    CHECK_EQ(pvd_used_idx(guest, 1), 0);
    pvs_split_publish(&vq);
    CHECK_EQ(pvd_used_idx(guest, 1), 1);
    CHECK_EQ(pvd_used_entry(guest, 1, 0, &id, &len), 0);
    CHECK_EQ(id, 5);
    CHECK_EQ(len, 77);
    vq_tear_down();
}

/* ---- calls ---- */

/* Publish up to used index `to`, with the guest's event at `event`: is a call wanted? */
static bool
call_after(uint16_t to, uint16_t event)
{
    CHECK_EQ(pvd_used_event_set(guest, 1, event), 0);
    vq.next_used = to;
    pvs_split_publish(&vq);
    return pvs_split_wants_call(&vq);
}

TEST(event_idx_call_exactly_when_the_index_passes_the_event)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    for (uint32_t start = 0xfff0; start < 0x10010; start += 5) {
        for (uint16_t step = 0; step <= VQ_NUM; step++) {
            for (int offset = -20; offset < 20; offset++) {
                uint16_t old = (uint16_t)start, event = (uint16_t)(start + (uint32_t)offset);
                bool passed = false; /* slow and plain: was element `event` among those published? */
                for (uint16_t k = 0; k < step; k++)
                    passed |= (uint16_t)(old + k) == event;
                vq.signalled_used = old;
                vq.signalled_valid = true;
                CHECK_EQ(call_after((uint16_t)(old + step), event), passed);
            }
        }
    }
    vq_tear_down();
}

TEST(event_idx_first_call_after_a_start_is_always_made)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    CHECK(call_after(1, 0x8000));
    CHECK(!call_after(2, 0x8000));
    struct pvs_ring_conf rc = vq_conf();
    CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), 0); /* started again: what was signalled then is void */
    CHECK(call_after(3, 0x8000));
    vq_tear_down();
}

TEST(event_idx_suppressed_calls_are_made_up_for)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    CHECK(call_after(1, 5));
    CHECK(!call_after(3, 5));
    CHECK(!call_after(5, 5)); /* element 5 itself is not published yet */
    CHECK(call_after(6, 5));
    CHECK(!call_after(7, 5));
    vq_tear_down();
}

TEST(flags_call_unless_the_guest_says_no_interrupt)
{
    vq_set_up(1ULL << VIRTIO_F_VERSION_1, VQ_NUM);
    CHECK(call_after(1, 0x8000));
    CHECK(call_after(2, 0x8000));
    CHECK_EQ(pvd_avail_flags_set(guest, 1, 1), 0);
    CHECK(!call_after(3, 3));
    CHECK_EQ(pvd_avail_flags_set(guest, 1, 0xfffe), 0); /* other bits mean nothing */
    CHECK(call_after(4, 3));
    vq_tear_down();
}

TEST(event_idx_ignores_the_flags)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    CHECK_EQ(pvd_avail_flags_set(guest, 1, 1), 0);
    CHECK(call_after(1, 0));
    CHECK(call_after(2, 1));
    vq_tear_down();
}

/* ---- kicks ---- */

TEST(event_idx_arm_asks_for_a_kick_at_the_next_chain)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    vq.next_avail = 0xffff;
    CHECK_EQ(pvd_avail_idx_set(guest, 1, 0xffff), 0);
    CHECK(!pvs_split_kick_arm(&vq, vq.next_avail));
    CHECK_EQ(pvd_avail_event(guest, 1), 0xffff);
    CHECK_EQ(pvd_used_flags(guest, 1), 0);
    vq_tear_down();
}

TEST(arm_sees_what_came_in_the_meantime)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    CHECK_EQ(pvd_avail_idx_set(guest, 1, 1), 0); /* published after the ring was last found empty: no kick comes */
    CHECK(pvs_split_kick_arm(&vq, vq.next_avail));
    pvs_split_take(&vq, 1);
    CHECK(!pvs_split_kick_arm(&vq, vq.next_avail));
    CHECK_EQ(pvd_avail_event(guest, 1), 1);
    vq_tear_down();
}

TEST(event_idx_suppressed_kicks_leave_the_event_behind)
{
    vq_set_up(VQ_MODERN, VQ_NUM);
    CHECK(!pvs_split_kick_arm(&vq, vq.next_avail));
    pvs_split_kick_suppress(&vq);
    pvs_split_take(&vq, 1);
    CHECK_EQ(pvd_avail_event(guest, 1), 0);
    CHECK_EQ(pvd_used_flags(guest, 1), 0);
    vq_tear_down();
}

TEST(flags_suppress_and_arm_kicks)
{
    vq_set_up(1ULL << VIRTIO_F_VERSION_1, VQ_NUM);
    pvs_split_kick_suppress(&vq);
    CHECK_EQ(pvd_used_flags(guest, 1), 1);
    CHECK(!pvs_split_kick_arm(&vq, vq.next_avail));
    CHECK_EQ(pvd_used_flags(guest, 1), 0);
    CHECK_EQ(pvd_avail_event(guest, 1), 0); /* not ours to write without the feature */
    CHECK_EQ(pvd_avail_idx_set(guest, 1, 1), 0);
    CHECK(pvs_split_kick_arm(&vq, vq.next_avail));
    vq_tear_down();
}
