/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_thread_tunnel.c - tunnels between workers that run: readers of remotes and VTEPs against who changes them, and traffic against
 * all that control does meanwhile. Runs under ThreadSanitizer too. Nothing here depends on speed.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "parse.h"
#include "tunnel_lab.h"
#include "vtep.h"

enum { VNI = 5001, LEN = 200, NUMBER = 50, BOUND_MS = 60000 };

/* ---- the table of VTEPs alone ---- */

enum { HOSTS = 400, TURNS = 300 };

static struct {
    struct pvs_vteps *vteps;
    _Atomic bool end;
    /* what pvs_sync does: a reader is at no entry while it counts; control waits until both have */
    _Atomic uint32_t passed[2];
    uint32_t found[2];
} v;

static void
host_address(uint32_t host, uint8_t *address)
{
    memset(address, 0, PVS_ADDRESS);
    memcpy(address + 10, (const uint8_t[]){ 0xff, 0xff, 10, 0 }, 4);
    address[14] = (uint8_t)(host >> 8);
    address[15] = (uint8_t)host;
}

static void *
read_vteps(void *arg)
{
    uint32_t me = (uint32_t)(uintptr_t)arg;
    uint64_t seed = me + 1;
    uint8_t address[PVS_ADDRESS];

    while (!atomic_load(&v.end)) {
        for (uint32_t i = 0; i < 50; i++) {
            host_address(lab_random(&seed, HOSTS), address);
            uint16_t number = pvs_vtep_seen(v.vteps, address, i);
            if (number == 0)
                number = pvs_vtep_learn(v.vteps, address, i);
            if (number == 0)
                continue;
            v.found[me]++;
            CHECK(memcmp(pvs_vtep_address(v.vteps, number), address, PVS_ADDRESS) == 0);
        }
        atomic_fetch_add(&v.passed[me], 1);
    }
    return NULL;
}

static void
grace_period(void)
{
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t before = atomic_load(&v.passed[i]);
        while (atomic_load(&v.passed[i]) == before)
            sched_yield();
    }
}

TEST(thread_tunnel_vteps_come_and_go_under_their_readers)
{
    pthread_t thread[2];
    uint64_t seed = 77;
    uint8_t address[PVS_ADDRESS];

    CHECK_EQ(pvs_vteps_create(1, &v.vteps), 0);
    /* all numbers but few are taken: those that are freed are used again */
    for (uint32_t i = 0; i < PVS_MAX_VTEPS - 1 - HOSTS / 2; i++) {
        uint32_t number;
        host_address(HOSTS + i, address);
        CHECK_EQ(pvs_vteps_add(v.vteps, address, &number), 0);
    }
    for (uintptr_t i = 0; i < 2; i++)
        CHECK_EQ(pthread_create(&thread[i], NULL, read_vteps, (void *)i), 0);
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        uint32_t gone[20], n = 0, number;
        for (uint32_t i = 0; i < 20; i++) {
            host_address(lab_random(&seed, HOSTS), address);
            if (pvs_vteps_add(v.vteps, address, &number) == 0 && pvs_vteps_unlink(v.vteps, number) == 0)
                gone[n++] = number;
        }
        grace_period();
        for (uint32_t i = 0; i < n; i++)
            CHECK_EQ(pvs_vteps_free(v.vteps, gone[i]), 0);
    }
    atomic_store(&v.end, true);
    for (uint32_t i = 0; i < 2; i++)
        CHECK_EQ(pthread_join(thread[i], NULL), 0);
    CHECK(v.found[0] != 0 && v.found[1] != 0);
    pvs_vteps_destroy(v.vteps);
}

/* ---- everything ---- */

enum { GUESTS = 3, RECEIVER = 2, SENDERS = 2 };

static struct tunnel_lab t;

/* How far each sender is, and what of it has arrived: guests 0 and 1, then far VTEPs 0 and 1. */
static struct {
    uint32_t sent, arrived, last;
} at[2 * SENDERS];

#define BEHIND(i) LAB_MAC(0x100 + (i))

static void
open_with(uint32_t backpressure_ms)
{
    struct lab_conf lab = lab_conf_default(GUESTS);
    struct tunnel_lab_conf conf = { 0 };

    lab.workers = 2;
    lab.threads = true;
    lab.poll_us = 20;
    CHECK(tunnel_lab_open(&t, &lab, &conf));
    for (uint32_t i = 0; i < SENDERS; i++) {
        lab_detach(&t.lab, i);
        t.lab.port[i].worker = (int32_t)i;
        lab_attach(&t.lab, i);
    }
    CHECK_EQ(tunnel_lab_add(&t, VNI), 0);
    t.lab.port[RECEIVER].conf.backpressure_ms = backpressure_ms;
    lab_publish(&t.lab);
    tunnel_lab_flood(&t, 0, 0, 1);
    uint8_t mac[6];
    pvs_mac_store(mac, LAB_MAC(RECEIVER)); /* who is known may be waited for */
    CHECK_EQ(pvs_fdb_set_static(t.lab.fdb, mac, 0, pvs_port_ref(t.lab.port[RECEIVER].port), 0), 0);
    memset(at, 0, sizeof at);
}

/* From each guest to far VTEP 0, which is flooded to; from far VTEPs to the receiver. */
static void
build(uint8_t *frame, uint32_t sender)
{
    bool guest = sender < SENDERS;

    lab_frame(frame, guest ? LAB_MAC(99) : LAB_MAC(RECEIVER), guest ? LAB_MAC(sender) : BEHIND(sender), LEN,
              at[sender].sent);
    memcpy(frame + NUMBER, &at[sender].sent, sizeof at[sender].sent);
    frame[NUMBER + 4] = (uint8_t)sender;
}

static void
send_all(void)
{
    uint8_t frame[LEN];

    for (uint32_t i = 0; i < SENDERS; i++) {
        CHECK(pvd_tx_reap(t.lab.port[i].guest, 0) >= 0);
        build(frame, i);
        int rc = pvd_tx(t.lab.port[i].guest, 0, NULL, frame, LEN, NULL);
        CHECK(rc == 0 || rc == -ENOSPC);
        at[i].sent += rc == 0;
        CHECK(pvd_kick(t.lab.port[i].guest, 1) >= 0);
    }
    for (uint32_t i = SENDERS; i < 2 * SENDERS; i++) {
        if (at[i].sent - at[i].arrived > 500)
            continue; /* the kernel's buffer has an end */
        build(frame, i);
        far_send(&t, i - SENDERS, VNI, frame, LEN);
        at[i].sent++;
    }
}

static void
arrived(const uint8_t *frame, uint32_t from, uint32_t to)
{
    uint32_t number, sender = frame[NUMBER + 4];

    memcpy(&number, frame + NUMBER, sizeof number);
    CHECK(sender >= from && sender < to && number < at[sender].sent);
    CHECK(at[sender].arrived == 0 || number > at[sender].last); /* in order, and none twice */
    at[sender].arrived++;
    at[sender].last = number;
}

static uint32_t
receive(void)
{
    static uint8_t got[OUTER_MOST + 2000];
    uint32_t n = 0;

    for (int i = 0; i < 20; i++) {
        int len = far_receive(&t, 0, got, sizeof got, NULL, NULL);
        if (len == -EAGAIN)
            break;
        CHECK_EQ(len, LEN + 8);
        arrived(got + 8, 0, SENDERS);
        n++;
    }
    for (int i = 0; i < 20; i++) {
        int len = pvd_rx(t.lab.port[RECEIVER].guest, 0, got, sizeof got, NULL);
        if (len == -EAGAIN)
            break;
        CHECK_EQ(len, LEN);
        if (got[NUMBER + 4] >= SENDERS) /* the guests' frames are flooded */
            arrived(got, SENDERS, 2 * SENDERS);
        n++;
    }
    lab_fill(&t.lab, RECEIVER, 32);
    CHECK(pvd_kick(t.lab.port[RECEIVER].guest, 0) >= 0);
    return n;
}

static void
step(bool send)
{
    if (send)
        send_all();
    if (receive() == 0)
        sched_yield();
}

static uint64_t
now_ms(void)
{
    return lab_clock_ns() / 1000000;
}

static void
steps_until(uint32_t sender, uint32_t more)
{
    uint32_t wanted = at[sender].arrived + more;

    for (uint64_t end = now_ms() + BOUND_MS; at[sender].arrived < wanted;) {
        step(true);
        CHECK(now_ms() < end);
    }
}

/* What is under way arrives, or was dropped. */
static void
settle(void)
{
    uint64_t quiet = now_ms() + 100;

    while (now_ms() < quiet)
        if (receive() != 0)
            quiet = now_ms() + 100;
}

TEST(thread_tunnel_both_ways_by_two_workers)
{
    open_with(500);
    for (uint32_t i = 0; i < 2 * SENDERS; i++)
        steps_until(i, 500);
    settle();
    for (uint32_t i = SENDERS; i < 2 * SENDERS; i++) /* the receiver's frames wait for it */
        CHECK_EQ(at[i].arrived, at[i].sent);
    tunnel_lab_close(&t);
}

TEST(thread_tunnel_remotes_change_under_traffic)
{
    open_with(100);
    for (uint32_t turn = 0; turn < 100; turn++) {
        tunnel_lab_flood(&t, 0, 0, 1 + turn % FARS); /* far VTEP 0 is always one of them */
        steps_until(turn % 2, 5);
        static uint8_t got[OUTER_MOST + 2000];
        for (uint32_t i = 1; i < FARS; i++)
            while (far_receive(&t, i, got, sizeof got, NULL, NULL) != -EAGAIN)
                ;
    }
    settle();
    tunnel_lab_close(&t);
}

TEST(thread_tunnel_is_published_again_under_traffic)
{
    open_with(100);
    for (uint32_t turn = 0; turn < 30; turn++) {
        steps_until(turn % 4, 5);
        if (turn % 3 == 2) {
            tunnel_lab_remove(&t);
            for (uint32_t i = 0; i < 10; i++)
                step(true);
            CHECK_EQ(tunnel_lab_add(&t, VNI), 0);
            lab_publish(&t.lab);
            tunnel_lab_flood(&t, 0, 0, 1);
            settle(); /* what was sent to nobody has not arrived */
        } else if (turn % 3 == 1) {
            tunnel_lab_stop(&t);
            for (uint32_t i = 0; i < 10; i++)
                step(true);
            tunnel_lab_start(&t);
            settle();
        } else {
            int64_t seq = pvs_uplink_move(t.endpoint, 0, turn / 3 % 2);
            if (seq != -EALREADY)
                CHECK_EQ(lab_wait(&t.lab, seq), 0);
        }
        for (uint32_t i = SENDERS; i < 2 * SENDERS; i++)
            if (turn % 3 != 0)
                at[i].arrived = at[i].sent; /* the bound of send_all begins anew */
    }
    settle();
    tunnel_lab_close(&t);
}

/* Workers learn a VTEP that control removes, again and again. */
TEST(thread_tunnel_vteps_are_removed_under_traffic)
{
    struct pvs_event e;
    uint32_t removed = 0;

    open_with(0);
    for (uint64_t end = now_ms() + BOUND_MS; removed < 30;) {
        uint32_t number;
        CHECK(now_ms() < end);
        for (uint32_t i = 0; i < 10; i++)
            step(true);
        CHECK_EQ(pvs_vtep_add(t.lab.sw, tunnel_lab_address(1), &number), 0); /* far VTEP 1's, whatever it is now */
        if (pvs_vtep_unlink(t.lab.sw, number) != 0)
            continue;
        CHECK_EQ(lab_wait(&t.lab, pvs_sync(t.lab.sw)), 0);
        CHECK(pvs_fdb_flush(t.lab.fdb, &(struct pvs_fdb_filter){ .by_vtep = true, .vtep = (uint16_t)number }) >= 0);
        CHECK_EQ(lab_wait(&t.lab, pvs_sync(t.lab.sw)), 0);
        CHECK_EQ(pvs_vtep_free(t.lab.sw, number), 0);
        removed++;
        while (pvs_event_next(t.lab.sw, &e) == 1)
            ;
    }
    steps_until(SENDERS + 1, 20);
    settle();
    tunnel_lab_close(&t);
}
