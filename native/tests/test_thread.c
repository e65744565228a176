/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_thread.c - everything that needs a second thread: workers that poll and sleep, readers next to a writer, starts and stops
 * under traffic. Runs under ThreadSanitizer too. Nothing here depends on speed: each wait ends with what it waits for, or
 * fails at its deadline.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "channel.h"
#include "fdb.h"
#include "lab.h"
#include "parse.h"

static struct lab lab;

static void
pause_a_little(void)
{
    nanosleep(&(struct timespec){ .tv_nsec = 200000 }, NULL);
}

#define WAIT_FOR(condition)                                                 \
    do {                                                                    \
        uint64_t deadline_ = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL; \
        while (!(condition)) {                                              \
            CHECK(lab_clock_ns() < deadline_);                              \
            pause_a_little();                                               \
        }                                                                   \
    } while (0)

static void
open_threads(uint32_t ports, enum pvs_polling polling, uint32_t workers, bool no_kick)
{
    struct lab_conf conf = lab_conf_default(ports);
    conf.threads = true;
    conf.workers = workers;
    conf.polling = polling;
    conf.poll_us = 20;
    conf.no_kick = no_kick;
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < ports; i++)
        lab_fill(&lab, i, 128);
}

static struct pvs_perf
perf(void)
{
    struct pvs_perf p;
    CHECK_EQ(pvs_worker_perf(lab.sw, 0, &p), 0);
    return p;
}

static bool
sleeping(void)
{
    return perf().sleeping;
}

/* Send one frame and wait until the receiver has it. */
static void
pass_one(uint32_t from, uint32_t to, uint32_t salt)
{
    uint8_t frame[100], got[100];
    int n;
    lab_frame(frame, LAB_MAC(to), LAB_MAC(from), sizeof frame, salt);
    lab_send(&lab, from, frame, sizeof frame);
    WAIT_FOR((n = pvd_rx(lab.port[to].guest, 0, got, sizeof got, NULL)) != -EAGAIN);
    CHECK_EQ(n, sizeof frame);
    CHECK(memcmp(frame, got, sizeof frame) == 0);
    lab_fill(&lab, to, 1);
    pvd_kick(lab.port[to].guest, 0);
}

/* ---- sleeping and waking ---- */

static void
ping_pong(enum pvs_polling polling, bool no_kick)
{
    open_threads(2, polling, 1, no_kick);
    for (uint32_t i = 0; i < 200; i++) {
        pass_one(0, 1, i);
        pass_one(1, 0, i);
        if (i % 20 == 0) /* far apart now and then, so that the worker is asleep */
            nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
    }
    lab_close(&lab);
}

TEST_EACH_RING(thread_adaptive_worker_misses_no_kick)
{
    ping_pong(PVS_POLL_ADAPTIVE, false);
}

TEST_EACH_RING(thread_interrupt_worker_misses_no_kick)
{
    ping_pong(PVS_POLL_INTERRUPT, false);
}

TEST_EACH_RING(thread_busy_worker_passes_frames)
{
    ping_pong(PVS_POLL_BUSY, false);
}

TEST_EACH_RING(thread_rings_without_kicks_are_polled_in_their_sleep)
{
    ping_pong(PVS_POLL_ADAPTIVE, true);
}

/* The next frame is sent the moment the last one arrives: often just while the
 * worker arms the kick and goes to sleep. */
TEST_EACH_RING(thread_frames_that_come_while_the_kick_is_armed_are_seen)
{
    uint8_t frame[60], got[60];
    open_threads(2, PVS_POLL_INTERRUPT, 1, false);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), sizeof frame, 0);
    for (uint32_t i = 0; i < 5000; i++) {
        lab_send(&lab, 0, frame, sizeof frame);
        uint64_t deadline = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL;
        for (uint32_t looks = 1; pvd_rx(lab.port[1].guest, 0, got, sizeof got, NULL) < 0; looks++) {
            if (looks % 1000 == 0) {
                CHECK(lab_clock_ns() < deadline);
                sched_yield();
            }
        }
        lab_fill(&lab, 1, 1);
        for (uint32_t wait = 0; wait < i % 64 * 8; wait++) /* meet it a little later each time */
            atomic_signal_fence(memory_order_seq_cst);
    }
    lab_close(&lab);
}

TEST_EACH_RING(thread_idle_worker_sleeps_and_a_kick_wakes_it)
{
    open_threads(2, PVS_POLL_ADAPTIVE, 1, false);
    WAIT_FOR(sleeping());
    uint64_t loops = perf().loops;
    nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
    CHECK(perf().loops - loops < 50); /* asleep it doesn't go round */
    pass_one(0, 1, 1);
    WAIT_FOR(sleeping());
    CHECK(perf().sleeps >= 2);
    lab_close(&lab);
}

TEST_EACH_RING(thread_busy_worker_does_not_sleep)
{
    open_threads(1, PVS_POLL_BUSY, 1, false);
    uint64_t loops = perf().loops;
    WAIT_FOR(perf().loops > loops + 1000);
    CHECK_EQ(perf().sleeps, 0);
    lab_close(&lab);
}

TEST_EACH_RING(thread_mail_wakes_a_sleeping_worker)
{
    open_threads(1, PVS_POLL_INTERRUPT, 3, false);
    for (int i = 0; i < 300; i++) {
        if (i % 30 == 0)
            WAIT_FOR(sleeping());
        lab_publish(&lab);
    }
    lab_close(&lab);
}

TEST_EACH_RING(thread_stop_wakes_and_ends_a_sleeping_worker)
{
    open_threads(1, PVS_POLL_ADAPTIVE, 2, false);
    CHECK_EQ(pvs_switch_start(lab.sw), -EBUSY);
    CHECK_EQ(pvs_poll_once(lab.sw, 0, 0), -EBUSY);
    for (int i = 0; i < 50; i++) {
        if (i % 10 == 0)
            WAIT_FOR(sleeping());
        pvs_switch_stop(lab.sw);
        pvs_switch_stop(lab.sw);
        CHECK(pvs_poll_once(lab.sw, 1, lab_clock_ns()) >= 0);
        CHECK_EQ(pvs_switch_start(lab.sw), 0);
    }
    lab_close(&lab);
}

TEST(thread_pinning_to_a_processor_that_is_not_there_fails)
{
    pvs_switch *sw;
    struct pvs_switch_conf conf = { .n_workers = 2, .cpus = { -1, 1023 } };
    CHECK_EQ(pvs_switch_create(&conf, &sw), 0);
    CHECK_EQ(pvs_switch_start(sw), -EINVAL);
    pvs_switch_destroy(sw); /* the first worker, which did start, has been joined */
}

/* ---- under traffic ---- */

static _Atomic bool finish;

/* A guest that sends and receives without end; it belongs to this thread alone. */
struct traffic {
    uint32_t port, n_dst;
    pthread_t thread;
    uint64_t sent;
};

static void *
traffic_run(void *arg)
{
    struct traffic *t = arg;
    pvd_guest *guest = lab.port[t->port].guest;
    uint8_t frame[300], got[300];
    uint64_t seed = t->port + 1;

    while (!finish) {
        uint32_t dst = lab_random(&seed, t->n_dst + 1), len = 14 + lab_random(&seed, 280);
        lab_frame(frame, dst == t->n_dst ? LAB_BROADCAST : LAB_MAC(dst), LAB_MAC(t->port), len, 0);
        CHECK(pvd_tx_reap(guest, 0) >= 0);
        if (pvd_tx(guest, 0, NULL, frame, len, NULL) == 0)
            t->sent++;
        pvd_kick(guest, 1);
        while (pvd_rx(guest, 0, got, sizeof got, NULL) >= 0)
            ;
        CHECK(pvd_rx_fill(guest, 0, 128, NULL) >= 0);
        pvd_kick(guest, 0);
        if (lab_random(&seed, 64) == 0)
            sched_yield();
    }
    return NULL;
}

static void
traffic_start(struct traffic *t, uint32_t n)
{
    finish = false;
    for (uint32_t i = 0; i < n; i++) {
        t[i] = (struct traffic){ .port = i, .n_dst = lab.conf.n_ports };
        CHECK_EQ(pthread_create(&t[i].thread, NULL, traffic_run, &t[i]), 0);
    }
}

static void
traffic_end(struct traffic *t, uint32_t n)
{
    finish = true;
    for (uint32_t i = 0; i < n; i++)
        pthread_join(t[i].thread, NULL);
}

TEST_EACH_RING(thread_rings_start_and_stop_under_traffic)
{
    struct traffic traffic[3];
    uint64_t seed = 11;
    open_threads(3, PVS_POLL_ADAPTIVE, 2, false);
    traffic_start(traffic, 3);
    for (int i = 0; i < 300; i++) {
        uint32_t port = lab_random(&seed, 3);
        switch (lab_random(&seed, 6)) {
        case 0:
        case 1: /* memory is really gone in between: whoever touches it is found */
            lab_detach(&lab, port);
            lab_attach(&lab, port);
            break;
        case 2:
            CHECK_EQ(lab_wait(&lab, pvs_ring_enable(lab.port[port].port, lab_random(&seed, 2), i % 2)), 0);
            break;
        case 3:
            lab_publish(&lab);
            break;
        case 4: {
            uint8_t frame[60];
            struct pvs_fdb_filter all = { 0 };
            lab_frame(frame, LAB_BROADCAST, LAB_MAC(7), sizeof frame, 0);
            CHECK(pvs_inject(lab.port[port].port, (uint32_t)i % 2, frame, sizeof frame) > 0);
            CHECK(pvs_inject(lab.port[port].port, PVS_EGRESS, frame, sizeof frame) > 0);
            pvs_fdb_flush(lab.fdb, &all);
            break;
        }
        default: {
            int call = lab_ring_conf(&lab, port, 0).call_fd;
            CHECK_EQ(lab_wait(&lab, pvs_ring_set_call(lab.port[port].port, 0, call)), 0);
        }
        }
        struct pvs_event e;
        while (pvs_event_next(lab.sw, &e) == 1)
            CHECK(e.kind != PVS_EV_BROKEN);
    }
    traffic_end(traffic, 3);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQ(pvs_port_broken(lab.port[i].port), 0);
        CHECK_EQ(lab_driver(&lab, i, 0).errors, 0);
        CHECK_EQ(lab_driver(&lab, i, 1).errors, 0);
    }
    lab_close(&lab);
}

/* An injected frame and the stop of its ring in one round, and the memory
 * unmapped as soon as the stop is finished. */
TEST_EACH_RING(thread_memory_is_left_alone_after_a_stop)
{
    uint8_t frame[60];
    open_threads(2, PVS_POLL_ADAPTIVE, 1, false);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(9), sizeof frame, 0);
    for (int i = 0; i < 500; i++) {
        for (int k = 0; k < 10; k++)
            CHECK(pvs_inject(lab.port[1].port, PVS_EGRESS, frame, sizeof frame) > 0);
        lab_detach(&lab, 1);
        lab_attach(&lab, 1);
        while (pvd_rx(lab.port[1].guest, 0, frame, sizeof frame, NULL) >= 0)
            ;
        lab_fill(&lab, 1, 64);
    }
    CHECK_EQ(lab_driver(&lab, 1, 0).errors, 0);
    lab_close(&lab);
}

TEST_EACH_RING(thread_ports_come_and_go)
{
    struct traffic traffic[2];
    open_threads(3, PVS_POLL_ADAPTIVE, 1, false);
    traffic_start(traffic, 2);
    for (int i = 0; i < 60; i++) {
        struct lab_port *p = &lab.port[2];
        lab_detach(&lab, 2);
        lab.conf.n_ports = 2;
        lab_publish(&lab);
        CHECK_EQ(pvs_port_destroy(p->port), 0);
        CHECK_EQ(pvs_port_create(lab.sw, 1, &p->port), 0);
        p->conf.port = p->port;
        lab.conf.n_ports = 3;
        lab_publish(&lab);
        lab_reset(&lab, 2);
        lab_fill(&lab, 2, 16);
        lab_attach(&lab, 2);
    }
    traffic_end(traffic, 2);
    lab_close(&lab);
}

TEST_EACH_RING(thread_truncated_memory_under_running_traffic)
{
    struct traffic traffic[2];
    open_threads(3, PVS_POLL_ADAPTIVE, 1, false);
    traffic_start(traffic, 2);
    WAIT_FOR(lab_counters(&lab, 2).value[PVS_C_tx_packets] > 0);
    CHECK_EQ(pvd_truncate_memory(lab.port[2].guest, 0, 0), 0);
    WAIT_FOR(pvs_port_broken(lab.port[2].port) != 0);
    CHECK_EQ(pvs_port_broken(lab.port[2].port), PVS_BROKEN_MEMORY_LOST);
    uint64_t received = lab_counters(&lab, 0).value[PVS_C_rx_packets];
    WAIT_FOR(lab_counters(&lab, 0).value[PVS_C_rx_packets] > received + 100);
    CHECK_EQ(pvs_port_broken(lab.port[0].port), 0);
    traffic_end(traffic, 2);
    lab_close(&lab);
}

/* ---- a front end's file descriptors ---- */

TEST_EACH_RING(thread_a_call_into_a_closed_pipe_ends_nothing)
{
    int ends[2];
    open_threads(2, PVS_POLL_ADAPTIVE, 1, false);
    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    close(ends[0]);
    CHECK_EQ(lab_wait(&lab, pvs_ring_set_call(lab.port[1].port, 0, ends[1])), 0);
    for (uint32_t i = 0; i < 10; i++)
        pass_one(0, 1, i);
    CHECK_EQ(lab_wait(&lab, pvs_ring_set_call(lab.port[1].port, 0, -1)), 0);
    close(ends[1]);
    lab_close(&lab);
}

/* ---- the FDB: readers and writers ---- */

static pvs_fdb *fdb;

static void *
fdb_reader(void *arg)
{
    uint64_t *found = arg;
    while (!finish) {
        for (uint64_t mac = 1; mac <= 300; mac++) {
            struct pvs_fdb_hit hit = pvs_fdb_find(fdb, mac, 0, 0);
            if (hit.state == PVS_FDB_UNKNOWN)
                continue;
            ++*found;
            /* an address is only ever learned on ports of its own remainder */
            CHECK_EQ(hit.at % 3, mac % 3);
        }
    }
    return NULL;
}

static void *
fdb_learner(void *arg)
{
    uint64_t seed = *(uint64_t *)arg;
    while (!finish) {
        uint32_t mac = 1 + lab_random(&seed, 300), old;
        uint32_t port = mac % 3 + 3 * lab_random(&seed, 4);
        pvs_fdb_learn(fdb, mac, 0, port, 0, 0, &old);
        if (lab_random(&seed, 8) == 0)
            sched_yield(); /* the lock is not fair: leave control its turn */
    }
    return NULL;
}

TEST(thread_fdb_readers_see_whole_entries)
{
    enum { READERS = 2, LEARNERS = 2 };
    pthread_t thread[READERS + LEARNERS];
    uint64_t found[READERS] = { 0 }, seeds[LEARNERS] = { 1, 2 }, flushed = 0, dumped = 0;
    CHECK_EQ(pvs_fdb_create(100, 0, 5, &fdb), 0); /* smaller than what is learned: evicting all the time */
    finish = false;
    for (int i = 0; i < READERS; i++)
        CHECK_EQ(pthread_create(&thread[i], NULL, fdb_reader, &found[i]), 0);
    for (int i = 0; i < LEARNERS; i++)
        CHECK_EQ(pthread_create(&thread[READERS + i], NULL, fdb_learner, &seeds[i]), 0);
    /* at least so often, and until there was something to see (or the test's time is over) */
    for (uint32_t i = 0; i < 500 || dumped == 0 || flushed == 0; i++) {
        struct pvs_fdb_item item[64];
        uint32_t cursor = 0;
        uint8_t mac[6];
        struct pvs_fdb_filter filter = { .by_port = true, .port_ref = i % 12 };
        do
            dumped += (uint64_t)pvs_fdb_dump(fdb, 0, &cursor, item, 64);
        while (cursor != 0);
        CHECK(pvs_fdb_count(fdb) <= 100);
        flushed += (uint64_t)pvs_fdb_flush(fdb, &filter);
        pvs_mac_store(mac, 1 + i % 300);
        if (i % 10 == 0 && pvs_fdb_set_static(fdb, mac, 0, (1 + i % 300) % 3, 0) == 0)
            CHECK_EQ(pvs_fdb_remove(fdb, mac, 0), 0);
        if (i % 20 == 0)
            pause_a_little();
    }
    finish = true;
    for (int i = 0; i < READERS + LEARNERS; i++)
        pthread_join(thread[i], NULL);
    pvs_fdb_destroy(fdb);
}

/* ---- the channel ---- */

enum { RECORDS = 20000 };

static struct pvs_spool spool;
static struct pvs_mail mail;

static void *
produce(void *arg)
{
    uint64_t *lost = arg;
    static char items[RECORDS];
    for (uint32_t i = 0; i < RECORDS; i++) {
        uint32_t len = 4 + i * 7 % 200;
        uint8_t *place = pvs_spool_reserve(&spool, len);
        if (place == NULL) {
            ++*lost;
            sched_yield();
        } else {
            memset(place, (int)(i & 0xff), len);
            memcpy(place, &i, sizeof i);
            pvs_spool_commit(&spool, len);
        }
        while (mail.head - mail.tail >= PVS_COMMANDS) /* what pvs_command_new sees to */
            sched_yield();
        pvs_mail_put(&mail, &items[i]);
    }
    finish = true;
    return NULL;
}

TEST(thread_channel_keeps_order_and_content)
{
    pthread_t producer;
    uint64_t lost = 0, got = 0, letters = 0;
    uint32_t last = 0;
    char *previous = NULL;
    CHECK_EQ(pvs_spool_init(&spool, 4096), 0);
    finish = false;
    CHECK_EQ(pthread_create(&producer, NULL, produce, &lost), 0);
    for (bool ended = false, idle = false; !(ended && idle);) {
        uint32_t len, i;
        ended = finish; /* before looking: what is put up before the end is found */
        idle = true;
        const uint8_t *record = pvs_spool_peek(&spool, &len);
        if (record != NULL) {
            memcpy(&i, record, sizeof i);
            CHECK(got == 0 || i > last);
            CHECK_EQ(len, 4 + i * 7 % 200);
            for (uint32_t k = 4; k < len; k++)
                CHECK_EQ(record[k], i & 0xff);
            pvs_spool_drop(&spool, len);
            last = i;
            got++;
            idle = false;
        }
        char *item = pvs_mail_take(&mail);
        if (item != NULL) {
            CHECK(previous == NULL || item == previous + 1);
            previous = item;
            letters++;
            idle = false;
        }
        if (idle)
            sched_yield();
    }
    pthread_join(producer, NULL);
    CHECK_EQ(got + lost, RECORDS);
    CHECK_EQ(letters, RECORDS);
    pvs_spool_fini(&spool);
}

/* The front end fills its call and makes it blocking again: the flag is the
 * file's, not ours alone. */
TEST_EACH_RING(thread_a_call_that_blocks_latches_its_port_and_stops_nobody)
{
    uint64_t full = UINT64_MAX - 1, owed;
    uint8_t frame[60];
    int call = eventfd(0, EFD_CLOEXEC);

    open_threads(3, PVS_POLL_ADAPTIVE, 1, false);
    CHECK_EQ(lab_wait(&lab, pvs_ring_set_call(lab.port[2].port, 0, call)), 0);
    WAIT_FOR(read(call, &owed, sizeof owed) == sizeof owed); /* a new call is signalled once */
    CHECK_EQ(fcntl(call, F_SETFL, 0), 0);
    CHECK_EQ(write(call, &full, sizeof full), sizeof full);
    pvd_call_arm(lab.port[2].guest, 0);
    lab_frame(frame, LAB_MAC(2), LAB_MAC(0), sizeof frame, 0);
    lab_send(&lab, 0, frame, sizeof frame);
    WAIT_FOR(pvs_watchdog(lab.sw, lab_clock_ns()) >= 0 && pvs_port_broken(lab.port[2].port) != 0);
    CHECK_EQ(pvs_port_broken(lab.port[2].port), PVS_BROKEN_CALL_BLOCKED);
    WAIT_FOR(pvd_rx(lab.port[1].guest, 0, frame, sizeof frame, NULL) == sizeof frame); /* it was flooded */
    pass_one(0, 1, 1);
    pass_one(1, 0, 2);
    lab_close(&lab); /* its rings can be stopped */
    close(call);
}
