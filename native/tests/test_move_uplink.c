/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_move_uplink.c - an uplink's queue goes from one worker to another, step by step, with the frames that it has fetched
 * (test_move.c has the rings of guests). On sockets in the place of the kernel's descriptors (uplink_lab.h).
 */
#include <errno.h>

#include "uplink_lab.h"

enum { UP };

static const enum pvs_uplink_kind kinds[] = { PVS_TAP, PVS_PACKET, PVS_FILE };
static struct lab lab;

/* Guest 1 has no buffers yet, and what is for it waits; guest 0 only sends. */
static void
open_uplink(enum pvs_uplink_kind kind)
{
    struct lab_conf conf = lab_conf_default(2);
    conf.workers = 2;
    lab_open(&lab, &conf);
    lab.port[1].conf.backpressure_ms = 1000;
    CHECK_EQ(lab_uplink_add(&lab, kind, 1), UP);
    lab_know_all(&lab);
}

static void
poll_worker(uint32_t worker, int rounds)
{
    for (int i = 0; i < rounds; i++) {
        lab.now_ns += LAB_STEP_NS;
        CHECK(pvs_poll_once(lab.sw, worker, lab.now_ns) >= 0);
    }
}

static void
uplink_moved(uint32_t worker)
{
    CHECK_EQ(lab_wait(&lab, pvs_uplink_move(lab.uplink[UP].port, 0, worker)), 0);
    CHECK_EQ(lab_uplink_status(&lab, UP, 0).worker, worker);
}

TEST_EACH_RING(an_uplinks_queue_moves_with_the_frames_that_it_has_fetched)
{
    enum { FRAMES = 20, ROOM = 3 };
    for (int k = 0; k < 3; k++) {
        open_uplink(kinds[k]);
        uint32_t from = lab_uplink_status(&lab, UP, 0).worker, to = 1 - from;
        CHECK_EQ(pvs_uplink_move(lab.uplink[UP].port, 1, to), -EINVAL);
        CHECK_EQ(pvs_uplink_move(lab.uplink[UP].port, 0, from), -EALREADY);
        lab_fill(&lab, 1, ROOM);
        for (uint32_t i = 0; i < FRAMES; i++)
            lab_send_down(&lab, 1, i);
        lab_poll(&lab, 3);
        uplink_moved(to);
        lab_send_down(&lab, 1, FRAMES);
        lab_poll(&lab, 3);
        for (uint32_t i = 0; i < ROOM; i++)
            lab_expect_down(&lab, 1, i);
        lab_fill(&lab, 1, 128);
        CHECK(pvd_kick(lab.port[1].guest, 0) >= 0);
        poll_worker(from, 3);
        lab_expect_nothing(&lab, 1);
        poll_worker(to, 3);
        for (uint32_t i = ROOM; i <= FRAMES; i++)
            lab_expect_down(&lab, 1, i);
        CHECK_EQ(lab_sum(lab_uplink_counters(&lab, UP).rx_drop), 0);
        lab_check_uplink(&lab, UP);
        lab_close(&lab);
    }
}

TEST_EACH_RING(a_moved_uplink_wakes_its_new_worker)
{
    for (int k = 0; k < 3; k++) {
        open_uplink(kinds[k]);
        lab_fill(&lab, 1, 128);
        for (uint32_t i = 0; i < 6; i++) {
            uint32_t from = lab_uplink_status(&lab, UP, 0).worker;
            uplink_moved(1 - from);
            lab_poll(&lab, 3);
            lab_send_down(&lab, 1, i);
            poll_worker(from, 3);
            lab_expect_nothing(&lab, 1);
            poll_worker(1 - from, 1);
            lab_expect_down(&lab, 1, i);
            lab_send_up(&lab, 0, i);
            lab_poll(&lab, 2);
            lab_expect_up(&lab, 0, i);
        }
        lab_check_uplink(&lab, UP);
        lab_close(&lab);
    }
}

TEST_EACH_RING(an_uplinks_stop_during_a_move_counts_what_waited)
{
    enum { FRAMES = 5 };
    open_uplink(PVS_TAP);
    uint32_t from = lab_uplink_status(&lab, UP, 0).worker;
    for (uint32_t i = 0; i < FRAMES; i++)
        lab_send_down(&lab, 1, i);
    lab_poll(&lab, 3);
    int64_t seq = pvs_uplink_move(lab.uplink[UP].port, 0, 1 - from);
    CHECK(seq > 0);
    int64_t stop = pvs_uplink_stop(lab.uplink[UP].port, 0);
    CHECK_EQ(lab_wait(&lab, stop), 0);
    lab.uplink[UP].running[0] = false;
    CHECK_EQ(lab_wait(&lab, seq), 0);
    CHECK_EQ(lab_uplink_counters(&lab, UP).rx_drop[PVS_DROP_link_down], FRAMES);
    lab_close(&lab);
}
