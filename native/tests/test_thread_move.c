/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_thread_move.c - queues go from worker to worker, again and again, while frames flow by them and by others. Runs
 * under ThreadSanitizer too. Nothing here depends on speed.
 *
 * How it works: PVS_TEST_MOVES moves happen (400 by default), chosen by PVS_TEST_SEED, several at a time, now and then with
 * a stop, a new state or a new call descriptor on top. Every receiver has backpressure with a bound that is never reached,
 * so that at the end each frame that was sent has arrived, once, whole, and in the order of its flow (traffic.h).
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "traffic.h"
#include "uplink_lab.h"

enum { WORKERS = 3, MOVES = 400, AT_ONCE = 4, BOUND_MS = 60000, UP = 0, FAR_LEN = 200 };

static struct lab lab;
static uint64_t seed;

static uint32_t
any(uint32_t below)
{
    return lab_random(&seed, below);
}

static uint32_t
number_from(const char *name, uint32_t otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? (uint32_t)strtoul(text, NULL, 10) : otherwise;
}

static void
pause_a_little(void)
{
    nanosleep(&(struct timespec){ .tv_nsec = any(500000) }, NULL);
}

static void
open_workers(uint32_t ports, enum pvs_polling polling)
{
    struct lab_conf conf = lab_conf_default(ports);

    conf.threads = true;
    conf.workers = WORKERS;
    conf.polling = polling;
    conf.poll_us = 20;
    conf.bridge.flood_unknown = false;
    conf.guest.queue_size = 64;
    for (uint32_t i = 0; i < ports; i++)
        conf.pairs[i] = 1 + i % 2;
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < ports; i++)
        lab.port[i].conf.backpressure_ms = BOUND_MS;
}

/* ---- guests ---- */

/* What a front end may ask for while a ring moves. The number of a command, or 0. */
static int64_t
something_else(pvs_port *port, uint32_t port_number, uint32_t ring, bool *stopped)
{
    int64_t seq = 0;

    switch (any(8)) {
    case 0:
        *stopped = true;
        seq = pvs_ring_stop(port, ring);
        break;
    case 1:
        seq = pvs_ring_set_call(port, ring, lab_ring_conf(&lab, port_number, ring).call_fd);
        break;
    case 2:
        seq = pvs_ring_enable(port, ring, true);
        break;
    default:
        return 0;
    }
    CHECK(seq > 0);
    return seq;
}

static void
move_some(void)
{
    struct {
        uint32_t port, ring;
        int64_t move, other, result;
        bool stopped;
    } at[AT_ONCE];
    uint32_t n = 1 + any(AT_ONCE);

    for (uint32_t i = 0; i < n; i++) {
        uint32_t port = (any(2) + 2 * i) % lab.conf.n_ports; /* each once */
        uint32_t ring = 1 + 2 * any(pvd_n_rings(lab.port[port].guest) / 2);
        pvs_port *handle = lab.port[port].port;
        at[i].port = port;
        at[i].ring = ring;
        at[i].stopped = false;
        if (any(4) == 0) /* in the same round as the first half, perhaps */
            CHECK(pvs_ring_set_call(handle, ring, lab_ring_conf(&lab, port, ring).call_fd) > 0);
        at[i].move = pvs_ring_move(handle, ring, any(WORKERS));
        CHECK(at[i].move > 0 || at[i].move == -EALREADY);
        if (any(2) == 0)
            pause_a_little();
        at[i].other = something_else(handle, port, ring, &at[i].stopped);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (at[i].other != 0)
            CHECK((at[i].result = lab_wait(&lab, at[i].other)) >= 0);
        if (at[i].stopped) {
            lab_ring_stopped(&lab, at[i].port, at[i].ring, at[i].result);
            lab_ring_start(&lab, at[i].port, at[i].ring);
        }
        if (at[i].move > 0)
            CHECK_EQ(lab_wait(&lab, at[i].move), 0);
    }
}

static uint64_t
in_flight(void)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < lab.conf.n_ports; i++) {
        struct traffic_guest *guest = traffic_take(i);
        traffic_collect(guest);
        for (uint32_t ring = 1; ring < pvd_n_rings(lab.port[i].guest); ring += 2)
            n += lab_driver(&lab, i, ring).in_flight;
        traffic_give(guest);
    }
    return n;
}

/* Nothing new is sent; wait until the rings are empty, and until what was in them has been shown to its receivers. */
static void
come_to_rest(void)
{
    uint64_t deadline = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL;

    traffic_set(false, false);
    while (in_flight() != 0) {
        CHECK(lab_clock_ns() < deadline);
        pause_a_little();
    }
    lab_publish(&lab);
    CHECK_EQ(in_flight(), 0);
}

/* Each number of each stream has been heard where it was sent to. */
static void
all_has_arrived(void)
{
    uint64_t frames = 0;

    for (uint32_t from = 0; from < lab.conf.n_ports; from++) {
        struct traffic_guest *sender = traffic_take(from);
        traffic_give(sender); /* nothing is sent any more */
        for (uint32_t to = 0; to < lab.conf.n_ports; to++) {
            struct traffic_guest *receiver = traffic_take(to);
            for (uint32_t flow = 0; flow < TRAFFIC_FLOWS; flow++) {
                const struct traffic_stream *s = &receiver->stream[from][to][flow];
                uint32_t sent = sender->sent[to][flow], heard = 0;
                for (uint32_t word = 0; word < s->words; word++)
                    heard += (uint32_t)__builtin_popcountll(s->heard[word]);
                CHECK_EQ(heard, sent);
                frames += sent;
            }
            traffic_give(receiver);
        }
        CHECK_EQ(lab_sum(lab_counters(&lab, from).tx_drop), 0);
    }
    printf("  %" PRIu64 " frames\n", frames);
    CHECK(frames > 0);
}

/* What the queues have cost is no more than the workers were busy. */
static void
costs_add_up(void)
{
    uint64_t queues = 0, busy = 0;
    struct pvs_ring_status ring;
    struct pvs_perf perf;

    for (uint32_t i = 0; i < lab.conf.n_ports; i++) {
        for (uint32_t r = 1; r < pvd_n_rings(lab.port[i].guest); r += 2) {
            CHECK_EQ(pvs_ring_status(lab.port[i].port, r, &ring), 0);
            queues += ring.cycles;
        }
    }
    for (uint32_t w = 0; w < WORKERS; w++) {
        CHECK_EQ(pvs_worker_perf(lab.sw, w, &perf), 0);
        busy += perf.busy_cycles;
    }
    CHECK(queues > 0 && queues <= busy);
}

static void
rings_move(enum pvs_polling polling)
{
    uint32_t moves = number_from("PVS_TEST_MOVES", MOVES);

    seed = number_from("PVS_TEST_SEED", 7 + (uint32_t)polling);
    alarm(60 + moves / 5); /* in place of the runner's */
    open_workers(LAB_PORTS, polling);
    lab_know_all(&lab);
    lab_publish(&lab);
    traffic_start(&lab, 2, seed);
    traffic_set(true, false);
    for (uint32_t i = 0; i < moves; i += AT_ONCE) {
        move_some();
        pause_a_little();
    }
    come_to_rest();
    all_has_arrived();
    costs_add_up();
    traffic_end();
    lab_check_sums(&lab);
    lab_close(&lab);
}

TEST_EACH_RING(thread_rings_move_and_nothing_is_lost)
{
    rings_move(PVS_POLL_ADAPTIVE);
}

TEST_EACH_RING(thread_rings_move_by_their_kicks_alone)
{
    rings_move(PVS_POLL_INTERRUPT);
}

/* ---- uplinks ---- */

static void
far_frame(uint8_t *frame, uint32_t number)
{
    lab_frame(frame, LAB_MAC(0), LAB_FAR(UP), FAR_LEN, number);
}

/* The far host sends what the socket takes, up to `limit`; how many it has sent. */
static uint32_t
far_sends(uint32_t sent, uint32_t limit)
{
    uint8_t record[10 + FAR_LEN] = { 0 };

    for (; sent < limit; sent++) {
        far_frame(record + 10, sent);
        if (write(lab.uplink[UP].wire[0], record, sizeof record) < 0) {
            CHECK_EQ(errno, EAGAIN);
            break;
        }
    }
    return sent;
}

static uint32_t
guest_takes(uint32_t arrived)
{
    uint8_t got[FAR_LEN], frame[FAR_LEN];
    int n;

    while ((n = pvd_rx(lab.port[0].guest, 0, got, sizeof got, NULL)) != -EAGAIN) {
        CHECK_EQ(n, FAR_LEN);
        far_frame(frame, arrived++);
        CHECK(memcmp(got, frame, FAR_LEN) == 0); /* the next one, and no other */
    }
    lab_fill(&lab, 0, 8); /* little room: some are always waiting in the uplink's buffers */
    CHECK(pvd_kick(lab.port[0].guest, 0) >= 0);
    return arrived;
}

static void
uplink_moves(enum pvs_uplink_kind kind)
{
    uint32_t moves = number_from("PVS_TEST_MOVES", MOVES), sent = 0, arrived = 0, done = 0;
    uint64_t deadline = lab_clock_ns() + 3 * LAB_DEADLINE_MS * 1000000ULL;
    int64_t seq = 0;

    seed = number_from("PVS_TEST_SEED", 9);
    alarm(60 + moves / 5);
    open_workers(1, PVS_POLL_ADAPTIVE);
    CHECK_EQ(lab_uplink_add(&lab, kind, 1), UP);
    lab_know_all(&lab);
    while (done < moves || arrived < sent) {
        CHECK(lab_clock_ns() < deadline);
        sent = far_sends(sent, done < moves ? sent + 16 : sent);
        if (seq == 0 && done++ < moves) {
            seq = pvs_uplink_move(lab.uplink[UP].port, 0, any(WORKERS));
            CHECK(seq > 0 || seq == -EALREADY);
        }
        arrived = guest_takes(arrived);
        if (any(4) == 0) {
            CHECK(seq <= 0 || lab_wait(&lab, seq) == 0);
            seq = 0;
        } else {
            sched_yield();
        }
    }
    CHECK(pvs_uplink_move(lab.uplink[UP].port, 0, (lab_uplink_status(&lab, UP, 0).worker + 1) % WORKERS) > 0);
    lab_uplink_stop(&lab, UP, 0);
    CHECK_EQ(lab_sum(lab_uplink_counters(&lab, UP).rx_drop), 0);
    CHECK_EQ(lab_sum(lab_counters(&lab, 0).tx_drop), 0);
    CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_rx_packets], sent);
    lab_check_uplink(&lab, UP);
    lab_close(&lab);
}

TEST_EACH_RING(thread_a_tap_moves_and_nothing_is_lost)
{
    uplink_moves(PVS_TAP);
}

TEST_EACH_RING(thread_a_packet_socket_moves_and_nothing_is_lost)
{
    uplink_moves(PVS_PACKET);
}
