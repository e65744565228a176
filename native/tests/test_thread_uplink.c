/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_thread_uplink.c - an uplink between two workers: guests of both send by it at once, it sends to a guest, it is
 * stopped and started under all that. Runs under ThreadSanitizer too. Nothing here depends on speed.
 *
 * How it works: guests 0 and 1, one on each worker, send numbered frames to the far host; that one sends numbered frames
 * to guest 2. This thread plays them all: a sender's numbers never go back, and what doesn't arrive is counted.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#include "uplink_lab.h"

enum { UP, SENDERS = 2, RECEIVER = 2, LEN = 200, NUMBER = 50, BOUND_MS = 60000 };

static struct lab lab;

/* How far each sender is, and what of it has arrived; the far host is number RECEIVER. */
static struct {
    uint32_t sent, arrived, last;
} at[SENDERS + 1];

static void
open_with(enum pvs_uplink_kind kind, enum pvs_polling polling, uint32_t backpressure_ms)
{
    struct lab_conf conf = lab_conf_default(SENDERS + 1);
    conf.workers = 2;
    conf.threads = true;
    conf.polling = polling;
    conf.poll_us = 20;
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < SENDERS; i++) {
        lab_detach(&lab, i);
        lab.port[i].worker = (int32_t)i;
        lab_attach(&lab, i);
    }
    CHECK_EQ(lab_uplink_add(&lab, kind, 1), UP);
    lab_uplink_room(&lab, UP, 16384);
    lab.port[RECEIVER].conf.backpressure_ms = lab.uplink[UP].conf.backpressure_ms = backpressure_ms;
    lab_publish(&lab);
    lab_know_all(&lab);
    memset(at, 0, sizeof at);
}

/* ---- one step of everybody ---- */

static void
build(uint8_t *frame, uint32_t sender)
{
    uint64_t src = sender == RECEIVER ? LAB_FAR(UP) : LAB_MAC(sender);

    lab_frame(frame, sender == RECEIVER ? LAB_MAC(RECEIVER) : LAB_FAR(UP), src, LEN, at[sender].sent);
    memcpy(frame + NUMBER, &at[sender].sent, sizeof at[sender].sent);
}

static void
guest_sends(uint32_t sender)
{
    uint8_t frame[LEN];

    CHECK(pvd_tx_reap(lab.port[sender].guest, 0) >= 0);
    build(frame, sender);
    int rc = pvd_tx(lab.port[sender].guest, 0, NULL, frame, LEN, NULL);
    CHECK(rc == 0 || rc == -ENOSPC);
    at[sender].sent += rc == 0;
    CHECK(pvd_kick(lab.port[sender].guest, 1) >= 0);
}

static void
far_host_sends(void)
{
    uint8_t record[10 + LEN] = { 0 };

    build(record + 10, RECEIVER);
    ssize_t n = write(lab.uplink[UP].wire[0], record, sizeof record);
    CHECK(n == sizeof record || (n < 0 && errno == EAGAIN));
    at[RECEIVER].sent += n > 0;
}

static void
arrived(const uint8_t *frame, int len, uint32_t sender)
{
    uint32_t number;

    CHECK_EQ(len, LEN);
    memcpy(&number, frame + NUMBER, sizeof number);
    CHECK(sender <= RECEIVER && number < at[sender].sent);
    CHECK(at[sender].arrived == 0 || number > at[sender].last); /* in order, and none twice */
    at[sender].arrived++;
    at[sender].last = number;
}

static uint32_t
receive(void)
{
    struct virtio_net_hdr header;
    uint8_t got[LEN];
    uint32_t before = at[0].arrived + at[1].arrived + at[RECEIVER].arrived;
    int n;

    for (int i = 0; i < 8 && (n = lab_wire_receive(&lab, UP, &header, got, sizeof got)) != -EAGAIN; i++)
        arrived(got, n, got[11]);
    for (int i = 0; i < 8 && (n = pvd_rx(lab.port[RECEIVER].guest, 0, got, sizeof got, NULL)) != -EAGAIN; i++)
        arrived(got, n, RECEIVER);
    lab_fill(&lab, RECEIVER, 16);
    CHECK(pvd_kick(lab.port[RECEIVER].guest, 0) >= 0);
    return at[0].arrived + at[1].arrived + at[RECEIVER].arrived - before;
}

static void
step(bool send)
{
    for (uint32_t i = 0; send && i < SENDERS; i++)
        guest_sends(i);
    if (send)
        far_host_sends();
    if (receive() == 0)
        sched_yield();
}

static uint64_t
sum_of(uint32_t first, uint32_t n, bool sent)
{
    uint64_t sum = 0;
    for (uint32_t i = first; i < first + n; i++)
        sum += sent ? at[i].sent : at[i].arrived;
    return sum;
}

/* Until every frame that was sent has left its ring and the socket: for the far host's, what the switch has of them. */
static void
settle(void)
{
    uint64_t deadline = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL;
    struct lab_counters up, to;

    do {
        CHECK(lab_clock_ns() < deadline);
        step(false);
        up = lab_uplink_counters(&lab, UP);
        to = lab_counters(&lab, RECEIVER);
    } while (up.value[PVS_C_rx_packets] != at[RECEIVER].sent ||
             at[RECEIVER].arrived + lab_sum(up.rx_drop) + lab_sum(to.tx_drop) != at[RECEIVER].sent ||
             sum_of(0, SENDERS, false) + lab_sum(up.tx_drop) != sum_of(0, SENDERS, true));
    lab_publish(&lab); /* what a worker has sent it counts before the end of its burst */
    up = lab_uplink_counters(&lab, UP);
    CHECK_EQ(up.value[PVS_C_tx_packets], sum_of(0, SENDERS, false));
    CHECK_EQ(to.value[PVS_C_tx_packets], at[RECEIVER].arrived);
    lab_check_uplink(&lab, UP);
}

/* ---- tests ---- */

static void
nothing_is_lost(enum pvs_uplink_kind kind, enum pvs_polling polling)
{
    open_with(kind, polling, BOUND_MS);
    for (uint32_t i = 0; i < 3000; i++) {
        step(true);
        if (i % 500 == 0) /* both sides fill up, and the workers fall asleep */
            nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
    }
    settle();
    CHECK_EQ(lab_sum(lab_uplink_counters(&lab, UP).tx_drop), 0);
    CHECK_EQ(lab_sum(lab_uplink_counters(&lab, UP).rx_drop), 0);
    CHECK_EQ(lab_sum(lab_counters(&lab, RECEIVER).tx_drop), 0);
    lab_close(&lab);
}

TEST_EACH_RING(thread_two_workers_lose_nothing_to_a_slow_tap)
{
    nothing_is_lost(PVS_TAP, PVS_POLL_ADAPTIVE);
}

TEST_EACH_RING(thread_two_workers_lose_nothing_to_a_slow_socket)
{
    nothing_is_lost(PVS_PACKET, PVS_POLL_INTERRUPT);
}

/* Each frame for itself, after everything was asleep: no edge is missed in
 * either direction. */
TEST_EACH_RING(thread_uplink_wakes_a_sleeping_worker)
{
    for (int k = 0; k < 2; k++) {
        open_with(k == 0 ? PVS_TAP : PVS_PACKET, PVS_POLL_INTERRUPT, 0);
        lab_fill(&lab, RECEIVER, 16);
        for (uint32_t i = 0; i < 300; i++) {
            step(true);
            settle();
        }
        CHECK_EQ(at[RECEIVER].arrived, 300);
        CHECK_EQ(at[0].arrived + at[1].arrived, 600);
        lab_close(&lab);
    }
}

/* Frames that wait for the kernel keep their worker neither busy nor asleep for
 * good. */
TEST_EACH_RING(thread_worker_naps_while_frames_wait_for_an_uplink)
{
    for (int k = 0; k < 2; k++) {
        struct pvs_perf perf;
        open_with(k == 0 ? PVS_TAP : PVS_PACKET, PVS_POLL_ADAPTIVE, BOUND_MS);
        for (uint32_t i = 0; i < 200; i++)
            guest_sends(1);
        CHECK_EQ(pvs_worker_perf(lab.sw, 1, &perf), 0);
        uint64_t before = perf.sleeps, deadline = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL;
        while (perf.sleeps < before + 10) {
            CHECK(lab_clock_ns() < deadline);
            CHECK_EQ(pvs_worker_perf(lab.sw, 1, &perf), 0);
        }
        CHECK(lab_uplink_counters(&lab, UP).value[PVS_C_tx_packets] < at[1].sent);
        settle();
        CHECK_EQ(at[1].arrived, at[1].sent);
        lab_close(&lab);
    }
}

TEST_EACH_RING(thread_uplink_stops_and_starts_under_traffic)
{
    for (int k = 0; k < 2; k++) {
        open_with(k == 0 ? PVS_TAP : PVS_PACKET, PVS_POLL_ADAPTIVE, k == 0 ? 0 : 1);
        for (uint32_t i = 0; i < 200; i++) {
            for (int n = 0; n < 10; n++)
                step(true);
            lab_uplink_stop(&lab, UP, 0);
            for (int n = 0; n < 3; n++)
                step(true);
            lab.uplink[UP].worker = (int32_t)(i % 2); /* the other one has it next */
            lab_uplink_start(&lab, UP, 0);
        }
        settle();
        CHECK(sum_of(0, SENDERS, false) != 0 && at[RECEIVER].arrived != 0);
        lab_close(&lab);
    }
}

/* The bytes of an injected frame are freed as soon as the command is reaped: by then they have been sent. */
TEST(thread_injected_frames_are_sent_before_they_are_freed)
{
    enum { LONG = 3000 };
    static uint8_t frame[LONG];
    open_with(PVS_PACKET, PVS_POLL_BUSY, 0);
    for (uint32_t i = 0; i < 500; i++) {
        uint64_t seq = 0, deadline = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL;
        int64_t result = -1, asked;
        lab_frame(frame, LAB_FAR(UP), LAB_MAC(77), LONG, i);
        asked = pvs_inject(lab.uplink[UP].port, PVS_EGRESS, frame, LONG);
        CHECK(asked > 0);
        while (pvs_reap(lab.sw, &seq, &result, 1) == 0) {
            CHECK(lab_clock_ns() < deadline);
            sched_yield(); /* the worker may need this processor */
        }
        CHECK_EQ(seq, asked);
        CHECK_EQ(result, 0);
        lab_wire_expect(&lab, UP, frame, LONG);
    }
    lab_check_uplink(&lab, UP);
    lab_close(&lab);
}
