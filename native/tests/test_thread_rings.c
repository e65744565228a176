/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_thread_rings.c - guests that sleep whenever there is nothing to do, on rings so small that each side waits for the
 * other all the time: a call or a kick that is lost stops everything. Runs under ThreadSanitizer too.
 *
 * How it works: two guests send to a third, whose port has backpressure with a bound that is never reached. A guest looks at
 * its ring, asks for a call, looks once more and sleeps until it is called. Nothing here depends on speed.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>

#include "lab.h"

enum { SENDERS = 2, RECEIVER = SENDERS, FRAMES = 1000, LEN = 60, BOUND_MS = 60000 };

static struct lab lab;

/* Sleep until the switch calls for a ring of this port. */
static void
sleep_until_called(uint32_t port, uint32_t ring)
{
    struct pollfd p = { .events = POLLIN };
    struct pvd_vring v;
    uint64_t count;

    CHECK_EQ(pvd_vring_get(lab.port[port].guest, ring, &v), 0);
    p.fd = v.call_fd;
    CHECK_EQ(poll(&p, 1, LAB_DEADLINE_MS), 1);
    CHECK_EQ(read(v.call_fd, &count, sizeof count), sizeof count);
}

static void *
sender(void *arg)
{
    uint32_t port = (uint32_t)(uintptr_t)arg;
    pvd_guest *guest = lab.port[port].guest;
    uint8_t frame[LEN];

    for (uint32_t i = 0; i < FRAMES;) {
        lab_frame(frame, LAB_MAC(RECEIVER), LAB_MAC(port), LEN, i);
        int rc = pvd_tx(guest, 0, NULL, frame, LEN, NULL);
        CHECK(rc == 0 || rc == -ENOSPC);
        CHECK(pvd_kick(guest, 1) >= 0);
        i += rc == 0;
        if (rc != 0 && pvd_tx_reap(guest, 0) == 0 && pvd_call_arm(guest, 1) == 0)
            sleep_until_called(port, 1);
    }
    return NULL;
}

static void
receive_all(void)
{
    pvd_guest *guest = lab.port[RECEIVER].guest;
    uint8_t expected[LEN], got[LEN];
    uint32_t next[SENDERS] = { 0 };

    for (uint32_t n = 0; n < SENDERS * FRAMES;) {
        CHECK(pvd_rx_fill(guest, 0, 256, NULL) >= 0);
        CHECK(pvd_kick(guest, 0) >= 0);
        int len = pvd_rx(guest, 0, got, sizeof got, NULL);
        if (len == -EAGAIN) {
            if (pvd_call_arm(guest, 0) == 0)
                sleep_until_called(RECEIVER, 0);
            continue;
        }
        CHECK_EQ(len, LEN);
        uint32_t from = got[11];
        CHECK(from < SENDERS);
        lab_frame(expected, LAB_MAC(RECEIVER), LAB_MAC(from), LEN, next[from]++);
        CHECK(memcmp(got, expected, LEN) == 0);
        n++;
    }
}

static void
run(uint32_t num, uint32_t workers, enum pvs_polling polling, bool event_idx)
{
    struct lab_conf conf = lab_conf_default(SENDERS + 1);
    pthread_t thread[SENDERS];

    conf.threads = true;
    conf.workers = workers;
    conf.polling = polling;
    conf.poll_us = 20;
    conf.guest.queue_size = num;
    if (!event_idx)
        conf.guest.features &= ~(1ULL << PVD_F_EVENT_IDX);
    lab_open(&lab, &conf);
    lab.port[RECEIVER].conf.backpressure_ms = BOUND_MS;
    CHECK_EQ(pvs_fdb_set_static(lab.fdb, (const uint8_t[]){ 2, 0, 0, 0, 0, RECEIVER }, 0,
                                pvs_port_ref(lab.port[RECEIVER].port), 0),
             0);
    lab_publish(&lab);
    for (uintptr_t i = 0; i < SENDERS; i++)
        CHECK_EQ(pthread_create(&thread[i], NULL, sender, (void *)i), 0);
    receive_all();
    for (uint32_t i = 0; i < SENDERS; i++)
        CHECK_EQ(pthread_join(thread[i], NULL), 0);
    CHECK_EQ(lab_sum(lab_counters(&lab, RECEIVER).tx_drop), 0);
    lab_close(&lab);
}

static void
all_sizes(uint32_t workers, enum pvs_polling polling, bool event_idx)
{
    bool packed = (lab_ring_features() >> PVD_F_RING_PACKED & 1) != 0;

    for (uint32_t num = packed ? 1 : 2; num <= 4; num = packed ? num + 1 : 2 * num)
        run(num, workers, polling, event_idx);
}

TEST_EACH_RING(thread_sleeping_guests_on_tiny_rings_are_called)
{
    all_sizes(1, PVS_POLL_INTERRUPT, true);
    all_sizes(2, PVS_POLL_ADAPTIVE, true);
}

TEST_EACH_RING(thread_sleeping_guests_without_event_idx_are_called)
{
    all_sizes(2, PVS_POLL_INTERRUPT, false);
}
