/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_virtqueue_packed_event.c - a packed ring: who is told when (virtio 1.2, 2.8.10 and 2.8.14).
 *
 * How it works: whether a call is due is decided a second time, slowly and plainly, for every size up to nine, every
 * position, every event and more rounds than one.
 */
#include "virtqueue_lab.h"

enum { WRAP = 0x8000, SIZES = 9 };

static const uint64_t PACKED = VQ_MODERN | 1ULL << VIRTIO_F_RING_PACKED;
static const uint64_t NO_EVENT_IDX = 1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_F_RING_PACKED;

static void
attach(uint32_t num, uint16_t base)
{
    struct pvs_ring_conf rc = vq_conf();
    rc.num = num;
    rc.base = base;
    CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), 0);
}

/* The `k`-th position of a ring of `num` that has gone round twice: 0 to 2 * num - 1. */
static uint16_t
position(uint32_t num, uint32_t k)
{
    k %= 2 * num;
    return (uint16_t)(k % num | (k < num ? WRAP : 0));
}

static void
guest_wants(uint16_t off_wrap, uint16_t flags)
{
    struct pvd_event event = { .off_wrap = off_wrap, .flags = flags };
    CHECK_EQ(pvd_event_set(guest, 1, 0, &event), 0);
}

static struct pvd_event
we_want(void)
{
    struct pvd_event event;
    CHECK_EQ(pvd_event_get(guest, 1, 1, &event), 0);
    return event;
}

/* Give back `n` descriptors; shown one by one, or all at once. */
static void
give(uint32_t n, bool one_by_one)
{
    for (uint32_t i = 0; i < n; i++) {
        pvs_vq_give(&vq, 0, pvs_packed_advance(&vq, vq.next_used, 1), 1);
        if (one_by_one)
            pvs_vq_publish(&vq);
    }
    pvs_vq_publish(&vq);
}

/* A ring that was looked at when it stood at the `start`-th position, and has given `n` descriptors back since. */
static bool
wanted_after(uint32_t num, uint32_t start, uint32_t n, uint16_t event)
{
    attach(num, position(num, start));
    guest_wants(0, PVD_EVENT_DESC);
    CHECK(pvs_vq_wants_call(&vq)); /* the first time in any case */
    guest_wants(event, PVD_EVENT_DESC);
    give(n, n > num || n % 2 != 0); /* no more at once than a guest can have made available */
    return pvs_vq_wants_call(&vq);
}

/* ---- calls ---- */

TEST(packed_call_exactly_when_the_ring_passes_the_event)
{
    vq_set_up(PACKED, SIZES);
    for (uint32_t num = 1; num <= SIZES; num++) {
        for (uint32_t start = 0; start < 2 * num; start++) {
            for (uint32_t n = 0; n <= num; n++) { /* more would be chains that the guest hasn't made available */
                for (uint32_t e = 0; e < 2 * num; e++) {
                    bool passed = false;
                    for (uint32_t k = 0; k < n; k++)
                        passed |= position(num, start + k) == position(num, e);
                    CHECK_EQ(wanted_after(num, start, n, position(num, e)), passed);
                }
            }
        }
    }
    vq_tear_down();
}

/* The guest may have taken and posted buffers again and again between two looks; then it armed anew and slept. */
TEST(packed_call_is_made_however_often_the_ring_went_round)
{
    vq_set_up(PACKED, SIZES);
    for (uint32_t num = 1; num <= SIZES; num++)
        for (uint32_t start = 0; start < 2 * num; start++)
            for (uint32_t n = num; n <= 6 * num; n++) {
                for (uint32_t behind = 1; behind <= num; behind++) /* the event is one of the last `num` */
                    CHECK(wanted_after(num, start, n, position(num, start + n - behind)));
                for (uint32_t ahead = 0; ahead < num; ahead++) /* or it is yet to come */
                    CHECK(!wanted_after(num, start, n, position(num, start + n + ahead)));
            }
    vq_tear_down();
}

TEST(packed_event_beyond_the_ring_is_never_passed)
{
    vq_set_up(PACKED, SIZES);
    for (uint32_t num = 1; num < SIZES; num++)
        for (uint32_t n = 0; n <= num; n++)
            for (uint32_t off = num; off < num + 20; off++) {
                CHECK(!wanted_after(num, 0, n, (uint16_t)off));
                CHECK(!wanted_after(num, 0, n, (uint16_t)(off | WRAP)));
            }
    CHECK(!wanted_after(3, 1, 2, 0x7fff));
    CHECK(!wanted_after(3, 1, 2, 0xffff));
    vq_tear_down();
}

TEST(packed_events_of_the_largest_ring)
{
    vq_set_up(PACKED, 32768);
    uint32_t num = 32768;
    for (uint32_t start = num - 3; start < num + 3; start++)
        for (uint32_t n = 1; n <= 4; n++)
            for (uint32_t e = num - 6; e < num + 9; e++)
                CHECK_EQ(wanted_after(num, start, n, position(num, e)), e >= start && e < start + n);
    CHECK(wanted_after(num, 5, num, position(num, 5)));
    CHECK(wanted_after(num, 5, num, position(num, num + 4)));
    CHECK(!wanted_after(num, 5, num, position(num, num + 5)));
    vq_tear_down();
}

TEST(packed_enable_and_disable)
{
    for (int event_idx = 0; event_idx < 2; event_idx++) {
        vq_set_up(event_idx ? PACKED : NO_EVENT_IDX, VQ_NUM);
        guest_wants(0, PVD_EVENT_DISABLE);
        CHECK(!pvs_vq_wants_call(&vq));
        give(1, false);
        CHECK(!pvs_vq_wants_call(&vq));
        guest_wants(5 | WRAP, PVD_EVENT_ENABLE);
        give(1, false);
        CHECK(pvs_vq_wants_call(&vq));
        give(1, false);
        CHECK(pvs_vq_wants_call(&vq)); /* each time */
        guest_wants(5 | WRAP, PVD_EVENT_DISABLE);
        give(4, false);
        CHECK(!pvs_vq_wants_call(&vq));
        vq_tear_down();
    }
}

TEST(packed_event_position_means_nothing_without_event_idx)
{
    vq_set_up(NO_EVENT_IDX, VQ_NUM);
    guest_wants(7 | WRAP, PVD_EVENT_DESC); /* it may not say that; call rather than have it wait */
    CHECK(pvs_vq_wants_call(&vq));
    give(1, false);
    CHECK(pvs_vq_wants_call(&vq));
    vq_tear_down();
}

TEST(packed_first_call_after_a_start_is_made)
{
    vq_set_up(PACKED, VQ_NUM);
    for (int i = 0; i < 3; i++) {
        guest_wants(5, PVD_EVENT_DESC);
        give(1, false);
        CHECK(pvs_vq_wants_call(&vq));
        give(1, false);
        CHECK(!pvs_vq_wants_call(&vq));
        attach(VQ_NUM, WRAP); /* started again: what was signalled then is void */
    }
    vq_tear_down();
}

TEST(packed_suppressed_calls_are_made_up_for)
{
    vq_set_up(PACKED, VQ_NUM);
    guest_wants(5 | WRAP, PVD_EVENT_DESC);
    give(1, false);
    CHECK(pvs_vq_wants_call(&vq));
    give(2, false);
    CHECK(!pvs_vq_wants_call(&vq));
    give(2, false);
    CHECK(!pvs_vq_wants_call(&vq)); /* number 5 is yet to come */
    give(1, false);
    CHECK(pvs_vq_wants_call(&vq));
    give(1, false);
    CHECK(!pvs_vq_wants_call(&vq));
    vq_tear_down();
}

TEST(packed_calls_after_disable_count_from_the_last_look)
{
    vq_set_up(PACKED, VQ_NUM);
    guest_wants(0, PVD_EVENT_ENABLE);
    CHECK(pvs_vq_wants_call(&vq));
    guest_wants(0, PVD_EVENT_DISABLE);
    give(3, false);
    CHECK(!pvs_vq_wants_call(&vq));
    guest_wants(1 | WRAP, PVD_EVENT_DESC); /* passed before the guest could be told: it looks itself after arming */
    give(1, false);
    CHECK(!pvs_vq_wants_call(&vq));
    guest_wants(4 | WRAP, PVD_EVENT_DESC);
    give(1, false);
    CHECK(pvs_vq_wants_call(&vq));
    vq_tear_down();
}

TEST(packed_a_driver_that_waits_is_called_at_every_size)
{
    for (uint32_t num = 1; num <= SIZES; num++) {
        uint8_t frame[60] = { 0 };
        vq_set_up(PACKED, num);
        for (uint32_t i = 0; i < 5 * num; i++) {
            uint32_t n = 1 + i % num;
            CHECK_EQ(pvd_tx_reap(guest, 0), i == 0 ? 0 : 1 + (i - 1) % num);
            CHECK_EQ(pvd_call_arm(guest, 1), 0);
            for (uint32_t k = 0; k < n; k++)
                CHECK_EQ(pvd_tx(guest, 0, NULL, frame, sizeof frame, NULL), 0);
            for (uint32_t k = 0; k < n; k++) {
                CHECK(pvs_vq_look(&vq, vq.next_avail, false, seg, PVS_MAX_SEGS, &chain, &broken));
                pvs_vq_take(&vq, chain.next);
                pvs_vq_give(&vq, chain.id, chain.next, 0);
            }
            pvs_vq_publish(&vq);
            CHECK(pvs_vq_wants_call(&vq));
            CHECK(!pvs_vq_wants_call(&vq)); /* nothing new since */
            CHECK_EQ(pvd_call_arm(guest, 1), 1);
        }
        vq_tear_down();
    }
}

/* ---- kicks ---- */

TEST(packed_arm_asks_for_a_kick_at_the_next_chain)
{
    for (uint32_t num = 1; num <= SIZES; num++) {
        vq_set_up(PACKED, num);
        for (uint32_t k = 0; k < 2 * num; k++) {
            attach(num, position(num, k));
            CHECK(!pvs_vq_kick_arm(&vq, vq.next_avail));
            CHECK_EQ(we_want().off_wrap, position(num, k));
            CHECK_EQ(we_want().flags, PVD_EVENT_DESC);
            pvs_vq_kick_suppress(&vq);
            CHECK_EQ(we_want().flags, PVD_EVENT_DISABLE);
        }
        vq_tear_down();
    }
}

TEST(packed_arm_without_event_idx_asks_for_all_kicks)
{
    vq_set_up(NO_EVENT_IDX, VQ_NUM);
    pvs_vq_kick_suppress(&vq);
    CHECK_EQ(we_want().flags, PVD_EVENT_DISABLE);
    CHECK(!pvs_vq_kick_arm(&vq, vq.next_avail));
    CHECK_EQ(we_want().flags, PVD_EVENT_ENABLE);
    CHECK_EQ(we_want().off_wrap, 0); /* not ours to write without the feature */
    vq_tear_down();
}

TEST(packed_arm_sees_what_came_in_the_meantime)
{
    uint8_t frame[60] = { 0 };
    for (uint32_t num = 1; num <= SIZES; num++) {
        vq_set_up(PACKED, num);
        for (uint32_t i = 0; i < 3 * num; i++) {
            CHECK(!pvs_vq_kick_arm(&vq, vq.next_avail)); /* what lies there is from the last round */
            CHECK_EQ(pvd_tx(guest, 0, NULL, frame, sizeof frame, NULL), 0);
            CHECK_EQ(pvd_kick(guest, 1), 1);
            pvs_vq_kick_suppress(&vq);
            CHECK(pvs_vq_kick_arm(&vq, vq.next_avail)); /* made available before: no kick comes for it */
            CHECK_EQ(pvd_kick(guest, 1), 0);
            CHECK(pvs_vq_look(&vq, vq.next_avail, false, seg, PVS_MAX_SEGS, &chain, &broken));
            pvs_vq_take(&vq, chain.next);
            pvs_vq_give(&vq, chain.id, chain.next, 0);
            pvs_vq_publish(&vq);
            CHECK_EQ(pvd_tx_reap(guest, 0), 1);
        }
        vq_tear_down();
    }
}

TEST(packed_suppressed_driver_does_not_kick)
{
    uint8_t frame[60] = { 0 };
    vq_set_up(PACKED, VQ_NUM);
    pvs_vq_kick_suppress(&vq);
    for (int i = 0; i < VQ_NUM; i++) {
        CHECK_EQ(pvd_tx(guest, 0, NULL, frame, sizeof frame, NULL), 0);
        CHECK_EQ(pvd_kick(guest, 1), 0);
    }
    vq_tear_down();
}
