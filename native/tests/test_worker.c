/* SPDX-License-Identifier: Apache-2.0 */
/* test_worker.c - the polled set and the three ways of polling, step by step (test_thread.c has the threads). */
#include <string.h>

#include "lab.h"
#include "switch.h"

static struct lab lab;
static uint8_t frame[60];

static void
open_polling(enum pvs_polling polling, uint32_t poll_us, bool no_kick)
{
    struct lab_conf conf = lab_conf_default(2);
    conf.polling = polling;
    conf.poll_us = poll_us;
    conf.no_kick = no_kick;
    lab_open(&lab, &conf);
    lab_fill(&lab, 1, 200);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), sizeof frame, 0);
}

static uint32_t
active(void)
{
    return lab.sw->worker[0]->n_active;
}

static void
step(uint64_t ns)
{
    lab.now_ns += ns;
    CHECK(pvs_poll_once(lab.sw, 0, lab.now_ns) >= 0);
}

TEST_EACH_RING(idle_rings_leave_the_set_after_the_polling_time)
{
    open_polling(PVS_POLL_ADAPTIVE, 1000, false);
    lab_send(&lab, 0, frame, sizeof frame);
    step(1000000);
    step(900000);
    CHECK(active() >= 1);
    step(200000);
    step(1);
    CHECK_EQ(active(), 0);
    CHECK_EQ(lab_kick_event(&lab, 0, 1), lab_base(&lab, 1)); /* its kick is armed for the next chain */
    lab_close(&lab);
}

TEST_EACH_RING(a_kick_brings_a_ring_back)
{
    struct pvs_ring_status status;
    open_polling(PVS_POLL_ADAPTIVE, 50, false);
    lab_poll(&lab, 5);
    CHECK_EQ(active(), 0);
    CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, sizeof frame, NULL), 0);
    lab_poll(&lab, 5);
    lab_expect_nothing(&lab, 1); /* not looked at without a kick */
    CHECK_EQ(pvd_kick(lab.port[0].guest, 1), 1);
    lab_poll(&lab, 1);
    lab_expect(&lab, 1, frame, sizeof frame);
    CHECK_EQ(active(), 1);
    CHECK_EQ(pvs_ring_status(lab.port[0].port, 1, &status), 0);
    CHECK_EQ(status.kicks, 1);
    lab_close(&lab);
}

TEST_EACH_RING(a_busy_ring_wants_no_kicks)
{
    open_polling(PVS_POLL_ADAPTIVE, 100000, false);
    int kicks = 0;
    for (int i = 0; i < 100; i++) {
        CHECK(pvd_tx_reap(lab.port[0].guest, 0) >= 0);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, sizeof frame, NULL), 0);
        kicks += pvd_kick(lab.port[0].guest, 1);
        lab_poll(&lab, 1);
        lab_expect(&lab, 1, frame, sizeof frame);
    }
    CHECK(kicks <= 1);
    lab_close(&lab);
}

TEST_EACH_RING(interrupt_mode_rests_at_once)
{
    open_polling(PVS_POLL_INTERRUPT, 1000, false);
    step(1);
    step(1);
    CHECK_EQ(active(), 0);
    for (int i = 0; i < 3; i++) {
        CHECK(pvd_tx_reap(lab.port[0].guest, 0) >= 0);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, sizeof frame, NULL), 0);
        CHECK_EQ(pvd_kick(lab.port[0].guest, 1), 1);
        step(100000);
        lab_expect(&lab, 1, frame, sizeof frame);
        step(1);
        CHECK_EQ(active(), 0);
    }
    lab_close(&lab);
}

TEST_EACH_RING(busy_mode_keeps_rings_much_longer)
{
    open_polling(PVS_POLL_BUSY, 0, false);
    lab_poll(&lab, 100);
    CHECK_EQ(active(), 2);
    for (int i = 0; i < 20; i++)
        step(10000000);
    CHECK_EQ(active(), 0);
    lab_close(&lab);
}

TEST_EACH_RING(rings_without_a_kick_stay_and_are_polled)
{
    open_polling(PVS_POLL_ADAPTIVE, 50, true);
    lab_poll(&lab, 50);
    CHECK_EQ(active(), 2);
    CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, sizeof frame, NULL), 0);
    lab_poll(&lab, 1);
    lab_expect(&lab, 1, frame, sizeof frame);
    lab_close(&lab);
}

TEST_EACH_RING(stopped_and_broken_rings_leave_the_set)
{
    open_polling(PVS_POLL_ADAPTIVE, 1000000, false);
    CHECK_EQ(active(), 2);
    lab_ring_stop(&lab, 0, 1);
    CHECK_EQ(active(), 1);
    lab_post_bad(&lab, 1, 1);
    lab_poll(&lab, 3);
    CHECK_EQ(active(), 0);
    lab_close(&lab);
}

TEST_EACH_RING(enable_looks_at_a_resting_ring_without_a_kick)
{
    open_polling(PVS_POLL_ADAPTIVE, 50, false);
    lab_poll(&lab, 5);
    CHECK_EQ(active(), 0);
    CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, sizeof frame, NULL), 0);
    CHECK_EQ(lab_wait(&lab, pvs_ring_enable(lab.port[0].port, 1, true)), 0);
    lab_poll(&lab, 1);
    lab_expect(&lab, 1, frame, sizeof frame);
    lab_close(&lab);
}

TEST_EACH_RING(a_clock_that_stands_still_or_goes_back_does_no_harm)
{
    open_polling(PVS_POLL_ADAPTIVE, 50, false);
    for (int i = 0; i < 100; i++) {
        CHECK(pvd_tx_reap(lab.port[0].guest, 0) >= 0);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, sizeof frame, NULL), 0);
        pvd_kick_force(lab.port[0].guest, 1);
        CHECK(pvs_poll_once(lab.sw, 0, lab.now_ns - (uint64_t)(i % 3) * 70000) >= 0);
    }
    lab_poll(&lab, 5);
    for (int i = 0; i < 100; i++)
        lab_expect(&lab, 1, frame, sizeof frame);
    lab_close(&lab);
}

TEST_EACH_RING(perf_counts_bursts)
{
    struct pvs_perf before, perf;
    open_polling(PVS_POLL_ADAPTIVE, 50, false);
    lab_poll(&lab, 3);
    CHECK_EQ(pvs_worker_perf(lab.sw, 1, &perf), -22 /* EINVAL */);
    CHECK_EQ(pvs_worker_perf(lab.sw, 0, &before), 0);
    for (int i = 0; i < 72; i++)
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, sizeof frame, NULL), 0);
    pvd_kick(lab.port[0].guest, 1);
    lab_poll(&lab, 3);
    CHECK_EQ(pvs_worker_perf(lab.sw, 0, &perf), 0);
    CHECK_EQ(perf.packets - before.packets, 72);
    CHECK_EQ(perf.bursts - before.bursts, 2);
    CHECK_EQ(perf.burst_histogram[64] - before.burst_histogram[64], 1);
    CHECK_EQ(perf.burst_histogram[8] - before.burst_histogram[8], 1);
    CHECK_EQ(perf.kicks - before.kicks, 1);
    uint64_t calls = 0;
    for (uint32_t ring = 0; ring < 4; ring++) {
        struct pvs_ring_status status;
        CHECK_EQ(pvs_ring_status(lab.port[ring / 2].port, ring % 2, &status), 0);
        calls += status.notifications;
    }
    CHECK(calls != 0);
    CHECK_EQ(perf.notifications, calls);
    CHECK(!perf.sleeping);
    lab_close(&lab);
}
