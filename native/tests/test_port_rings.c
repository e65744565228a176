/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_port_rings.c - frames through rings of each format: sizes that are no power of two, rings that stop and go on
 * anywhere, what IN_ORDER changes, and buffers that don't suffice. One worker, driven step by step.
 */
#include <string.h>

#include "lab.h"

static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME];

/* Frames of many lengths from guest 0 to guest 1, several at a time, the rings several times round. */
static void
go_round(uint32_t num, uint64_t features, const struct pvd_layout *layout)
{
    struct lab_conf conf = lab_conf_default(2);
    uint32_t n_desc = (layout->flags & PVD_LAYOUT_INDIRECT) != 0 ? 1 : layout->n_cuts + 1, frames = 3 * num + 10;

    if (n_desc > num || layout->n_cuts + 1 > num)
        return; /* a chain may not be longer than the ring, wherever it lies */
    conf.guest.queue_size = num;
    conf.guest.features = features | lab_ring_features();
    lab_open(&lab, &conf);
    for (uint32_t sent = 0, got = 0; got < frames;) {
        uint32_t first = sent;
        CHECK(pvd_tx_reap(lab.port[0].guest, 0) >= 0);
        CHECK(pvd_rx_fill(lab.port[1].guest, 0, num, layout) >= 0);
        for (; sent < frames && sent - first < num / n_desc; sent++) {
            uint32_t len = 60 + sent * 37 % 1400;
            lab_frame(frame, LAB_MAC(1), LAB_MAC(0), len, sent);
            CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, len, layout), 0);
        }
        pvd_kick(lab.port[0].guest, 1);
        lab_poll(&lab, 2 + (int)num / 64);
        for (; got < sent; got++) {
            lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60 + got * 37 % 1400, got);
            lab_expect(&lab, 1, frame, 60 + got * 37 % 1400);
        }
    }
    CHECK(pvd_tx_reap(lab.port[0].guest, 0) >= 0);
    CHECK_EQ(lab_driver(&lab, 0, 1).in_flight, 0);
    lab_check_sums(&lab);
    lab_close(&lab);
}

static const uint64_t MODERN = 1ULL << PVD_F_VERSION_1 | 1ULL << PVD_F_INDIRECT_DESC;

TEST_PACKED_RINGS(packed_rings_of_any_size_carry_frames)
{
    static const uint32_t sizes[] = { 1, 2, 3, 4, 5, 7, 63, 64, 65, 255, 257, 1000 };
    static const struct pvd_layout layouts[] = {
        { 0 },
        { .n_cuts = 1, .cuts = { 12 } },
        { .n_cuts = 4, .cuts = { 5, 12, 26, 40 } },
        { .n_cuts = 2, .cuts = { 12, 30 }, .flags = PVD_LAYOUT_INDIRECT },
        { .n_cuts = 1, .cuts = { 30 }, .flags = PVD_LAYOUT_SHUFFLE },
    };
    for (uint32_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (uint32_t k = 0; k < sizeof layouts / sizeof layouts[0]; k++) {
            go_round(sizes[i], MODERN | 1ULL << PVD_F_EVENT_IDX | 1ULL << PVD_F_MRG_RXBUF, &layouts[k]);
            go_round(sizes[i], MODERN, &layouts[k]);
        }
    }
}

TEST_PACKED_RINGS(packed_ring_of_the_largest_size_goes_round)
{
    struct lab_conf conf = lab_conf_default(2);
    enum { NUM = 32768, BATCH = 4096 };

    conf.guest.queue_size = NUM;
    conf.guest.tx_buf_size = 128;
    conf.guest.rx_buf_size = 128;
    lab_open(&lab, &conf);
    lab_fill(&lab, 1, NUM);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 7);
    for (uint32_t i = 0; i < 2 * NUM / BATCH + 1; i++) {
        for (uint32_t k = 0; k < BATCH; k++)
            CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, 60, NULL), 0);
        pvd_kick(lab.port[0].guest, 1);
        lab_poll(&lab, BATCH / 64 + 2);
        for (uint32_t k = 0; k < BATCH; k++)
            lab_expect(&lab, 1, frame, 60);
        CHECK_EQ(pvd_tx_reap(lab.port[0].guest, 0), BATCH);
        lab_fill(&lab, 1, NUM);
    }
    CHECK_EQ(lab_used(&lab, 0, 1), lab_base(&lab, 2 * NUM + BATCH));
    lab_check_sums(&lab);
    lab_close(&lab);
}

/* ---- GET_VRING_BASE and SET_VRING_BASE ---- */

/* Stop both rings that a frame goes by at every place, in both rounds, with frames in them, and go on. */
TEST_EACH_RING(rings_go_on_wherever_they_were_stopped)
{
    uint32_t num = test_rings == TEST_PACKED || test_rings == TEST_PACKED_IN_ORDER ? 7 : 8;
    struct lab_conf conf = lab_conf_default(2);

    conf.guest.queue_size = num;
    lab_open(&lab, &conf);
    lab_fill(&lab, 1, num);
    for (uint32_t i = 0; i < 5 * num; i++) {
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 100, i);
        lab_send(&lab, 0, frame, 100);
        lab_poll(&lab, 2);
        if (i % 2 != 0)
            lab_expect(&lab, 1, frame, 100); /* otherwise it is taken only after the restart */
        CHECK_EQ(lab_ring_stop(&lab, 0, 1), lab_base(&lab, i + 1));
        CHECK_EQ(lab_ring_stop(&lab, 1, 0), lab_base(&lab, i + 1));
        CHECK_EQ(lab_used(&lab, 0, 1), lab_base(&lab, i + 1)); /* the guest's memory says the same */
        CHECK_EQ(lab_used(&lab, 1, 0), lab_base(&lab, i + 1));
        if (lab_packed(&lab) && i % 3 == 0) /* virtio-user 22.11 leaves the used half out */
            lab.port[0].base[1] &= 0xffff;
        lab_ring_start(&lab, 0, 1);
        lab_ring_start(&lab, 1, 0);
        lab_poll(&lab, 3);
        if (i % 2 == 0)
            lab_expect(&lab, 1, frame, 100);
        lab_expect_nothing(&lab, 1);
        lab_fill(&lab, 1, 1);
    }
    CHECK(pvd_tx_reap(lab.port[0].guest, 0) >= 0);
    CHECK_EQ(lab_driver(&lab, 0, 1).in_flight, 0);
    lab_check_sums(&lab);
    lab_close(&lab);
}

/* ---- IN_ORDER ---- */

/* What the device wrote as used element number `i`. False: nothing. */
static bool
element(uint32_t port, uint32_t ring, uint16_t i, uint32_t *id, uint32_t *len)
{
    pvd_guest *guest = lab.port[port].guest;
    struct pvd_packed_desc d;

    if (!lab_packed(&lab)) {
        CHECK_EQ(pvd_used_entry(guest, ring, i, id, len), 0);
        return *id != 0 || *len != 0; /* of a ring that was zeros, and chains that begin behind descriptor 0 */
    }
    CHECK_EQ(pvd_packed_get(guest, ring, i, &d), 0);
    *id = d.id;
    *len = d.len;
    return (d.flags & PVD_DESC_AVAIL) != 0 && (d.flags & PVD_DESC_USED) != 0; /* in the first round */
}

TEST_EACH_RING(with_in_order_a_transmit_burst_is_given_back_by_one_element)
{
    enum { FRAMES = 40 };
    struct lab_conf conf = lab_conf_default(2);
    bool in_order = test_rings == TEST_SPLIT_IN_ORDER || test_rings == TEST_PACKED_IN_ORDER;
    uint32_t id, len;

    lab_open(&lab, &conf);
    lab_fill(&lab, 1, 256);
    for (uint32_t i = 0; i < FRAMES; i++) {
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60 + i, i);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, 60 + i, NULL), 0);
    }
    pvd_kick(lab.port[0].guest, 1);
    lab_poll(&lab, 1);
    CHECK(element(0, 1, 0, &id, &len) == in_order || lab_packed(&lab));
    CHECK_EQ(id, in_order ? FRAMES - 1 : 0); /* the last one's */
    CHECK_EQ(len, 0);
    for (uint16_t i = 1; i < FRAMES; i++) {
        CHECK(element(0, 1, i, &id, &len) != in_order);
        CHECK(in_order || id == i);
    }
    CHECK_EQ(lab_used(&lab, 0, 1), lab_base(&lab, FRAMES));
    CHECK_EQ(pvd_tx_reap(lab.port[0].guest, 0), FRAMES);
    for (uint32_t i = 0; i < FRAMES; i++) {
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60 + i, i);
        lab_expect(&lab, 1, frame, 60 + i);
    }
    lab_check_sums(&lab);
    lab_close(&lab);
}

TEST_EACH_RING(every_receive_buffer_has_its_own_element_and_length)
{
    struct lab_conf conf = lab_conf_default(2);
    uint32_t id, len, at = 0;

    conf.guest.rx_buf_size = 500;
    lab_open(&lab, &conf);
    lab_fill(&lab, 1, 256);
    for (uint32_t i = 0; i < 10; i++) {
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 1200, i);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, 1200, NULL), 0);
    }
    pvd_kick(lab.port[0].guest, 1);
    lab_poll(&lab, 2);
    for (uint32_t i = 0; i < 10; i++) {
        static const uint32_t lens[] = { 500, 500, 212 };
        for (uint32_t k = 0; k < 3; k++, at++) {
            CHECK(element(1, 0, (uint16_t)at, &id, &len));
            CHECK_EQ(id, at);
            CHECK_EQ(len, lens[k]);
        }
    }
    for (uint32_t i = 0; i < 10; i++) {
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 1200, i);
        lab_expect(&lab, 1, frame, 1200);
    }
    lab_check_sums(&lab);
    lab_close(&lab);
}

/* ---- room ---- */

/* A receiver that lacks one buffer gets nothing, keeps what it posted, and gets the frame when there are enough. */
TEST_EACH_RING(too_few_buffers_rewind_over_the_end_of_the_ring)
{
    enum { NUM = 8, BUFFERS = 4 };
    struct lab_conf conf = lab_conf_default(2);
    uint32_t done = 0;

    conf.guest.queue_size = NUM;
    conf.guest.rx_buf_size = 400;
    lab_open(&lab, &conf);
    lab_learn_all(&lab);
    for (uint32_t i = 0; i < 3 * NUM; i++) {
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), BUFFERS * 400 - 12, i);
        lab_fill(&lab, 1, BUFFERS - 1);
        lab_send(&lab, 0, frame, BUFFERS * 400 - 12);
        lab_poll(&lab, 2);
        CHECK_EQ(lab_counters(&lab, 1).tx_drop[PVS_DROP_guest_rx_full], i + 1 + 1 /* of lab_learn_all */);
        CHECK_EQ(lab_used(&lab, 1, 0), lab_base(&lab, done));
        lab_expect_nothing(&lab, 1);
        lab_fill(&lab, 1, 1);
        lab_send(&lab, 0, frame, BUFFERS * 400 - 12);
        lab_poll(&lab, 2);
        lab_expect(&lab, 1, frame, BUFFERS * 400 - 12);
        done += BUFFERS;
        CHECK_EQ(lab_driver(&lab, 1, 0).in_flight, 0);
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, i); /* so that it begins elsewhere next time */
        lab_fill(&lab, 1, 1);
        lab_send(&lab, 0, frame, 60);
        lab_poll(&lab, 2);
        lab_expect(&lab, 1, frame, 60);
        done++;
    }
    lab_check_sums(&lab);
    lab_close(&lab);
}

/* In one burst: what a frame without room has looked at is there for the next one. */
TEST_EACH_RING(buffers_that_do_not_suffice_for_one_frame_are_left_to_the_next)
{
    struct lab_conf conf = lab_conf_default(2);

    conf.guest.rx_buf_size = 400;
    lab_open(&lab, &conf);
    lab_fill(&lab, 1, 3);
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t len = i % 2 == 0 ? 1514 : 300 + i;
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), len, i);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, len, NULL), 0);
    }
    pvd_kick(lab.port[0].guest, 1);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, 1).tx_drop[PVS_DROP_guest_rx_full], 2);
    for (uint32_t i = 1; i < 4; i += 2) {
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 300 + i, i);
        lab_expect(&lab, 1, frame, 300 + i);
    }
    CHECK_EQ(lab_used(&lab, 1, 0), lab_base(&lab, 2));
    lab_check_sums(&lab);
    lab_close(&lab);
}
