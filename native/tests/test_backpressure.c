/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_backpressure.c - what a full receiver does to its senders, step by step: known unicast waits where the receiving
 * port says so, for so long and no longer; all else is dropped and counted.
 *
 * Port 1 is the receiver, which has as many buffers as a test gives it; ports 0 and 2 send; port 3 has room.
 */
#include <errno.h>
#include <string.h>

#include "lab.h"

enum { BOUND_MS = 10, ROUNDS_A_MS = 1000000 / LAB_STEP_NS };

static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME];

static void
open_conf(const struct lab_conf *conf)
{
    uint8_t mac[6] = { 2, 0, 0, 0, 0, 1 };
    lab_open(&lab, conf);
    lab.port[1].conf.backpressure_ms = BOUND_MS;
    lab_publish(&lab);
    CHECK_EQ(pvs_fdb_set_static(lab.fdb, mac, 0, pvs_port_ref(lab.port[1].port), 0), 0);
    mac[5] = 3;
    CHECK_EQ(pvs_fdb_set_static(lab.fdb, mac, 0, pvs_port_ref(lab.port[3].port), 0), 0);
    lab_fill(&lab, 3, 128);
}

static void
open_workers(uint32_t workers)
{
    struct lab_conf conf = lab_conf_default(4);
    conf.workers = workers;
    open_conf(&conf);
}

static void
close_and_check(void)
{
    lab_check_sums(&lab);
    lab_close(&lab);
}

static void
send_to(uint32_t to, uint32_t from, uint32_t salt)
{
    lab_frame(frame, LAB_MAC(to), LAB_MAC(from), 60, salt);
    CHECK_EQ(pvd_tx(lab.port[from].guest, 0, NULL, frame, 60, NULL), 0);
    CHECK(pvd_kick(lab.port[from].guest, 1) >= 0);
}

static void
expect(uint32_t at, uint32_t from, uint32_t salt)
{
    lab_frame(frame, LAB_MAC(at), LAB_MAC(from), 60, salt);
    lab_expect(&lab, at, frame, 60);
}

/* How many of its frames the switch has taken since it was asked last. */
static int
taken_from(uint32_t port)
{
    return pvd_tx_reap(lab.port[port].guest, 0);
}

static void
give_room(uint32_t buffers)
{
    lab_fill(&lab, 1, buffers);
    CHECK(pvd_kick(lab.port[1].guest, 0) >= 0);
}

static uint64_t
dropped(enum pvs_drop why)
{
    return lab_counters(&lab, 1).tx_drop[why];
}

static uint64_t
received_from(uint32_t port)
{
    return lab_counters(&lab, port).value[PVS_C_rx_packets];
}

/* Frames 0 to n - 1 from port 0 to port 1, of which only the first `room` find room; the others wait. */
static void
fill_up(uint32_t room, uint32_t n)
{
    lab_fill(&lab, 1, room);
    for (uint32_t i = 0; i < n; i++)
        send_to(1, 0, i);
    lab_poll(&lab, 3);
    CHECK_EQ(taken_from(0), room);
    CHECK_EQ(lab_driver(&lab, 0, 1).in_flight, n - room);
    for (uint32_t i = 0; i < room; i++)
        expect(1, 0, i);
    lab_expect_nothing(&lab, 1);
}

/* ---- waiting ---- */

TEST_EACH_RING(a_full_receiver_that_drops_counts_each_frame)
{
    open_workers(1);
    lab.port[1].conf.backpressure_ms = 0;
    lab_publish(&lab);
    lab_fill(&lab, 1, 8);
    uint64_t before = dropped(PVS_DROP_guest_rx_full);
    for (uint32_t i = 0; i < 20; i++)
        send_to(1, 0, i);
    lab_poll(&lab, 2);
    CHECK_EQ(taken_from(0), 20);
    for (uint32_t i = 0; i < 8; i++)
        expect(1, 0, i);
    lab_expect_nothing(&lab, 1);
    CHECK_EQ(dropped(PVS_DROP_guest_rx_full) - before, 12);
    CHECK_EQ(received_from(0), 20);
    close_and_check();
}

TEST_EACH_RING(frames_wait_for_room_in_their_senders_ring)
{
    for (uint32_t workers = 1; workers <= 2; workers++) {
        open_workers(workers);
        fill_up(8, 12);
        lab_poll(&lab, BOUND_MS / 2 * ROUNDS_A_MS);
        CHECK_EQ(taken_from(0), 0);
        give_room(1);
        lab_poll(&lab, 2);
        CHECK_EQ(taken_from(0), 1);
        expect(1, 0, 8);
        give_room(10);
        lab_poll(&lab, 2);
        CHECK_EQ(taken_from(0), 3);
        for (uint32_t i = 9; i < 12; i++)
            expect(1, 0, i);
        lab_expect_nothing(&lab, 1);
        CHECK_EQ(lab_sum(lab_counters(&lab, 1).tx_drop), 0);
        CHECK_EQ(received_from(0), 12);
        close_and_check();
    }
}

/* Each time something is taken the bound begins anew. */
TEST_EACH_RING(a_slow_receiver_loses_nothing)
{
    uint32_t seen = 0;
    open_workers(2);
    fill_up(0, 100);
    for (; seen < 100; seen++) {
        lab_poll(&lab, (BOUND_MS - 1) * ROUNDS_A_MS);
        give_room(1);
        lab_poll(&lab, 2);
        expect(1, 0, seen);
        lab_expect_nothing(&lab, 1);
    }
    CHECK_EQ(lab_sum(lab_counters(&lab, 1).tx_drop), 0);
    CHECK_EQ(received_from(0), 100);
    close_and_check();
}

TEST_EACH_RING(after_the_bound_frames_are_dropped_at_once_until_one_is_taken)
{
    open_workers(1);
    fill_up(4, 7);
    lab_poll(&lab, (BOUND_MS - 1) * ROUNDS_A_MS);
    CHECK_EQ(taken_from(0), 0);
    lab_poll(&lab, 2 * ROUNDS_A_MS);
    CHECK_EQ(taken_from(0), 3);
    CHECK_EQ(dropped(PVS_DROP_guest_rx_full), 3);
    CHECK_EQ(received_from(0), 7);
    send_to(1, 0, 7);
    send_to(1, 0, 8);
    lab_poll(&lab, 2);
    CHECK_EQ(taken_from(0), 2); /* it is not waited for again */
    CHECK_EQ(dropped(PVS_DROP_guest_rx_full), 5);
    give_room(1);
    send_to(1, 0, 9);
    send_to(1, 0, 10);
    lab_poll(&lab, 2);
    CHECK_EQ(taken_from(0), 1); /* one was taken: now the next waits */
    expect(1, 0, 9);
    give_room(1);
    lab_poll(&lab, 2);
    expect(1, 0, 10);
    CHECK_EQ(taken_from(0), 1);
    CHECK_EQ(dropped(PVS_DROP_guest_rx_full), 5);
    CHECK_EQ(received_from(0), 11);
    close_and_check();
}

TEST_EACH_RING(kicks_for_room_are_wanted_while_somebody_waits)
{
    open_workers(1);
    lab_fill(&lab, 1, 2);
    pvd_kick(lab.port[1].guest, 0); /* a fresh ring's first kick is wanted: its event index is 0 */
    lab_fill(&lab, 1, 2);
    CHECK_EQ(pvd_kick(lab.port[1].guest, 0), 0);
    for (uint32_t i = 0; i < 6; i++)
        send_to(1, 0, i);
    lab_poll(&lab, 2);
    lab_fill(&lab, 1, 4);
    CHECK_EQ(pvd_kick(lab.port[1].guest, 0), 1);
    lab_poll(&lab, 2);
    CHECK_EQ(taken_from(0), 6);
    lab_fill(&lab, 1, 4);
    CHECK_EQ(pvd_kick(lab.port[1].guest, 0), 0);
    close_and_check();
}

TEST_EACH_RING(a_frame_that_needs_several_buffers_waits_for_all_of_them)
{
    struct lab_conf conf = lab_conf_default(4);
    conf.guest.rx_buf_size = 112; /* 100 bytes in the first, 112 in each other */
    open_conf(&conf);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 300, 5);
    lab_fill(&lab, 1, 2);
    lab_send(&lab, 0, frame, 300);
    lab_poll(&lab, 5);
    CHECK_EQ(taken_from(0), 0);
    lab_expect_nothing(&lab, 1);
    give_room(1);
    lab_poll(&lab, 2);
    CHECK_EQ(taken_from(0), 1);
    lab_expect(&lab, 1, frame, 300);
    CHECK_EQ(received_from(0), 1);
    close_and_check();
}

/* ---- whom it concerns ---- */

TEST_EACH_RING(other_senders_and_floods_go_on)
{
    for (uint32_t workers = 1; workers <= 3; workers++) {
        open_workers(workers);
        fill_up(2, 3);
        send_to(3, 2, 50);
        lab_frame(frame, LAB_BROADCAST, LAB_MAC(2), 60, 51);
        lab_send(&lab, 2, frame, 60);
        lab_frame(frame, LAB_MAC(77), LAB_MAC(2), 60, 52); /* nobody's: flooded */
        CHECK_EQ(pvd_tx(lab.port[2].guest, 0, NULL, frame, 60, NULL), 0);
        lab_poll(&lab, 2);
        CHECK_EQ(taken_from(2), 3);
        expect(3, 2, 50);
        lab_frame(frame, LAB_BROADCAST, LAB_MAC(2), 60, 51);
        lab_expect(&lab, 3, frame, 60);
        lab_frame(frame, LAB_MAC(77), LAB_MAC(2), 60, 52);
        lab_expect(&lab, 3, frame, 60);
        CHECK_EQ(dropped(PVS_DROP_guest_rx_full), 2); /* its copies of the floods */
        CHECK_EQ(taken_from(0), 0);
        give_room(1);
        lab_poll(&lab, 2);
        expect(1, 0, 2);
        close_and_check();
    }
}

TEST_EACH_RING(what_is_behind_a_waiting_frame_waits_as_well)
{
    open_workers(1);
    fill_up(1, 2);
    send_to(3, 0, 60);
    lab_poll(&lab, 5);
    lab_expect_nothing(&lab, 3);
    give_room(1);
    lab_poll(&lab, 2);
    expect(1, 0, 1);
    expect(3, 0, 60);
    CHECK_EQ(taken_from(0), 2);
    fill_up(0, 1);
    send_to(3, 0, 61);
    lab_poll(&lab, (BOUND_MS + 1) * ROUNDS_A_MS);
    expect(3, 0, 61); /* and no longer than the bound */
    CHECK_EQ(dropped(PVS_DROP_guest_rx_full), 1);
    close_and_check();
}

TEST_EACH_RING(senders_in_several_workers_wait_for_the_same_ring)
{
    open_workers(2);
    for (uint32_t i = 0; i < 3; i += 2) {
        lab_detach(&lab, i);
        lab.port[i].worker = (int32_t)i / 2;
        lab_attach(&lab, i);
    }
    for (uint32_t i = 0; i < 10; i++) {
        send_to(1, 0, i);
        send_to(1, 2, i);
    }
    lab_poll(&lab, 5);
    CHECK_EQ(taken_from(0) + taken_from(2), 0);
    uint32_t n[3] = { 0 };
    for (uint32_t total = 1; total <= 20; total++) {
        uint8_t got[60];
        give_room(1);
        lab_poll(&lab, 2);
        CHECK_EQ(pvd_rx(lab.port[1].guest, 0, got, sizeof got, NULL), 60);
        uint32_t from = got[11];
        CHECK(from == 0 || from == 2);
        lab_frame(frame, LAB_MAC(1), LAB_MAC(from), 60, n[from]++);
        CHECK(memcmp(frame, got, 60) == 0);
        lab_expect_nothing(&lab, 1);
        CHECK_EQ(received_from(0) + received_from(2), total);
    }
    CHECK_EQ(n[0], 10);
    CHECK_EQ(n[2], 10);
    CHECK_EQ(lab_sum(lab_counters(&lab, 1).tx_drop), 0);
    close_and_check();
}

TEST_EACH_RING(another_pair_of_a_full_ones_port_has_room)
{
    struct lab_conf conf = lab_conf_default(4);
    uint8_t got[100];
    conf.pairs[1] = 2;
    open_conf(&conf);
    CHECK_EQ(pvd_rx_fill(lab.port[1].guest, 1, 4, NULL), 4);
    for (uint16_t pair = 0; pair < 2; pair++) { /* port 1 talks with port 0 by one pair, with port 2 by the other */
        lab_udp(frame, LAB_MAC(2U * pair), LAB_MAC(1), 1, 60);
        CHECK_EQ(pvd_tx(lab.port[1].guest, pair, NULL, frame, 60, NULL), 0);
        pvd_kick(lab.port[1].guest, 2U * pair + 1);
        lab_poll(&lab, 2);
    }
    while (pvd_rx(lab.port[3].guest, 0, got, sizeof got, NULL) >= 0)
        ;
    lab_udp(frame, LAB_MAC(1), LAB_MAC(0), 1, 60);
    lab_send(&lab, 0, frame, 60);
    lab_udp(frame, LAB_MAC(1), LAB_MAC(2), 1, 60);
    lab_send(&lab, 2, frame, 60);
    lab_poll(&lab, 3);
    CHECK_EQ(taken_from(0), 0);
    CHECK_EQ(taken_from(2), 1);
    CHECK_EQ(pvd_rx(lab.port[1].guest, 1, got, sizeof got, NULL), 60);
    CHECK_EQ(got[11], 2);
    give_room(1);
    lab_poll(&lab, 2);
    CHECK_EQ(taken_from(0), 1);
    close_and_check();
}

/* ---- what ends the waiting ---- */

TEST_EACH_RING(a_senders_ring_can_stop_and_resume_with_a_waiting_frame)
{
    open_workers(2);
    fill_up(1, 3);
    CHECK_EQ(lab_ring_stop(&lab, 0, 1), lab_base(&lab, 1));
    lab_poll(&lab, 2 * BOUND_MS * ROUNDS_A_MS);
    CHECK_EQ(lab_sum(lab_counters(&lab, 1).tx_drop), 0);
    give_room(5);
    lab_ring_start(&lab, 0, 1);
    lab_poll(&lab, 2);
    expect(1, 0, 1);
    expect(1, 0, 2);
    lab_expect_nothing(&lab, 1);
    CHECK_EQ(received_from(0), 3);
    close_and_check();
}

TEST_EACH_RING(a_disabled_senders_waiting_frames_are_discarded)
{
    open_workers(2);
    fill_up(1, 3);
    CHECK_EQ(lab_wait(&lab, pvs_ring_enable(lab.port[0].port, 1, false)), 0);
    lab_poll(&lab, 2);
    CHECK_EQ(taken_from(0), 2);
    CHECK_EQ(received_from(0), 3);
    CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_queue_disabled], 2);
    CHECK_EQ(dropped(PVS_DROP_guest_rx_full), 0);
    close_and_check();
}

TEST_EACH_RING(a_receiver_that_stops_frees_its_senders)
{
    open_workers(2);
    fill_up(1, 3);
    CHECK(lab_ring_stop(&lab, 1, 0) >= 0);
    lab_poll(&lab, 2);
    CHECK_EQ(taken_from(0), 2);
    CHECK_EQ(dropped(PVS_DROP_link_down), 2);
    CHECK_EQ(received_from(0), 3);
    give_room(4);
    lab_ring_start(&lab, 1, 0);
    send_to(1, 0, 3);
    lab_poll(&lab, 2);
    expect(1, 0, 3);
    lab_expect_nothing(&lab, 1);
    close_and_check();
}

TEST_EACH_RING(a_receiver_that_goes_away_frees_its_senders)
{
    open_workers(2);
    fill_up(1, 3);
    struct pvs_port_conf left[3] = { lab.port[0].conf, lab.port[2].conf, lab.port[3].conf };
    CHECK_EQ(lab_wait(&lab, pvs_publish(lab.sw, left, 3, &lab.conf.bridge, 1)), 0);
    lab_detach(&lab, 1);
    CHECK_EQ(pvs_port_destroy(lab.port[1].port), 0);
    lab_poll(&lab, 3);
    CHECK_EQ(taken_from(0), 2);
    CHECK_EQ(received_from(0), 3);
    for (uint32_t i = 1; i < 3; i++) { /* nobody's now, so they are flooded */
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, i);
        lab_expect(&lab, 3, frame, 60);
    }
    CHECK_EQ(pvs_port_create(lab.sw, 1, &lab.port[1].port), 0);
    lab.port[1].conf.port = lab.port[1].port;
    lab_reset(&lab, 1);
    lab_attach(&lab, 1);
    lab_close(&lab);
}

TEST_EACH_RING(backpressure_that_is_switched_off_frees_the_senders)
{
    open_workers(2);
    fill_up(1, 3);
    lab.port[1].conf.backpressure_ms = 0;
    lab_publish(&lab);
    lab_poll(&lab, 2);
    CHECK_EQ(taken_from(0), 2);
    CHECK_EQ(dropped(PVS_DROP_guest_rx_full), 2);
    CHECK_EQ(received_from(0), 3);
    close_and_check();
}

/* ---- segments ---- */

/* Port 0's guest sends a TCP segment of 4000 bytes that the switch has to cut into four. */
static void
send_four_segments(void)
{
    enum { HOST_TSO4 = 11 };
    static const uint8_t request[12] = { 1 /* NEEDS_CSUM */, 1 /* TCPv4 */, 54, 0, 0xe8, 3 /* 1000 */, 34, 0, 16, 0 };
    const uint8_t tcp[] = { 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0 };

    lab_ring_stop(&lab, 0, 1);
    struct pvs_ring_conf conf = lab_ring_conf(&lab, 0, 1);
    conf.features |= 1 | 1U << HOST_TSO4;
    CHECK_EQ(lab_wait(&lab, pvs_ring_start(lab.port[0].port, 1, &conf)), 0);
    lab.port[0].running[1] = true;
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 4054, 9);
    lab_udp(frame, LAB_MAC(1), LAB_MAC(0), 1, 4054);
    frame[23] = 6;
    memcpy(frame + 38, tcp, sizeof tcp);
    CHECK_EQ(pvd_tx(lab.port[0].guest, 0, request, frame, 4054, NULL), 0);
    pvd_kick(lab.port[0].guest, 1);
    lab_poll(&lab, 3);
}

static uint32_t
ring_worker(uint32_t port)
{
    struct pvs_ring_status status;
    CHECK_EQ(pvs_ring_status(lab.port[port].port, 1, &status), 0);
    return status.worker;
}

/* The next `n` received frames are segments number `first` and on. */
static void
expect_segments(uint32_t first, uint32_t n)
{
    uint8_t got[2048];
    for (uint32_t i = first; i < first + n; i++) {
        CHECK_EQ(pvd_rx(lab.port[1].guest, 0, got, sizeof got, NULL), 1054);
        uint32_t sequence = (uint32_t)got[40] << 8 | got[41];
        CHECK_EQ(sequence, 1 + 1000 * i);
        CHECK(memcmp(got + 54, frame + 54 + 1000 * (size_t)i, 1000) == 0);
    }
    lab_expect_nothing(&lab, 1);
}

static void
open_for_segments(uint32_t workers)
{
    struct lab_conf conf = lab_conf_default(4);
    conf.workers = workers;
    conf.guest.tx_buf_size = 8192;
    open_conf(&conf);
    lab_fill(&lab, 1, 1);
    send_four_segments();
    CHECK_EQ(taken_from(0), 0);
    expect_segments(0, 1);
}

TEST_EACH_RING(a_frame_can_wait_between_its_segments)
{
    open_for_segments(1);
    give_room(2);
    lab_poll(&lab, 2);
    CHECK_EQ(taken_from(0), 0);
    expect_segments(1, 2);
    lab_poll(&lab, (BOUND_MS - 1) * ROUNDS_A_MS);
    give_room(2);
    lab_poll(&lab, 2);
    CHECK_EQ(taken_from(0), 1);
    expect_segments(3, 1);
    CHECK_EQ(received_from(0), 1);
    CHECK_EQ(lab_sum(lab_counters(&lab, 1).tx_drop), 0);
    close_and_check();
}

TEST_EACH_RING(a_frame_that_waits_between_its_segments_goes_on_at_another_worker)
{
    open_for_segments(2);
    uint32_t to = 1 - ring_worker(0);
    give_room(1);
    lab_poll(&lab, 2);
    expect_segments(1, 1);
    CHECK_EQ(lab_wait(&lab, pvs_ring_move(lab.port[0].port, 1, to)), 0);
    CHECK_EQ(ring_worker(0), to);
    give_room(2);
    lab_poll(&lab, 2);
    CHECK_EQ(taken_from(0), 1);
    expect_segments(2, 2);
    CHECK_EQ(lab_sum(lab_counters(&lab, 1).tx_drop), 0);
    close_and_check();
}

TEST_EACH_RING(segments_that_found_no_room_in_time_count_one_by_one)
{
    open_for_segments(1);
    lab_poll(&lab, (BOUND_MS + 1) * ROUNDS_A_MS);
    CHECK_EQ(taken_from(0), 1);
    CHECK_EQ(dropped(PVS_DROP_guest_rx_full), 3);
    CHECK_EQ(received_from(0), 1);
    give_room(2); /* the next frame begins at its own first segment */
    send_to(1, 0, 1);
    lab_poll(&lab, 2);
    expect(1, 0, 1);
    lab_expect_nothing(&lab, 1);
    close_and_check();
}
