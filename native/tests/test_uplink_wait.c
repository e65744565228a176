/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_uplink_wait.c - frames that wait: for an uplink that is full, and those of an uplink for a guest that is. None is
 * lost within the bound, and their order is kept. On sockets in the place of the kernel's descriptors (uplink_lab.h).
 *
 * Ports 0 and 1 are guests, then comes an uplink. It is filled by leaving its wire alone.
 */
#include <string.h>

#include "offload_lab.h"
#include "uplink_lab.h"

enum { UP, BOUND_MS = 10, ROUNDS_A_MS = 1000000 / LAB_STEP_NS, ROOM = 16384 };

static const enum pvs_uplink_kind kinds[] = { PVS_TAP, PVS_PACKET, PVS_FILE };
static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME], got[PVS_MAX_FRAME];

static void
backpressure(struct pvs_port_conf *conf, uint32_t ms)
{
    conf->backpressure_ms = ms;
    lab_publish(&lab);
}

/* ---- frames that wait for an uplink ---- */

/* Fill the uplink with frames 0, 1, ... from guest 0; how many went in. What waits is left in the guest's ring. */
static uint32_t
fill_up(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        lab_send_up(&lab, 0, i);
    lab_poll(&lab, 10);
    int in = lab_taken_from(&lab, 0);
    CHECK(in > 0 && (uint32_t)in < n);
    CHECK_EQ(lab_sent_up(&lab), in);
    return (uint32_t)in;
}

TEST_EACH_RING(frames_wait_for_a_full_uplink_and_none_is_lost)
{
    for (uint32_t workers = 1; workers <= 2; workers++) {
        for (int k = 0; k < 3; k++) {
            lab_uplink_open(&lab, workers, kinds[k], 0);
            lab_uplink_room(&lab, UP, ROOM);
            backpressure(&lab.uplink[UP].conf, BOUND_MS);
            uint32_t in = fill_up(200), next = 0;
            while (next < 200) {
                lab_poll(&lab, (BOUND_MS - 1) * ROUNDS_A_MS);
                uint32_t burst = in - next; /* all of it, so that the next frame finds room in any case */
                for (uint32_t i = 0; i < burst; i++)
                    lab_expect_up(&lab, 0, next++);
                lab_wire_expect_nothing(&lab, UP);
                lab_poll(&lab, 5);
                in += (uint32_t)lab_taken_from(&lab, 0);
                CHECK(next == 200 || in > next);
            }
            CHECK_EQ(lab_sum(lab_uplink_counters(&lab, UP).tx_drop), 0);
            CHECK_EQ(lab_sent_up(&lab), 200);
            lab_uplink_close(&lab);
        }
    }
}

TEST_EACH_RING(after_the_bound_frames_for_an_uplink_are_dropped_until_one_goes)
{
    for (int k = 0; k < 3; k++) {
        lab_uplink_open(&lab, 1, kinds[k], 0);
        lab_uplink_room(&lab, UP, ROOM);
        backpressure(&lab.uplink[UP].conf, BOUND_MS);
        uint32_t in = fill_up(100);
        lab_poll(&lab, (BOUND_MS - 3) * ROUNDS_A_MS);
        CHECK_EQ(lab_taken_from(&lab, 0), 0);
        lab_poll(&lab, 4 * ROUNDS_A_MS);
        CHECK_EQ(lab_taken_from(&lab, 0), 100 - in);
        CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_uplink_tx_full), 100 - in);
        lab_send_up(&lab, 0, 100);
        lab_poll(&lab, 2);
        CHECK_EQ(lab_taken_from(&lab, 0), 1); /* it is not waited for again */
        for (uint32_t i = 0; i < in; i++)
            lab_expect_up(&lab, 0, i);
        lab_wire_expect_nothing(&lab, UP);
        uint64_t before = lab_sent_up(&lab);
        for (uint32_t i = 0; i < 100; i++)
            lab_send_up(&lab, 0, i);
        lab_poll(&lab, 10); /* one went: now they wait */
        CHECK_EQ(lab_taken_from(&lab, 0), lab_sent_up(&lab) - before);
        CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_uplink_tx_full), 100 - in + 1);
        lab_close(&lab);
    }
}

TEST_EACH_RING(others_go_on_while_frames_wait_for_an_uplink)
{
    lab_uplink_open(&lab, 2, PVS_PACKET, 0);
    lab_uplink_room(&lab, UP, ROOM);
    backpressure(&lab.uplink[UP].conf, BOUND_MS);
    lab_fill(&lab, 0, 8);
    lab_fill(&lab, 1, 8);
    uint32_t in = fill_up(100);
    lab_frame(frame, LAB_MAC(0), LAB_MAC(1), 60, 1); /* another sender */
    lab_send(&lab, 1, frame, 60);
    lab_poll(&lab, 2);
    lab_expect(&lab, 0, frame, 60);
    lab_send_down(&lab, 1, 5); /* the other direction */
    lab_poll(&lab, 2);
    lab_expect_down(&lab, 1, 5);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(1), 60, 2); /* a flood doesn't wait */
    lab_send(&lab, 1, frame, 60);
    lab_poll(&lab, 2);
    lab_expect(&lab, 0, frame, 60);
    CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_uplink_tx_full), 1);
    lab_uplink_stop(&lab, UP, 0); /* and its stop frees who waits */
    lab_poll(&lab, 5);
    CHECK_EQ(lab_taken_from(&lab, 0), 100 - in);
    CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_link_down), 100 - in);
    lab_uplink_close(&lab);
}

/* What a burst has already put together for a full uplink is dropped and
 * counted before one of its frames waits. */
TEST_EACH_RING(floods_before_a_frame_that_waits_are_counted)
{
    for (int k = 0; k < 3; k++) {
        lab_uplink_open(&lab, 1, kinds[k], 0);
        lab_uplink_room(&lab, UP, ROOM);
        backpressure(&lab.uplink[UP].conf, BOUND_MS);
        uint32_t in = fill_up(100);
        for (uint32_t i = 0; i < 3; i++) {
            lab_frame(frame, LAB_BROADCAST, LAB_MAC(1), 60, i);
            CHECK_EQ(pvd_tx(lab.port[1].guest, 0, NULL, frame, 60, NULL), 0);
        }
        lab_send_up(&lab, 1, 200);
        lab_poll(&lab, 3);
        CHECK_EQ(lab_taken_from(&lab, 1), 3);
        CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_uplink_tx_full), 3);
        for (uint32_t i = 0; i < in; i++)
            lab_expect_up(&lab, 0, i);
        lab_poll(&lab, 3);
        CHECK_EQ(lab_taken_from(&lab, 1) + lab_taken_from(&lab, 0), lab_sent_up(&lab) - in);
        CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_uplink_tx_full), 3);
        lab_uplink_close(&lab);
    }
}

/* Of a frame that is cut, each piece goes once, in order, however often it has
 * to wait in between. */
TEST_EACH_RING(a_frame_can_wait_for_an_uplink_between_its_pieces)
{
    enum { HOST_USO = 56, PIECES = 16 };
    struct recipe recipe = { .udp = true, .payload = PIECES * 1000 };
    struct virtio_net_hdr header;
    static struct cooked c;

    for (int k = 0; k < 3; k++) {
        lab_uplink_open(&lab, 2, kinds[k], 1 | 1ULL << HOST_USO);
        lab_uplink_stop(&lab, UP, 0);
        lab.uplink[UP].uso = false;
        lab_uplink_start(&lab, UP, 0);
        lab_uplink_room(&lab, UP, 4096);
        backpressure(&lab.uplink[UP].conf, BOUND_MS);
        cook(&recipe, PSEUDO, &c);
        pvs_mac_store(c.bytes, LAB_FAR(UP));
        header = header_for(&recipe, &c, 1000);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, &header, c.bytes, c.len, NULL), 0);
        pvd_kick(lab.port[0].guest, 1);
        lab_poll(&lab, 3);
        CHECK_EQ(lab_taken_from(&lab, 0), 0);
        CHECK(lab_sent_up(&lab) > 0 && lab_sent_up(&lab) < PIECES / 2);
        for (uint32_t i = 0; i < PIECES; i++) {
            struct recipe segment = segment_recipe(&recipe, 1000, i, PIECES);
            cook(&segment, kinds[k] == PVS_FILE ? FINISHED : PSEUDO, &c);
            pvs_mac_store(c.bytes, LAB_FAR(UP));
            CHECK_EQ(lab_wire_receive(&lab, UP, &header, got, sizeof got), c.len);
            CHECK(memcmp(got, c.bytes, c.len) == 0);
            lab_poll(&lab, (BOUND_MS - 1) * ROUNDS_A_MS);
        }
        lab_wire_expect_nothing(&lab, UP);
        CHECK_EQ(lab_taken_from(&lab, 0), 1);
        CHECK_EQ(lab_sent_up(&lab), PIECES);
        CHECK_EQ(lab_sum(lab_uplink_counters(&lab, UP).tx_drop), 0);
        lab_uplink_close(&lab);
    }
}

/* ---- frames of an uplink that wait for a guest ---- */

TEST_EACH_RING(frames_of_an_uplink_wait_for_a_full_guest)
{
    for (uint32_t workers = 1; workers <= 2; workers++) {
        for (int k = 0; k < 3; k++) {
            lab_uplink_open(&lab, workers, kinds[k], 0);
            backpressure(&lab.port[1].conf, BOUND_MS);
            for (uint32_t i = 0; i < 100; i++)
                lab_send_down(&lab, 1, i);
            for (uint32_t i = 0; i < 100; i++) {
                lab_poll(&lab, (BOUND_MS - 1) * ROUNDS_A_MS);
                lab_fill(&lab, 1, 1);
                CHECK(pvd_kick(lab.port[1].guest, 0) >= 0);
                lab_poll(&lab, 3);
                lab_expect_down(&lab, 1, i);
                lab_expect_nothing(&lab, 1);
            }
            CHECK_EQ(lab_sum(lab_counters(&lab, 1).tx_drop), 0);
            CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_rx_packets], 100);
            lab_uplink_close(&lab);
        }
    }
}

TEST_EACH_RING(frames_of_an_uplink_do_not_wait_beyond_the_bound)
{
    lab_uplink_open(&lab, 1, PVS_PACKET, 0);
    backpressure(&lab.port[1].conf, BOUND_MS);
    for (uint32_t i = 0; i < 50; i++)
        lab_send_down(&lab, 1, i);
    lab_poll(&lab, (BOUND_MS - 2) * ROUNDS_A_MS);
    CHECK_EQ(lab_sum(lab_counters(&lab, 1).tx_drop), 0);
    lab_poll(&lab, 4 * ROUNDS_A_MS);
    CHECK_EQ(lab_counters(&lab, 1).tx_drop[PVS_DROP_guest_rx_full], 50);
    CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_rx_packets], 50);
    lab_uplink_close(&lab);
}

/* Frames that come while others wait make no edge that is still there when
 * those have gone. */
TEST_EACH_RING(what_comes_while_frames_wait_is_not_forgotten)
{
    for (uint32_t workers = 1; workers <= 2; workers++) {
        for (int k = 0; k < 3; k++) {
            lab_uplink_open(&lab, workers, kinds[k], 0);
            backpressure(&lab.port[1].conf, BOUND_MS);
            lab_send_down(&lab, 1, 0);
            lab_poll(&lab, 3);
            lab_send_down(&lab, 1, 1);
            lab_poll(&lab, 3);
            lab_fill(&lab, 1, 8);
            CHECK(pvd_kick(lab.port[1].guest, 0) >= 0);
            lab_poll(&lab, 5);
            lab_expect_down(&lab, 1, 0);
            lab_expect_down(&lab, 1, 1);
            lab_uplink_close(&lab);
        }
    }
}

/* The same when a turn's budget ends before the burst does: copies of 4,000
 * bytes for eight guests spend it. */
TEST_EACH_RING(what_comes_while_a_burst_is_forwarded_is_not_forgotten)
{
    enum { LEN = 4000, N = 24 };
    for (int k = 0; k < 3; k++) {
        struct lab_conf conf = lab_conf_default(LAB_PORTS);
        lab_open(&lab, &conf);
        CHECK_EQ(lab_uplink_add(&lab, kinds[k], 1), UP);
        lab_know_all(&lab);
        for (uint32_t i = 0; i < LAB_PORTS; i++)
            lab_fill(&lab, i, 128);
        for (uint32_t i = 0; i < N; i++) {
            lab_frame(frame, LAB_BROADCAST, LAB_FAR(UP), LEN, i);
            lab_wire_send(&lab, UP, NULL, frame, LEN);
        }
        lab_poll(&lab, 1);
        CHECK(lab_uplink_counters(&lab, UP).value[PVS_C_rx_packets] < N); /* it ended early */
        lab_send_down(&lab, 1, 1);
        lab_poll(&lab, 5);
        CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_rx_packets], N + 1);
        lab_uplink_close(&lab);
    }
}

TEST_EACH_RING(a_queue_that_is_stopped_counts_what_waited_in_it)
{
    for (int k = 0; k < 3; k++) {
        lab_uplink_open(&lab, 2, kinds[k], 0);
        backpressure(&lab.port[1].conf, 10 * BOUND_MS);
        lab_fill(&lab, 1, 3);
        for (uint32_t i = 0; i < 20; i++)
            lab_send_down(&lab, 1, i);
        lab_poll(&lab, 5);
        for (uint32_t i = 0; i < 3; i++)
            lab_expect_down(&lab, 1, i);
        lab_uplink_stop(&lab, UP, 0);
        struct lab_counters at = lab_uplink_counters(&lab, UP);
        CHECK_EQ(at.value[PVS_C_rx_packets], 20);
        CHECK_EQ(at.rx_drop[PVS_DROP_link_down], 17);
        CHECK_EQ(lab_sum(at.rx_drop), 17);
        lab_fill(&lab, 1, 8);
        lab_uplink_start(&lab, UP, 0);
        lab_send_down(&lab, 1, 50);
        lab_poll(&lab, 5);
        lab_expect_down(&lab, 1, 50);
        lab_expect_nothing(&lab, 1);
        lab_uplink_close(&lab);
    }
}
