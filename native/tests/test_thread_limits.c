/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_thread_limits.c - what several workers share of a port: its buckets, its rate, and how many addresses it may have. Two of them
 * serve a queue pair each of one guest, all at once.
 */
#include <sched.h>
#include <string.h>

#include "lab.h"
#include "policy.h"

enum { WORKERS = 2, PAIRS = 2, LEN = 200, FRAMES = 3000, ALLOWED = 100, FROM = 0, TO = 1, PORTS = 2 };

static struct lab lab;

static void
open_threads(void)
{
    struct lab_conf conf = lab_conf_default(PORTS);
    conf.workers = WORKERS;
    conf.threads = true;
    conf.guest.queue_pairs = PAIRS;
    lab_open(&lab, &conf);
    for (uint32_t pair = 0; pair < PAIRS; pair++) { /* each worker has one */
        struct pvs_ring_status status;
        uint32_t ring = 2 * pair + 1;
        CHECK(lab_ring_stop(&lab, FROM, ring) >= 0);
        lab.port[FROM].worker = (int32_t)pair;
        lab_ring_start(&lab, FROM, ring);
        CHECK_EQ(pvs_ring_status(lab.port[FROM].port, ring, &status), 0);
        CHECK_EQ(status.worker, pair);
    }
}

static uint64_t
taken(void)
{
    return lab_counters(&lab, FROM).value[PVS_C_rx_packets];
}

/* Frames by both pairs; the receiver takes what there is, and gives its buffers back. Until all are taken. */
static void
send_all(uint64_t dst, bool many_senders)
{
    static uint8_t frame[LEN], got[PVS_MAX_FRAME];
    uint64_t before = taken(), deadline = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL;
    uint32_t sent = 0;

    while (taken() - before < FRAMES) {
        for (uint32_t pair = 0; pair < PAIRS && sent < FRAMES; pair++) {
            lab_frame(frame, dst, LAB_MAC(many_senders ? 0x1000 + sent : 0), LEN, sent);
            CHECK(pvd_tx_reap(lab.port[FROM].guest, pair) >= 0);
            if (pvd_tx(lab.port[FROM].guest, pair, NULL, frame, LEN, NULL) == 0)
                sent++;
            CHECK(pvd_kick(lab.port[FROM].guest, 2 * pair + 1) >= 0);
            while (pvd_rx(lab.port[TO].guest, pair, got, sizeof got, NULL) >= 0)
                ;
            CHECK(pvd_rx_fill(lab.port[TO].guest, pair, 200, NULL) >= 0);
        }
        CHECK(lab_clock_ns() < deadline);
        sched_yield();
    }
}

/* Between looking and charging the other worker may do the same: a frame too many for each, no more. */
TEST_EACH_RING(workers_share_a_bucket)
{
    for (uint32_t storm = 0; storm < 2; storm++) {
        open_threads();
        struct pvs_limit *limit =
            storm ? &lab.port[FROM].conf.storm[PVS_STORM_BROADCAST] : &lab.port[FROM].conf.policing;
        *limit = (struct pvs_limit){ .per_second = 1, .depth = ALLOWED * (storm ? 1 : LEN) };
        lab_publish(&lab);
        uint64_t begun = lab_clock_ns();
        send_all(LAB_BROADCAST, false);
        uint64_t seconds = (lab_clock_ns() - begun) / 1000000000 + 1;
        struct lab_counters c = lab_counters(&lab, FROM);
        uint64_t passed = FRAMES - c.rx_drop[storm ? PVS_DROP_storm_control : PVS_DROP_policed];
        CHECK(passed >= ALLOWED && passed <= ALLOWED + WORKERS - 1 + (storm ? seconds : 1));
        lab_close(&lab);
    }
}

TEST_EACH_RING(workers_share_a_shaped_port)
{
    open_threads();
    lab.port[TO].conf.shaping = (struct pvs_limit){ .per_second = 2000000, .depth = 10 * LEN };
    lab_publish(&lab);
    uint64_t begun = lab_clock_ns();
    for (uint32_t i = 0; i < 3; i++) {
        send_all(LAB_BROADCAST, false);
        lab.port[TO].conf.shaping.per_second += 500000; /* while frames wait */
        lab_publish(&lab);
    }
    uint64_t took = lab_clock_ns() - begun;
    struct lab_counters c = lab_counters(&lab, TO);
    CHECK(c.value[PVS_C_tx_bytes] <= 3000000 / 1000 * (took / 1000000 + 1) + 3 * 11 * LEN + 3000000 / 10);
    lab_close(&lab); /* and some wait until the end */
}

TEST_EACH_RING(workers_learn_no_more_than_a_port_may_have)
{
    struct pvs_fdb_item item[64];
    uint32_t cursor = 0;

    for (uint32_t round = 0; round < 3; round++) {
        open_threads();
        lab.port[FROM].conf.secure = true;
        lab.port[FROM].conf.max_macs = 5;
        lab_publish(&lab);
        send_all(LAB_BROADCAST, true);
        CHECK_EQ(pvs_fdb_dump(lab.fdb, lab_clock_ns(), &cursor, item, 64), 5);
        CHECK(lab_counters(&lab, FROM).rx_drop[PVS_DROP_port_security] > FRAMES - 100);
        lab_close(&lab);
    }
}
