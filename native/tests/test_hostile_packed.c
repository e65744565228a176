/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_hostile_packed.c - what a guest or front end can do wrong with packed rings only. What both formats have in common
 * is in test_hostile.c.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "hostile_lab.h"

enum { N = PVD_DESC_NEXT, W = PVD_DESC_WRITE, I = PVD_DESC_INDIRECT, WRAP = 0x8000 };

static uint8_t frame[2048];

static void
post(uint32_t ring, const struct pvd_packed_desc *desc, uint32_t n)
{
    CHECK_EQ(pvd_packed_post(lab.port[BAD].guest, ring, desc, n), 0);
}

/* ---- chains ---- */

static void
broken_tx(const struct pvd_packed_desc *desc, uint32_t n, enum pvs_broken why)
{
    post(1, desc, n);
    hostile_kick(1);
    hostile_expect_broken(why);
    hostile_heal_and_close();
}

static void
broken_rx(const struct pvd_packed_desc *desc, uint32_t n, bool flood, enum pvs_broken why)
{
    post(0, desc, n);
    hostile_send_at_it(flood, why);
    hostile_heal_and_close();
}

TEST_PACKED_RINGS(packed_broken_tx_id_range)
{
    static const uint16_t ids[] = { HOSTILE_NUM, 0x7fff, 0xffff };
    for (int i = 0; i < 3; i++) {
        hostile_open();
        broken_tx(&(struct pvd_packed_desc){ hostile_scratch(), 100, ids[i], 0 }, 1, PVS_BROKEN_ID_RANGE);
    }
}

TEST_PACKED_RINGS(packed_broken_rx_id_range)
{
    for (int flood = 0; flood < 2; flood++) {
        hostile_open();
        hostile_empty_rings();
        broken_rx(&(struct pvd_packed_desc){ hostile_scratch(), 2000, HOSTILE_NUM, W }, 1, flood, PVS_BROKEN_ID_RANGE);
    }
}

TEST_PACKED_RINGS(packed_frames_before_a_bad_id_are_delivered)
{
    hostile_open();
    lab_frame(frame, LAB_MAC(0), LAB_MAC(BAD), 77, 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(pvd_tx(lab.port[BAD].guest, 0, NULL, frame, 77, NULL), 0);
    post(1, &(struct pvd_packed_desc){ hostile_scratch(), 100, HOSTILE_NUM, 0 }, 1);
    hostile_kick(1);
    for (int i = 0; i < 3; i++)
        lab_expect(&lab, 0, frame, 77);
    CHECK_EQ(pvd_tx_reap(lab.port[BAD].guest, 0), 3 + 1 /* of lab_learn_all */);
    hostile_expect_broken(PVS_BROKEN_ID_RANGE);
    hostile_heal_and_close();
}

/* A chain that takes the whole ring and is to go on: it would be its own continuation. */
TEST_PACKED_RINGS(packed_broken_by_a_chain_longer_than_the_ring)
{
    struct pvd_packed_desc desc[HOSTILE_NUM];
    for (uint16_t ring = 0; ring < 2; ring++) {
        for (uint32_t len = 0; len < 2; len++) {
            hostile_open();
            hostile_empty_rings();
            for (uint32_t i = 0; i < HOSTILE_NUM; i++)
                desc[i] = (struct pvd_packed_desc){ hostile_scratch(), len, 0, N | (ring == 0 ? W : 0) };
            if (ring == 0)
                broken_rx(desc, HOSTILE_NUM, false, PVS_BROKEN_CHAIN_LONG);
            else
                broken_tx(desc, HOSTILE_NUM, PVS_BROKEN_CHAIN_LONG);
        }
    }
}

TEST_PACKED_RINGS(packed_broken_by_an_indirect_table_in_a_list)
{
    for (uint16_t ring = 0; ring < 2; ring++) {
        hostile_open();
        hostile_empty_rings();
        uint16_t w = ring == 0 ? W : 0;
        struct pvd_packed_desc table = { hostile_scratch() + 256, 1000, 0, w };
        memcpy(pvd_ptr(lab.port[BAD].guest, hostile_scratch(), sizeof table), &table, sizeof table);
        struct pvd_packed_desc desc[] = { { hostile_scratch() + 4096, 100, 0, N | w },
                                          { hostile_scratch(), 16, 0, I } };
        if (ring == 0)
            broken_rx(desc, 2, false, PVS_BROKEN_INDIRECT_NEXT);
        else
            broken_tx(desc, 2, PVS_BROKEN_INDIRECT_NEXT);
    }
}

/* ---- where a ring is said to lie and to stand ---- */

TEST_PACKED_RINGS(packed_start_is_refused_with_a_base_beyond_the_ring)
{
    static const uint32_t bases[] = { HOSTILE_NUM, HOSTILE_NUM | WRAP, 0x7fff, 0xffff, 0x80000000 | HOSTILE_NUM };
    hostile_open();
    lab_ring_stop(&lab, BAD, 1);
    for (uint32_t i = 0; i < sizeof bases / sizeof bases[0]; i++) {
        struct pvs_ring_conf conf = lab_ring_conf(&lab, BAD, 1);
        conf.base = bases[i];
        CHECK_EQ(pvs_ring_start(lab.port[BAD].port, 1, &conf), -EINVAL);
    }
    lab_ring_start(&lab, BAD, 1);
    hostile_heal_and_close();
}

TEST_PACKED_RINGS(packed_start_is_refused_where_an_area_is_misaligned_or_not_mapped)
{
    hostile_open();
    lab_ring_stop(&lab, BAD, 1);
    struct pvs_ring_conf good = lab_ring_conf(&lab, BAD, 1);
    uint64_t *area[] = { &good.desc_uva, &good.avail_uva, &good.used_uva };
    for (int i = 0; i < 3; i++) {
        uint64_t right = *area[i];
        *area[i] = right + 2;
        CHECK_EQ(pvs_ring_start(lab.port[BAD].port, 1, &good), -EINVAL);
        *area[i] = 0x1000;
        CHECK_EQ(pvs_ring_start(lab.port[BAD].port, 1, &good), -EFAULT);
        *area[i] = UINT64_MAX - 15;
        CHECK_EQ(pvs_ring_start(lab.port[BAD].port, 1, &good), -EFAULT);
        *area[i] = right;
    }
    good.num = 32768; /* its beginning is mapped, the rest is not */
    CHECK_EQ(pvs_ring_start(lab.port[BAD].port, 1, &good), -EFAULT);
    hostile_good_ports_go_on();
    hostile_heal_and_close();
}

/* A front end that says where the ring stood long ago: whatever lies there, nobody else has to do with it. */
TEST_PACKED_RINGS(packed_stale_bases_harm_nobody)
{
    hostile_open();
    for (uint32_t base = 0; base < 2 * HOSTILE_NUM; base++) {
        lab_detach(&lab, BAD);
        for (uint32_t ring = 0; ring < 2; ring++)
            lab.port[BAD].base[ring] = base / 2 | (base % 2 != 0 ? WRAP : 0);
        lab_attach(&lab, BAD);
        lab_frame(frame, LAB_MAC(BAD), LAB_MAC(0), 300, base);
        lab_send(&lab, 0, frame, 300);
        hostile_kick(1);
        if (base % 16 == 0)
            hostile_good_ports_go_on();
    }
    hostile_heal_and_close();
}

/* ---- event areas ---- */

TEST_PACKED_RINGS(packed_nonsense_in_the_event_area_is_that_guests_alone)
{
    hostile_open();
    for (uint32_t i = 0; i < 200; i++) {
        struct pvd_event event = { .off_wrap = (uint16_t)(i * 2477), .flags = (uint16_t)(i % 5 == 4 ? 0xffff : i % 5) };
        for (uint32_t ring = 0; ring < 2; ring++) /* the other area is ours, but nothing hinders a guest */
            for (int device = 0; device < 2; device++)
                CHECK_EQ(pvd_event_set(lab.port[BAD].guest, ring, device, &event), 0);
        lab_frame(frame, LAB_MAC(BAD), LAB_MAC(0), 60, i);
        lab_send(&lab, 0, frame, 60);
        lab_poll(&lab, 1);
        lab_expect(&lab, BAD, frame, 60);
        lab_frame(frame, LAB_MAC(0), LAB_MAC(BAD), 61, i);
        CHECK(pvd_tx_reap(lab.port[BAD].guest, 0) >= 0);
        CHECK_EQ(pvd_tx(lab.port[BAD].guest, 0, NULL, frame, 61, NULL), 0);
        hostile_kick(1);
        lab_expect(&lab, 0, frame, 61);
        lab_fill(&lab, 0, 1);
        lab_fill(&lab, BAD, 1);
    }
    CHECK_EQ(pvs_port_broken(lab.port[BAD].port), 0);
    hostile_good_ports_go_on();
    lab_close(&lab);
}

/* ---- memory that goes away ---- */

/* Lost memory reads as zeros, which are used descriptors in one round and nothing in the other. */
TEST_PACKED_RINGS(packed_truncated_in_either_round)
{
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t ring = 0; ring < 2; ring++) {
            hostile_open();
            for (uint32_t i = 0; i < round * HOSTILE_NUM; i++) {
                lab_fill(&lab, BAD, 1);
                lab_fill(&lab, 0, 1);
                lab_frame(frame, ring == 0 ? LAB_MAC(BAD) : LAB_MAC(0), ring == 0 ? LAB_MAC(0) : LAB_MAC(BAD), 60, i);
                lab_send(&lab, ring == 0 ? 0 : BAD, frame, 60);
                lab_poll(&lab, 1);
                lab_expect(&lab, ring == 0 ? BAD : 0, frame, 60);
            }
            CHECK_EQ((lab_used(&lab, BAD, ring) & WRAP) == 0, round == 1);
            CHECK_EQ(pvd_truncate_memory(lab.port[BAD].guest, 0, 0), 0);
            if (ring == 0) {
                lab_frame(frame, LAB_MAC(BAD), LAB_MAC(0), 500, 0);
                lab_send(&lab, 0, frame, 500);
            }
            hostile_kick(ring);
            CHECK_EQ(pvs_port_broken(lab.port[BAD].port), PVS_BROKEN_MEMORY_LOST);
            hostile_good_ports_go_on();
            lab_close(&lab);
        }
    }
}

/* ---- descriptors that change while they are read ---- */

static _Atomic bool storm_over;

/* Write anything at all into the bad port's rings, as fast as it goes. */
static void *
storm(void *guest)
{
    uint64_t seed = 1, scratch = hostile_scratch();

    while (!atomic_load_explicit(&storm_over, memory_order_relaxed)) {
        static const uint32_t lens[] = { 0, 1, 12, 60, 2000, 16, 48, UINT32_MAX };
        uint32_t what = lab_random(&seed, 16);
        struct pvd_packed_desc d = {
            .addr = what == 0 ? UINT64_MAX - 10 : scratch + lab_random(&seed, 65536),
            .len = lens[lab_random(&seed, what == 1 ? 8 : 5)],
            .id = (uint16_t)(what == 2 ? 0xffff : lab_random(&seed, HOSTILE_NUM)),
            .flags = (uint16_t)(lab_random(&seed, what == 3 ? 8 : 4) | PVD_DESC_AVAIL * lab_random(&seed, 2) |
                                PVD_DESC_USED * lab_random(&seed, 2)),
        };
        CHECK_EQ(pvd_packed_set(guest, lab_random(&seed, 2), lab_random(&seed, HOSTILE_NUM), &d), 0);
    }
    return NULL;
}

TEST_PACKED_RINGS(packed_descriptors_that_change_all_the_time_stop_nobody)
{
    uint64_t deadline = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL;
    uint32_t broken = 0;
    pthread_t thread;

    hostile_open();
    CHECK_EQ(pthread_create(&thread, NULL, storm, lab.port[BAD].guest), 0);
    for (uint32_t i = 0; i < 3000 || broken < 10; i++) {
        CHECK(lab_clock_ns() < deadline);
        lab_frame(frame, i % 2 == 0 ? LAB_MAC(BAD) : LAB_BROADCAST, LAB_MAC(0), 700, i);
        lab_send(&lab, 0, frame, 700);
        hostile_kick(1);
        for (uint32_t good = 0; good < 2; good++) {
            while (pvd_rx(lab.port[good].guest, 0, frame, sizeof frame, NULL) >= 0)
                ;
            CHECK_EQ(lab_driver(&lab, good, 0).errors, 0);
            lab_fill(&lab, good, 64);
        }
        if (pvs_port_broken(lab.port[BAD].port) != 0) {
            broken++;
            lab_detach(&lab, BAD);
            lab_attach(&lab, BAD);
        }
    }
    atomic_store_explicit(&storm_over, true, memory_order_relaxed);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    hostile_empty_rings();
    lab_learn_all(&lab);
    hostile_good_ports_go_on();
    hostile_heal_and_close();
}
