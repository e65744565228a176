/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_workers.c - several workers and several queue pairs, step by step: who polls what, by which pair a frame is
 * delivered, and what a stop waits for (test_thread_workers.c has the threads).
 */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "lab.h"
#include "parse.h"

static struct lab lab;
static uint8_t frame[1514], got[2048];

static void
open_workers(uint32_t workers, uint32_t ports, uint32_t pairs)
{
    struct lab_conf conf = lab_conf_default(ports);
    conf.workers = workers;
    conf.guest.queue_pairs = pairs;
    conf.guest.queue_size = 64;
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < ports; i++)
        for (uint32_t pair = 0; pair < pairs; pair++)
            CHECK(pvd_rx_fill(lab.port[i].guest, pair, 64, NULL) > 0);
}

static void
close_and_check(void)
{
    lab_check_sums(&lab);
    lab_close(&lab);
}

static struct pvs_ring_status
status(uint32_t port, uint32_t ring)
{
    struct pvs_ring_status s;
    CHECK_EQ(pvs_ring_status(lab.port[port].port, ring, &s), 0);
    return s;
}

/* Start a ring that `worker` is to poll; who does. */
static uint32_t
start_on(uint32_t port, uint32_t ring, int32_t worker)
{
    lab.port[port].worker = worker;
    lab_ring_start(&lab, port, ring);
    return status(port, ring).worker;
}

static void
poll_worker(uint32_t worker, int rounds)
{
    for (int i = 0; i < rounds; i++) {
        lab.now_ns += LAB_STEP_NS;
        CHECK(pvs_poll_once(lab.sw, worker, lab.now_ns) >= 0);
    }
}

/* All rings of a port polled by one worker. */
static void
move_to(uint32_t port, int32_t worker)
{
    lab_detach(&lab, port);
    lab.port[port].worker = worker;
    lab_attach(&lab, port);
}

static void
send_by(uint32_t port, uint32_t pair, uint32_t len)
{
    CHECK(pvd_tx_reap(lab.port[port].guest, pair) >= 0);
    CHECK_EQ(pvd_tx(lab.port[port].guest, pair, NULL, frame, len, NULL), 0);
    CHECK(pvd_kick(lab.port[port].guest, 2 * pair + 1) >= 0);
}

/* By which pair the port's guest has got a frame, just one; -1 = none. */
static int
arrived_by(uint32_t port)
{
    int by = -1;
    for (uint32_t pair = 0; pair < pvd_n_rings(lab.port[port].guest) / 2; pair++) {
        while (pvd_rx(lab.port[port].guest, pair, got, sizeof got, NULL) >= 0) {
            CHECK_EQ(by, -1);
            by = (int)pair;
        }
        CHECK(pvd_rx_fill(lab.port[port].guest, pair, 64, NULL) >= 0);
    }
    return by;
}

/* ---- who polls what ---- */

TEST_EACH_RING(pairs_are_spread_over_the_workers)
{
    uint32_t pairs_on[4] = { 0 };
    open_workers(4, 4, 2);
    for (uint32_t i = 0; i < 4; i++) {
        for (uint32_t pair = 0; pair < 2; pair++) {
            CHECK_EQ(status(i, 2 * pair).worker, status(i, 2 * pair + 1).worker);
            pairs_on[status(i, 2 * pair).worker]++;
        }
    }
    for (uint32_t w = 0; w < 4; w++)
        CHECK_EQ(pairs_on[w], 2);
    close_and_check();
}

TEST_EACH_RING(a_pair_goes_to_the_worker_with_the_fewest_rings)
{
    open_workers(3, 6, 1);
    uint32_t first = status(4, 0).worker, other = 0, second;
    lab_detach(&lab, 4);
    lab_attach(&lab, 4);
    CHECK_EQ(status(4, 0).worker, first); /* all others had more */
    while ((second = status(other, 0).worker) == first)
        other++;
    lab_detach(&lab, 4);
    move_to(other, (int32_t)first);
    lab_attach(&lab, 4);
    CHECK_EQ(status(4, 0).worker, second);
    close_and_check();
}

TEST_EACH_RING(a_pair_goes_where_its_first_ring_was_sent)
{
    open_workers(3, 1, 2);
    lab_detach(&lab, 0);
    pvs_memory *old;
    lab.port[0].memory = lab_map(lab.port[0].port, lab.port[0].guest);
    CHECK_EQ(pvs_port_set_memory(lab.port[0].port, lab.port[0].memory, &old), 0);
    CHECK_EQ(start_on(0, 1, 2), 2);
    CHECK_EQ(start_on(0, 0, -1), 2);
    CHECK(lab_ring_stop(&lab, 0, 1) >= 0);
    CHECK_EQ(start_on(0, 1, 0), 2); /* the pair stays together */
    CHECK_EQ(start_on(0, 2, 1), 1); /* another pair is another matter */
    CHECK_EQ(start_on(0, 3, 2), 1);
    CHECK(lab_ring_stop(&lab, 0, 0) >= 0);
    CHECK(lab_ring_stop(&lab, 0, 1) >= 0);
    CHECK_EQ(start_on(0, 0, 0), 0);
    close_and_check();
}

TEST_EACH_RING(a_worker_that_does_not_exist_is_refused)
{
    open_workers(2, 1, 1);
    lab_ring_stop(&lab, 0, 0);
    struct pvs_ring_conf conf = lab_ring_conf(&lab, 0, 0);
    conf.worker = 2;
    CHECK_EQ(pvs_ring_start(lab.port[0].port, 0, &conf), -EINVAL);
    conf.worker = -2;
    CHECK_EQ(pvs_ring_start(lab.port[0].port, 0, &conf), -EINVAL);
    lab_close(&lab);
}

TEST_EACH_RING(a_ring_is_polled_by_its_worker_alone)
{
    open_workers(3, 2, 1);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 1);
    for (int32_t w = 0; w < 3; w++) {
        move_to(0, w);
        CHECK_EQ(status(0, 1).worker, w);
        lab_poll(&lab, 5); /* it rests */
        send_by(0, 0, 60);
        for (uint32_t other = 0; other < 3; other++)
            if (other != (uint32_t)w)
                poll_worker(other, 3);
        CHECK_EQ(arrived_by(1), -1);
        poll_worker((uint32_t)w, 1);
        CHECK_EQ(arrived_by(1), 0);
    }
    close_and_check();
}

/* ---- a receive ring for everybody ---- */

TEST_EACH_RING(two_workers_deliver_into_one_ring_in_one_step)
{
    open_workers(2, 3, 1);
    for (int32_t i = 0; i < 3; i++)
        move_to((uint32_t)i, i % 2);
    for (uint32_t i = 0; i < 2; i++) {
        lab_frame(frame, LAB_BROADCAST, LAB_MAC(i), 60 + i, i);
        send_by(i, 0, 60 + i);
    }
    lab_poll(&lab, 1);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), 60, 0);
    lab_expect(&lab, 2, frame, 60);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(1), 61, 1);
    lab_expect(&lab, 2, frame, 61);
    lab_expect_nothing(&lab, 2);
    close_and_check();
}

TEST_EACH_RING(workers_take_turns_at_one_ring)
{
    enum { SENDERS = 3, FRAMES = 400 };
    uint32_t sent[SENDERS] = { 0 }, heard[SENDERS] = { 0 };
    uint64_t seed = 3;
    open_workers(SENDERS, SENDERS + 1, 1);
    for (int32_t i = 0; i < SENDERS; i++)
        move_to((uint32_t)i, i);
    move_to(SENDERS, 1);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(SENDERS), 60, 0);
    send_by(SENDERS, 0, 60);
    lab_poll(&lab, 2);
    for (uint32_t step = 0; heard[0] + heard[1] + heard[2] < SENDERS * FRAMES; step++) {
        uint32_t i = lab_random(&seed, SENDERS);
        CHECK(step < 100 * FRAMES);
        if (sent[i] < FRAMES) {
            lab_frame(frame, LAB_MAC(SENDERS), LAB_MAC(i), 60 + i, sent[i]++);
            send_by(i, 0, 60 + i);
        }
        poll_worker(lab_random(&seed, SENDERS), 1);
        if (lab_random(&seed, 4) != 0)
            continue;
        for (int n; (n = pvd_rx(lab.port[SENDERS].guest, 0, got, sizeof got, NULL)) >= 0;) {
            uint32_t from = (uint32_t)n - 60;
            CHECK(from < SENDERS);
            lab_frame(frame, LAB_MAC(SENDERS), LAB_MAC(from), 60 + from, heard[from]++);
            CHECK(memcmp(got, frame, 60 + from) == 0); /* each sender's frames in order */
        }
        lab_fill(&lab, SENDERS, 64);
    }
    CHECK_EQ(lab_sum(lab_counters(&lab, SENDERS).tx_drop), 0);
    CHECK_EQ(lab_counters(&lab, SENDERS).value[PVS_C_tx_packets], SENDERS * FRAMES);
    lab_check_port(&lab, SENDERS);
    lab_close(&lab);
}

TEST_EACH_RING(a_guest_is_called_for_what_another_worker_delivered)
{
    uint64_t calls;
    open_workers(2, 2, 1);
    move_to(0, 0);
    move_to(1, 1);
    lab_poll(&lab, 2);
    struct pvd_vring ring;
    CHECK_EQ(pvd_vring_get(lab.port[1].guest, 0, &ring), 0);
    while (read(ring.call_fd, &calls, sizeof calls) > 0)
        ;
    for (uint32_t i = 0; i < 5; i++) {
        struct pollfd called = { .fd = ring.call_fd, .events = POLLIN };
        CHECK_EQ(pvd_call_arm(lab.port[1].guest, 0), 0);
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, i);
        send_by(0, 0, 60);
        poll_worker(0, 1);
        CHECK_EQ(poll(&called, 1, 0), 1);
        CHECK_EQ(read(ring.call_fd, &calls, sizeof calls), sizeof calls);
        lab_expect(&lab, 1, frame, 60);
    }
    lab_close(&lab);
}

/* ---- grace periods ---- */

static int
reaped(void)
{
    uint64_t seq;
    int64_t result;
    return pvs_reap(lab.sw, &seq, &result, 1);
}

TEST_EACH_RING(a_stop_waits_for_every_worker)
{
    for (uint32_t last = 0; last < 3; last++) {
        open_workers(3, 4, 1);
        for (int32_t i = 0; i < 3; i++)
            move_to((uint32_t)i, i);
        uint32_t used = lab_used(&lab, 1, 0);
        CHECK(pvs_ring_stop(lab.port[1].port, 0) > 0);
        for (uint32_t k = 1; k <= 3; k++) {
            CHECK_EQ(reaped(), 0);
            uint32_t w = (last + k) % 3;
            lab_frame(frame, LAB_BROADCAST, LAB_MAC(w), 60, 0);
            if (w != 1) /* from the moment it was asked for, nothing goes in */
                send_by(w, 0, 60);
            poll_worker(w, 1);
            CHECK_EQ(lab_used(&lab, 1, 0), used);
        }
        CHECK_EQ(reaped(), 1);
        lab.port[1].running[0] = false;
        lab_poll(&lab, 3);
        CHECK_EQ(lab_used(&lab, 1, 0), used);
        CHECK_EQ(lab_used(&lab, 3, 0), lab_base(&lab, 2)); /* others got what was sent meanwhile */
        lab_close(&lab);
    }
}

TEST_EACH_RING(a_ring_gets_frames_once_every_worker_knows_of_its_start)
{
    open_workers(3, 2, 1);
    move_to(0, 0);
    lab_ring_stop(&lab, 1, 0);
    uint32_t used = lab_used(&lab, 1, 0);
    struct pvs_ring_conf conf = lab_ring_conf(&lab, 1, 0);
    CHECK(pvs_ring_start(lab.port[1].port, 0, &conf) > 0);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 0);
    for (uint32_t w = 0; w < 3; w++) {
        send_by(0, 0, 60);
        poll_worker(w, 1);
    }
    poll_worker(0, 1);
    CHECK_EQ(lab_used(&lab, 1, 0), used);
    CHECK_EQ(reaped(), 1);
    lab.port[1].running[0] = true;
    send_by(0, 0, 60);
    lab_poll(&lab, 1);
    CHECK_EQ(arrived_by(1), 0);
    close_and_check();
}

TEST_EACH_RING(a_disabled_ring_gets_nothing_from_the_moment_it_is_asked_for)
{
    open_workers(2, 2, 1);
    move_to(0, 0);
    int64_t seq = pvs_ring_enable(lab.port[1].port, 0, false);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 0);
    send_by(0, 0, 60);
    poll_worker(0, 2);
    CHECK_EQ(arrived_by(1), -1);
    CHECK_EQ(lab_wait(&lab, seq), 0);
    CHECK_EQ(lab_wait(&lab, pvs_ring_enable(lab.port[1].port, 0, true)), 0);
    send_by(0, 0, 60);
    lab_poll(&lab, 1);
    CHECK_EQ(arrived_by(1), 0);
    close_and_check();
}

/* ---- by which pair ---- */

enum kind { UDP4, TCP4, UDP6, TAGGED, MAC_ONLY, KINDS };

/* A frame of a flow between two ports; its length. */
static uint32_t
build(enum kind kind, uint32_t to, uint32_t from, uint16_t flow)
{
    lab_frame(frame, LAB_MAC(to), LAB_MAC(from), 100, flow);
    if (kind == MAC_ONLY)
        return 100;
    lab_udp(frame, LAB_MAC(to), LAB_MAC(from), flow, 100);
    if (kind == TCP4)
        frame[23] = 6;
    if (kind == UDP6) {
        const uint8_t ports[] = { frame[34], frame[35], frame[36], frame[37] };
        const uint8_t head[] = { 0x86, 0xdd, 0x60, 0, 0, 0, 0, 46, 17, 64 };
        memcpy(frame + 12, head, sizeof head);
        memset(frame + 22, 0xfd, 32);
        frame[37] = (uint8_t)from;
        frame[53] = (uint8_t)to;
        memcpy(frame + 54, ports, sizeof ports);
    }
    if (kind != TAGGED)
        return 100;
    memmove(frame + 16, frame + 12, 88);
    memcpy(frame + 12, (const uint8_t[]){ 0x81, 0, 0, 5 }, 4);
    return 104;
}

/* A frame of the flow from port 0 to port 1: the pair by which it arrives. */
static int
pair_of(enum kind kind, uint16_t flow)
{
    uint32_t len = build(kind, 1, 0, flow);
    send_by(0, 0, len);
    lab_poll(&lab, 2);
    return arrived_by(1);
}

/* Port 1's guest sends a frame of that flow by a pair. */
static void
answer_by(uint32_t pair, enum kind kind, uint16_t flow)
{
    uint32_t len = build(kind, 0, 1, flow);
    send_by(1, pair, len);
    lab_poll(&lab, 2);
    CHECK(arrived_by(0) >= 0);
}

static void
open_four_pairs(uint32_t workers)
{
    open_workers(workers, 2, 4);
    answer_by(0, MAC_ONLY, 0); /* so that the switch knows it */
}

static void
enable_pair(uint32_t pair, bool rx, bool tx)
{
    CHECK_EQ(lab_wait(&lab, pvs_ring_enable(lab.port[1].port, 2 * pair, rx)), 0);
    CHECK_EQ(lab_wait(&lab, pvs_ring_enable(lab.port[1].port, 2 * pair + 1, tx)), 0);
}

TEST_EACH_RING(a_flow_comes_by_the_pair_on_which_the_guest_sends_it)
{
    for (uint32_t workers = 1; workers <= 3; workers += 2) {
        open_four_pairs(workers);
        for (enum kind kind = UDP4; kind < KINDS; kind++) {
            for (uint16_t i = 0; i < 40; i++) {
                uint32_t pair = (i + i / 8U) % 4; /* a flow changes it, too */
                answer_by(pair, kind, i % 8);
                CHECK_EQ(pair_of(kind, i % 8), pair);
            }
        }
        close_and_check();
    }
}

TEST_EACH_RING(other_flows_spread_and_each_keeps_its_pair)
{
    uint32_t n[4] = { 0 };
    int pair[64];
    open_four_pairs(2);
    for (uint16_t flow = 0; flow < 64; flow++) {
        pair[flow] = pair_of(UDP4, flow);
        CHECK(pair[flow] >= 0);
        n[pair[flow]]++;
    }
    for (uint32_t i = 0; i < 4; i++)
        CHECK(n[i] >= 4);
    for (uint16_t flow = 0; flow < 64; flow++)
        CHECK_EQ(pair_of(UDP4, flow), pair[flow]);
    close_and_check();
}

TEST_EACH_RING(only_enabled_pairs_get_frames)
{
    open_four_pairs(2);
    enable_pair(1, false, false);
    enable_pair(3, false, true);
    for (uint16_t flow = 0; flow < 64; flow++)
        CHECK_EQ(pair_of(UDP4, flow) % 2, 0);
    close_and_check();
}

TEST_EACH_RING(flows_of_a_disabled_pair_go_to_others_and_come_back)
{
    open_four_pairs(2);
    for (uint16_t flow = 0; flow < 8; flow++) {
        answer_by(2, UDP4, flow);
        enable_pair(2, false, false);
        int other = pair_of(UDP4, flow);
        CHECK(other >= 0 && other != 2);
        enable_pair(2, true, true);
        CHECK_EQ(pair_of(UDP4, flow), 2);
    }
    lab_ring_stop(&lab, 1, 4); /* and those of a stopped one */
    for (uint16_t flow = 0; flow < 8; flow++)
        CHECK(pair_of(UDP4, flow) >= 0 && pair_of(UDP4, flow) != 2);
    CHECK_EQ(lab_sum(lab_counters(&lab, 1).tx_drop), 0);
    close_and_check();
}

TEST_EACH_RING(without_an_enabled_pair_there_is_no_link)
{
    open_four_pairs(2);
    for (uint32_t pair = 0; pair < 4; pair++)
        enable_pair(pair, false, false);
    CHECK_EQ(pair_of(UDP4, 1), -1);
    CHECK_EQ(lab_counters(&lab, 1).tx_drop[PVS_DROP_link_down], 1);
    enable_pair(3, true, true);
    CHECK_EQ(pair_of(UDP4, 1), 3);
    close_and_check();
}

TEST_EACH_RING(what_is_sent_by_a_disabled_pair_is_discarded_and_by_others_not)
{
    open_four_pairs(2);
    enable_pair(1, false, false);
    for (uint32_t pair = 0; pair < 4; pair++) {
        uint32_t len = build(UDP4, 0, 1, 9);
        send_by(1, pair, len);
        lab_poll(&lab, 2);
        CHECK_EQ(arrived_by(0) >= 0, pair != 1);
        CHECK_EQ(pvd_tx_reap(lab.port[1].guest, pair), 1);
    }
    CHECK_EQ(lab_counters(&lab, 1).rx_drop[PVS_DROP_queue_disabled], 1);
    close_and_check();
}
