/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_move.c - a queue goes from one worker to another, step by step: who serves it before, meanwhile and afterwards, what
 * else may be asked for meanwhile, and what is refused (test_move_uplink.c has uplinks, test_thread_move.c the threads).
 *
 * A move takes a round of its old worker, a look of control, and a round of its new one. Ports 0 and 1 are guests; port 0's
 * transmit ring begins at worker 0.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "uplink_lab.h"

enum { TX = 1, LEN = 60, UP = 0 };

static struct lab lab;
static uint8_t frame[LAB_NUMBERED];

static void
open_conf(struct lab_conf *conf, uint32_t workers)
{
    conf->workers = workers;
    lab_open(&lab, conf);
    for (uint32_t i = 0; i < conf->n_ports; i++) {
        lab_detach(&lab, i);
        lab.port[i].worker = 0;
        lab_attach(&lab, i);
        lab_fill(&lab, i, 128);
    }
    lab_know_all(&lab);
}

static void
open_workers(uint32_t workers)
{
    struct lab_conf conf = lab_conf_default(2);
    open_conf(&conf, workers);
}

static void
close_and_check(void)
{
    lab_check_sums(&lab);
    lab_close(&lab);
}

static void
poll_worker(uint32_t worker, int rounds)
{
    for (int i = 0; i < rounds; i++) {
        lab.now_ns += LAB_STEP_NS;
        CHECK(pvs_poll_once(lab.sw, worker, lab.now_ns) >= 0);
    }
}

/* The number of a finished command, 0 = none has. */
static int64_t
reaped(void)
{
    uint64_t seq;
    int64_t result;
    int n = pvs_reap(lab.sw, &seq, &result, 1);
    CHECK(n == 0 || result >= 0);
    return n == 0 ? 0 : (int64_t)seq;
}

static struct pvs_ring_status
status(uint32_t port, uint32_t ring)
{
    struct pvs_ring_status s;
    CHECK_EQ(pvs_ring_status(lab.port[port].port, ring, &s), 0);
    return s;
}

static int64_t
move(uint32_t worker)
{
    return pvs_ring_move(lab.port[0].port, TX, worker);
}

static void
moved(uint32_t worker)
{
    CHECK_EQ(lab_wait(&lab, move(worker)), 0);
    CHECK_EQ(status(0, TX).worker, worker);
}

/* Up to where nobody has the ring: the old worker has let go, control has not looked. The number of the move. */
static int64_t
half_moved(uint32_t from, uint32_t to)
{
    int64_t seq = move(to);
    CHECK(seq > 0);
    for (uint32_t w = 0; w < lab.conf.workers; w++)
        if (w != from)
            poll_worker(w, 1);
    poll_worker(from, 1);
    return seq;
}

static void
put(uint32_t salt, bool kick)
{
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), LEN, salt);
    CHECK(pvd_tx_reap(lab.port[0].guest, 0) >= 0);
    CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, LEN, NULL), 0);
    if (kick)
        CHECK(pvd_kick(lab.port[0].guest, TX) >= 0);
}

static void
expect(uint32_t salt)
{
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), LEN, salt);
    lab_expect(&lab, 1, frame, LEN);
}

/* ---- who serves it ---- */

TEST_EACH_RING(a_moved_ring_is_polled_by_its_new_worker_alone)
{
    static const uint32_t way[] = { 1, 2, 0, 2, 1, 0 };
    open_workers(3);
    for (uint32_t i = 0; i < 6; i++) {
        moved(way[i]);
        for (uint32_t rest = 0; rest < 2; rest++) {
            if (rest)
                lab_poll(&lab, 5); /* and by its kick: the second frame is for a worker that rests */
            put(2 * i + rest, true);
            for (uint32_t w = 0; w < 3; w++)
                if (w != way[i])
                    poll_worker(w, 3);
            lab_expect_nothing(&lab, 1);
            poll_worker(way[i], 1);
            expect(2 * i + rest);
        }
    }
    close_and_check();
}

TEST_EACH_RING(what_is_sent_during_a_move_comes_after_it_in_order)
{
    for (uint32_t kick = 0; kick < 2; kick++) {
        open_workers(2);
        lab_poll(&lab, 5);
        put(0, true);
        int64_t seq = move(1); /* in front of the mail: the old worker serves it no more */
        put(1, kick);
        poll_worker(0, 2);
        poll_worker(1, 2);
        lab_expect_nothing(&lab, 1);
        put(2, kick);
        CHECK_EQ(reaped(), 0); /* the second half begins */
        put(3, kick);
        poll_worker(0, 2);
        lab_expect_nothing(&lab, 1);
        poll_worker(1, 1);
        for (uint32_t i = 0; i < 4; i++)
            expect(i);
        CHECK_EQ(reaped(), seq);
        lab_expect_nothing(&lab, 1);
        close_and_check();
    }
}

TEST_EACH_RING(a_ring_without_a_kick_moves)
{
    struct lab_conf conf = lab_conf_default(2);
    conf.no_kick = true;
    open_conf(&conf, 2);
    moved(1);
    put(0, false);
    poll_worker(0, 3);
    lab_expect_nothing(&lab, 1);
    poll_worker(1, 1);
    expect(0);
    moved(0);
    put(1, false);
    poll_worker(0, 1);
    expect(1);
    close_and_check();
}

TEST_EACH_RING(a_waiting_frame_goes_on_at_the_new_worker)
{
    enum { FRAMES = 6, ROOM = 2 };
    open_workers(2);
    lab_detach(&lab, 1);
    lab_reset(&lab, 1);
    lab_attach(&lab, 1);
    lab.port[1].conf.backpressure_ms = 1000;
    lab_publish(&lab);
    lab_fill(&lab, 1, ROOM);
    for (uint32_t i = 0; i < FRAMES; i++)
        put(i, true);
    lab_poll(&lab, 3);
    moved(1);
    lab_poll(&lab, 3);
    for (uint32_t i = 0; i < ROOM; i++)
        expect(i);
    lab_fill(&lab, 1, 128);
    CHECK(pvd_kick(lab.port[1].guest, 0) >= 0);
    poll_worker(0, 3);
    lab_expect_nothing(&lab, 1);
    poll_worker(1, 2);
    for (uint32_t i = ROOM; i < FRAMES; i++)
        expect(i);
    CHECK_EQ(lab_sum(lab_counters(&lab, 1).tx_drop), 0);
    close_and_check();
}

TEST_EACH_RING(the_pair_of_a_moved_ring_starts_where_it_went)
{
    open_workers(3);
    moved(2);
    CHECK_EQ(status(0, 0).worker, 0); /* who watches the receive ring's kick is another matter */
    lab_ring_stop(&lab, 0, 0);
    lab.port[0].worker = 1;
    lab_ring_start(&lab, 0, 0);
    CHECK_EQ(status(0, 0).worker, 2);
    put(0, true);
    lab_poll(&lab, 1);
    expect(0);
    close_and_check();
}

/* Port 1 starts anew, on the worker that has the fewest queues. */
static uint32_t
fewest(void)
{
    lab_detach(&lab, 1);
    lab.port[1].worker = -1;
    lab_attach(&lab, 1);
    return status(1, 0).worker;
}

TEST_EACH_RING(a_move_counts_for_who_has_the_fewest_queues)
{
    open_workers(2); /* worker 0 has all four */
    CHECK_EQ(fewest(), 1);
    moved(1);
    CHECK_EQ(fewest(), 0); /* without port 1 each has one; then the first is taken */
    moved(0);
    CHECK_EQ(fewest(), 1);
    lab_close(&lab);
}

/* ---- what else is asked for meanwhile ---- */

TEST_EACH_RING(a_stop_during_a_move_is_carried_out_after_it)
{
    for (uint32_t half = 0; half < 2; half++) {
        open_workers(2);
        put(0, true);
        int64_t seq = half_moved(0, 1);
        if (half == 1)
            CHECK_EQ(reaped(), 0);
        int64_t stop = pvs_ring_stop(lab.port[0].port, TX);
        CHECK(stop > seq);
        CHECK_EQ(pvs_ring_stop(lab.port[0].port, TX), -EALREADY);
        CHECK_EQ(move(0), -EBUSY);
        lab_poll(&lab, 2);
        CHECK_EQ(reaped(), half == 1 ? seq : 0);
        lab_poll(&lab, 2);
        CHECK(status(0, TX).running == (half == 0));
        if (half == 0) {
            CHECK_EQ(reaped(), seq);
            lab_poll(&lab, 2);
        }
        int64_t base = lab_wait(&lab, stop);
        CHECK_EQ(base, lab_base(&lab, 1)); /* the new worker has forwarded it */
        lab_ring_stopped(&lab, 0, TX, base);
        expect(0);
        CHECK(!status(0, TX).running);
        put(1, true);
        lab_poll(&lab, 5);
        lab_expect_nothing(&lab, 1);
        lab_ring_start(&lab, 0, TX);
        lab_poll(&lab, 1);
        expect(1);
        close_and_check();
    }
}

/* A move that has come as far as this: nobody has the ring; the new worker is to have it; it has it and has looked. */
static int64_t
move_part(uint32_t part, uint32_t from, uint32_t to)
{
    int64_t seq = half_moved(from, to);
    if (part > 0)
        CHECK_EQ(reaped(), 0);
    if (part > 1)
        poll_worker(to, 5);
    return seq;
}

TEST_EACH_RING(a_ring_is_disabled_and_enabled_during_a_move)
{
    for (uint32_t part = 0; part < 3; part++) {
        open_workers(2);
        lab_poll(&lab, 5);
        int64_t there = move_part(part, 0, 1);
        int64_t off = pvs_ring_enable(lab.port[0].port, TX, false);
        put(0, false);
        poll_worker(0, 2);
        poll_worker(1, part == 0 ? 2 : 0);
        CHECK_EQ(pvd_tx_reap(lab.port[0].guest, 0), 0); /* nobody looks yet */
        CHECK_EQ(lab_wait(&lab, off), 0);
        lab_poll(&lab, 5);
        CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_queue_disabled], 1);
        CHECK_EQ(lab_wait(&lab, there), 0);
        int64_t back = move_part(part, 1, 0);
        put(1, false);
        int64_t on = pvs_ring_enable(lab.port[0].port, TX, true);
        poll_worker(1, 2);
        poll_worker(0, part == 0 ? 2 : 0);
        lab_expect_nothing(&lab, 1);
        CHECK_EQ(lab_wait(&lab, on), 0);
        CHECK_EQ(lab_wait(&lab, back), 0);
        lab_poll(&lab, 2);
        expect(1);
        lab_expect_nothing(&lab, 1);
        lab_close(&lab);
    }
}

static void
drain(int fd)
{
    uint64_t calls;
    while (read(fd, &calls, sizeof calls) > 0)
        ;
}

TEST_EACH_RING(a_call_that_is_replaced_during_a_move_is_used)
{
    for (uint32_t half = 0; half < 2; half++) {
        open_workers(2);
        struct pvd_vring ring;
        CHECK_EQ(pvd_vring_get(lab.port[0].guest, TX, &ring), 0);
        CHECK_EQ(lab_wait(&lab, pvs_ring_set_call(lab.port[0].port, TX, -1)), 0);
        lab_poll(&lab, 2);
        drain(ring.call_fd);
        half_moved(0, 1);
        if (half == 1)
            CHECK_EQ(reaped(), 0);
        CHECK_EQ(lab_wait(&lab, pvs_ring_set_call(lab.port[0].port, TX, ring.call_fd)), 0);
        lab_poll(&lab, 1);
        struct pollfd called = { .fd = ring.call_fd, .events = POLLIN };
        CHECK_EQ(poll(&called, 1, 0), 1); /* a new one is called once */
        lab_close(&lab);
    }
}

TEST_EACH_RING(a_switch_ends_in_the_middle_of_a_move)
{
    for (uint32_t step = 0; step < 4; step++) {
        struct pvs_switch_conf conf = { .n_workers = 2, .cpus = { -1, -1 } };
        struct pvs_ring_conf ring;
        pvs_port *port;
        pvs_memory *old;
        open_workers(1);
        pvs_switch *other;
        CHECK_EQ(pvs_switch_create(&conf, &other), 0);
        CHECK_EQ(pvs_port_create(other, 1, &port), 0);
        lab_detach(&lab, 0);
        CHECK_EQ(pvs_port_set_memory(port, lab_map(port, lab.port[0].guest), &old), 0);
        ring = lab_ring_conf(&lab, 0, TX);
        CHECK(pvs_ring_start(port, TX, &ring) > 0);
        for (uint32_t w = 0; w < 2; w++)
            CHECK(pvs_poll_once(other, w, 1) >= 0);
        uint64_t seq;
        int64_t result;
        CHECK_EQ(pvs_reap(other, &seq, &result, 1), 1);
        CHECK(pvs_ring_move(port, TX, 1) > 0);
        for (uint32_t w = 0; step > 0 && w < 2; w++)
            CHECK(pvs_poll_once(other, w, 2) >= 0);
        if (step > 1)
            CHECK_EQ(pvs_reap(other, &seq, &result, 1), 0);
        if (step > 2)
            CHECK(pvs_ring_stop(port, TX) > 0);
        pvs_switch_destroy(other);
        lab_close(&lab);
    }
}

/* ---- what is refused, and does no harm ---- */

TEST_EACH_RING(moves_that_make_no_sense_are_refused)
{
    open_workers(2);
    pvs_port *port = lab.port[0].port;
    CHECK_EQ(pvs_ring_move(port, 0, 1), -EINVAL); /* a receive ring is everybody's */
    CHECK_EQ(pvs_ring_move(port, 2, 1), -EINVAL);
    CHECK_EQ(pvs_ring_move(port, TX, 2), -EINVAL);
    CHECK_EQ(pvs_uplink_move(port, 0, 1), -EINVAL);
    CHECK_EQ(move(0), -EALREADY);
    int64_t seq = move(1);
    CHECK(seq > 0);
    CHECK_EQ(move(1), -EALREADY);
    CHECK_EQ(pvs_port_destroy(port), -EBUSY);
    CHECK_EQ(lab_wait(&lab, seq), 0);
    lab_ring_stop(&lab, 0, TX);
    CHECK_EQ(move(0), -EINVAL);
    struct pvs_ring_conf conf = lab_ring_conf(&lab, 0, TX);
    int64_t start = pvs_ring_start(port, TX, &conf);
    CHECK_EQ(move(1), -EBUSY);
    CHECK_EQ(lab_wait(&lab, start), 0);
    lab.port[0].running[TX] = true;
    lab_close(&lab);
}

TEST_EACH_RING(a_kick_that_cannot_be_watched_there_refuses_the_move)
{
    open_workers(2);
    lab_ring_stop(&lab, 0, TX);
    struct pvs_ring_conf conf = lab_ring_conf(&lab, 0, TX);
    int kept = dup(conf.kick_fd);
    conf.kick_fd = dup(kept);
    CHECK(conf.kick_fd >= 0);
    CHECK_EQ(lab_wait(&lab, pvs_ring_start(lab.port[0].port, TX, &conf)), 0);
    lab.port[0].running[TX] = true;
    close(conf.kick_fd);
    CHECK_EQ(move(1), -EBADF);
    lab_poll(&lab, 5);
    put(0, true);
    poll_worker(1, 2);
    lab_expect_nothing(&lab, 1);
    poll_worker(0, 2);
    expect(0);
    CHECK_EQ(dup2(kept, conf.kick_fd), conf.kick_fd);
    moved(1);
    close(kept);
    lab_ring_stop(&lab, 0, TX);
    close(conf.kick_fd);
    close_and_check();
}

TEST_EACH_RING(too_many_commands_refuse_a_move_and_nothing_has_changed)
{
    open_workers(2);
    for (uint32_t i = 0; i < PVS_COMMANDS; i++)
        CHECK(pvs_ring_enable(lab.port[1].port, 0, true) > 0);
    CHECK_EQ(move(1), -EAGAIN);
    lab_poll(&lab, 2 * PVS_COMMANDS / 32);
    while (reaped() != 0)
        ;
    moved(1);
    close_and_check();
}

TEST_EACH_RING(a_broken_ports_ring_moves_and_stays_alone)
{
    open_workers(2);
    lab_post_bad(&lab, 0, TX);
    CHECK_EQ(pvd_kick_force(lab.port[0].guest, TX), 0);
    lab_poll(&lab, 2);
    CHECK(pvs_port_broken(lab.port[0].port) != 0);
    moved(1);
    CHECK_EQ(pvd_kick_force(lab.port[0].guest, TX), 0);
    lab_poll(&lab, 5);
    CHECK_EQ(lab_counters(&lab, 0).value[PVS_C_rx_packets], 0);
    lab_close(&lab);
}

/* ---- what it costs ---- */

TEST_EACH_RING(cycles_are_counted_where_frames_come_from)
{
    open_workers(2);
    CHECK_EQ(lab_uplink_add(&lab, PVS_TAP, 1), UP);
    lab_know_all(&lab);
    lab_publish(&lab);
    lab_fill(&lab, 1, 128);
    lab_poll(&lab, 5);
    uint64_t ring = status(0, TX).cycles, up = lab_uplink_status(&lab, UP, 0).cycles;
    for (uint32_t i = 0; i < 3; i++) {
        put(i, true);
        lab_poll(&lab, 2);
        CHECK(status(0, TX).cycles > ring);
        ring = status(0, TX).cycles;
        CHECK_EQ(lab_uplink_status(&lab, UP, 0).cycles, up);
        lab_poll(&lab, 5);
        CHECK_EQ(status(0, TX).cycles, ring);
        if (i == 1)
            moved(1);
        CHECK_EQ(status(0, TX).cycles, ring);
    }
    lab_send_down(&lab, 1, 1);
    lab_poll(&lab, 2);
    CHECK(lab_uplink_status(&lab, UP, 0).cycles > up);
    CHECK_EQ(status(0, TX).cycles, ring);
    CHECK_EQ(status(0, 0).cycles, 0);
    CHECK_EQ(status(1, 0).cycles, 0); /* what a receiver gets is its sender's work */
    lab_close(&lab);
}
