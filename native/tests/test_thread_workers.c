/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_thread_workers.c - several workers under traffic between eight ports, while control changes everything that it can
 * change: rings, memory, ports, tables, descriptors. Nothing may be lost but what is counted, and counters add up.
 *
 * How it works: PVS_TEST_EVENTS things happen (300 by default), chosen by PVS_TEST_SEED; the guests know of every frame
 * whether it may be there (traffic.h). In the first half frames are flooded as well, so a frame has one to seven copies; in
 * the second half each has one, and the books must balance exactly.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "traffic.h"

enum { RINGS = 2 * TRAFFIC_PAIRS, EVENTS = 300, PENDING = 64 };

static struct lab lab;
static uint64_t seed;

/* What control knows of a port beyond the lab. */
static struct {
    bool present; /* in the published tables */
    bool disabled[RINGS];
    int call[RINGS];                /* a descriptor of ours in place of the guest's; -1 = none,
                      -2 = the guest's */
    struct lab_counters past, seen; /* sums over the handles that are gone; the
                                     present one's when last read */
} at[LAB_PORTS];

static struct {
    int64_t seq[PENDING]; /* injections under way */
    uint32_t n, number[TRAFFIC_DESTINATIONS];
    uint64_t accepted;
    bool anywhere; /* as if a guest had sent it, too, and to anybody */
} injected;

static uint64_t taken; /* frames that the handles which are gone took */

static uint32_t
any(uint32_t below)
{
    return lab_random(&seed, below);
}

static uint32_t
rings_of(uint32_t port)
{
    return pvd_n_rings(lab.port[port].guest);
}

static void
pause_a_little(void)
{
    nanosleep(&(struct timespec){ .tv_nsec = any(1000000) }, NULL);
}

/* ---- rings ---- */

static void
rings_stop(uint32_t port, uint32_t which)
{
    struct lab_port *p = &lab.port[port];
    int64_t seq[RINGS] = { 0 };

    for (uint32_t r = 0; r < rings_of(port); r++)
        if ((which >> r & 1) != 0 && p->running[r])
            seq[r] = pvs_ring_stop(p->port, r);
    for (uint32_t r = 0; r < rings_of(port); r++) {
        if (seq[r] == 0)
            continue;
        int64_t base = lab_wait(&lab, seq[r]);
        if (lab_packed(&lab)) /* nothing is held back */
            CHECK_EQ(base >> 16, base & 0xffff);
        else
            CHECK_EQ(base, pvd_used_idx(p->guest, r));
        lab_ring_stopped(&lab, port, r, base);
    }
}

static void
rings_start(uint32_t port, uint32_t which)
{
    struct lab_port *p = &lab.port[port];
    int64_t seq[RINGS] = { 0 };

    for (uint32_t r = 0; r < rings_of(port); r++) {
        if ((which >> r & 1) == 0 || p->running[r])
            continue;
        struct pvs_ring_conf conf = lab_ring_conf(&lab, port, r);
        if (!lab_packed(&lab))
            CHECK_EQ(pvd_used_idx(p->guest, r), p->base[r]); /* a stopped ring was left alone */
        conf.enabled = !at[port].disabled[r];
        conf.call_fd = at[port].call[r] == -2 ? conf.call_fd : at[port].call[r];
        seq[r] = pvs_ring_start(p->port, r, &conf);
        CHECK(seq[r] > 0);
    }
    for (uint32_t r = 0; r < rings_of(port); r++) {
        if (seq[r] == 0)
            continue;
        CHECK_EQ(lab_wait(&lab, seq[r]), 0);
        p->running[r] = true;
    }
}

static void
rings_enable(uint32_t port, uint32_t pair, bool rx, bool tx)
{
    at[port].disabled[2 * pair] = !rx;
    at[port].disabled[2 * pair + 1] = !tx;
    int64_t first = pvs_ring_enable(lab.port[port].port, 2 * pair, rx);
    CHECK_EQ(lab_wait(&lab, pvs_ring_enable(lab.port[port].port, 2 * pair + 1, tx)), 0);
    CHECK_EQ(lab_wait(&lab, first), 0);
}

/* ---- tables ---- */

static void
publish(void)
{
    struct pvs_port_conf ports[LAB_PORTS];
    uint32_t n = 0;

    for (uint32_t i = 0; i < LAB_PORTS; i++)
        if (at[i].present)
            ports[n++] = lab.port[i].conf;
    CHECK_EQ(lab_wait(&lab, pvs_publish(lab.sw, ports, n, &lab.conf.bridge, 1)), 0);
}

static void
set_present(uint32_t port, bool present)
{
    at[port].present = present;
    publish();
}

/* ---- the books ---- */

static void
add(struct lab_counters *sum, const struct lab_counters *c)
{
    uint64_t *to = sum->value;
    const uint64_t *from = c->value;
    _Static_assert(sizeof *c == (PVS_COUNTER_COUNT + 2 * PVS_DROP_COUNT) * sizeof *to, "three arrays, nothing else");
    for (uint32_t i = 0; i < sizeof *c / sizeof *to; i++)
        to[i] += from[i];
}

/* The guest is ours, and nothing is on its way from or to it: what its port counted is what it sent and received. */
static void
check_port(uint32_t port, struct traffic_guest *guest)
{
    uint64_t deadline = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL;
    struct lab_counters c = lab_counters(&lab, port);

    traffic_collect(guest);
    while (guest->received < c.value[PVS_C_tx_packets]) { /* an injection is finished before its frame is shown */
        CHECK(lab_clock_ns() < deadline);
        pause_a_little();
        traffic_collect(guest);
    }
    CHECK_EQ(guest->received, c.value[PVS_C_tx_packets]);
    CHECK_EQ(guest->rx_bytes, c.value[PVS_C_tx_bytes]);
    CHECK_EQ(guest->taken, c.value[PVS_C_rx_packets] + c.rx_drop[PVS_DROP_malformed]);
    CHECK_EQ(pvs_port_broken(lab.port[port].port), 0);
    lab_check_port(&lab, port);
}

struct balance {
    uint64_t in, out, dropped, accepted; /* frames with a destination; copies; of these, dropped; frames injected */
};

static struct balance
balance(void)
{
    struct balance b = { .accepted = injected.accepted };

    for (uint32_t i = 0; i < LAB_PORTS; i++) {
        struct lab_counters c = lab_counters(&lab, i);
        add(&c, &at[i].past);
        b.in += c.value[PVS_C_rx_packets] - (lab_sum(c.rx_drop) - c.rx_drop[PVS_DROP_malformed]);
        b.dropped += lab_sum(c.tx_drop);
        b.out += c.value[PVS_C_tx_packets] + lab_sum(c.tx_drop);
    }
    return b;
}

/* What can be read at any time; counters only grow, and no port is ever latched broken. */
static void
read_everything(void)
{
    struct pvs_ring_status status;
    struct pvs_event e;
    struct pvs_perf p;

    for (uint32_t i = 0; i < LAB_PORTS; i++) {
        struct lab_counters c = lab_counters(&lab, i);
        for (int k = 0; k < PVS_COUNTER_COUNT; k++)
            CHECK(c.value[k] >= at[i].seen.value[k]);
        at[i].seen = c;
        for (uint32_t r = 0; r < rings_of(i); r++) {
            CHECK_EQ(pvs_ring_status(lab.port[i].port, r, &status), 0);
            CHECK(!lab.port[i].running[r] || status.worker < lab.conf.workers);
            CHECK_EQ(status.running, lab.port[i].running[r]);
        }
        CHECK_EQ(pvs_port_broken(lab.port[i].port), 0);
    }
    for (uint32_t w = 0; w < lab.conf.workers; w++)
        CHECK_EQ(pvs_worker_perf(lab.sw, w, &p), 0);
    while (pvs_event_next(lab.sw, &e) == 1)
        CHECK(e.kind != PVS_EV_BROKEN);
    CHECK(pvs_watchdog(lab.sw, lab_clock_ns()) >= 0);
}

/* ---- what happens ---- */

static void
injections_finish(void)
{
    while (injected.n > 0) {
        int64_t result = lab_wait(&lab, injected.seq[--injected.n]);
        CHECK(result == 0 || result == -ENETDOWN || result == -ENOENT);
        injected.accepted += result == 0;
    }
}

static void
inject(uint32_t port)
{
    static uint8_t frame[TRAFFIC_MAX_LEN];

    for (uint32_t n = 1 + any(4); n > 0; n--) {
        bool ingress = injected.anywhere && any(2) == 0;
        uint32_t to = ingress ? any(TRAFFIC_DESTINATIONS) : port;
        uint32_t len = traffic_frame(frame, TRAFFIC_CONTROL, to, 0, injected.number[to]++);
        if (injected.n == PENDING)
            injections_finish();
        injected.seq[injected.n] = pvs_inject(lab.port[port].port, ingress ? PVS_INGRESS : PVS_EGRESS, frame, len);
        CHECK(injected.seq[injected.n++] > 0);
    }
}

static void
one_ring(uint32_t port)
{
    uint32_t ring = any(rings_of(port));
    bool frames = any(4) == 0;

    if (frames)
        inject(port); /* and the stop in the same round, perhaps */
    if (lab.port[port].running[ring])
        rings_stop(port, 1U << ring);
    if (any(4) == 0)
        return; /* another time */
    pause_a_little();
    rings_start(port, 1U << ring);
}

static void
all_rings(uint32_t port)
{
    rings_stop(port, UINT32_MAX);
    pause_a_little();
    lab.port[port].worker = (int32_t)any(lab.conf.workers + 1) - 1;
    rings_start(port, UINT32_MAX);
}

static void
another_worker(uint32_t port)
{
    uint32_t ring = 1 + 2 * any(rings_of(port) / 2);
    bool running = lab.port[port].running[ring];
    int64_t seq = pvs_ring_move(lab.port[port].port, ring, any(lab.conf.workers));

    CHECK(running ? seq > 0 || seq == -EALREADY : seq == -EINVAL);
    if (any(4) == 0)
        rings_stop(port, 1U << ring); /* carried out behind it */
    if (seq > 0)
        CHECK_EQ(lab_wait(&lab, seq), 0);
}

static void
memory(uint32_t port)
{
    struct lab_port *p = &lab.port[port];
    pvs_memory *old, *fresh = any(2) == 0 ? lab_map(p->port, p->guest) : NULL;

    rings_start(port, 1); /* one runs at least */
    CHECK_EQ(pvs_port_set_memory(p->port, fresh, &old), -EBUSY);
    rings_stop(port, UINT32_MAX);
    CHECK_EQ(pvs_port_set_memory(p->port, fresh, &old), 0);
    CHECK(old == p->memory);
    pvs_memory_destroy(old);
    if (fresh == NULL) { /* the other way: it is really gone for a while */
        pause_a_little();
        fresh = lab_map(p->port, p->guest);
        CHECK_EQ(pvs_port_set_memory(p->port, fresh, &old), 0);
        CHECK(old == NULL);
    }
    p->memory = fresh;
    rings_start(port, UINT32_MAX);
}

static void
pair(uint32_t port)
{
    uint32_t how = any(10);
    rings_enable(port, any(rings_of(port) / 2), how != 0 && how != 1, how != 0 && how != 2);
}

static void
handle_again(uint32_t port)
{
    struct lab_port *p = &lab.port[port];
    pvs_memory *old;

    CHECK_EQ(pvs_port_set_memory(p->port, NULL, &old), 0);
    pvs_memory_destroy(old);
    CHECK_EQ(pvs_port_destroy(p->port), 0);
    CHECK_EQ(pvs_port_create(lab.sw, any(2) == 0 ? PVS_MAX_PAIRS : rings_of(port) / 2, &p->port), 0);
    p->conf.port = p->port;
    p->memory = lab_map(p->port, p->guest);
    CHECK_EQ(pvs_port_set_memory(p->port, p->memory, &old), 0);
}

static void
come_and_go(uint32_t port)
{
    struct traffic_guest *guest = traffic_take(port);
    bool tables_first = any(2) == 0;

    if (tables_first)
        set_present(port, false);
    rings_stop(port, UINT32_MAX);
    if (!tables_first) {
        CHECK_EQ(pvs_port_destroy(lab.port[port].port), -EBUSY);
        set_present(port, false);
    }
    injections_finish();
    check_port(port, guest);
    struct lab_counters c = lab_counters(&lab, port);
    add(&at[port].past, &c);
    taken += guest->taken;
    guest->taken = guest->received = guest->rx_bytes = 0;
    at[port].seen = (struct lab_counters){ 0 };
    handle_again(port);
    lab_reset(&lab, port);
    if (any(2) == 0)
        set_present(port, true);
    rings_start(port, UINT32_MAX);
    set_present(port, true);
    traffic_give(guest);
}

static void
tables(uint32_t port)
{
    struct pvs_port_conf *conf = &lab.port[port].conf;
    switch (any(4)) {
    case 0:
        conf->enabled = any(4) != 0;
        break;
    case 1:
        conf->mtu = conf->mtu == 0 ? 600 : 0;
        break;
    default:
        conf->backpressure_ms = conf->backpressure_ms == 0 ? 1 + any(20) : 0;
    }
    publish();
}

static void
call(uint32_t port)
{
    uint32_t ring = any(rings_of(port));
    int before = at[port].call[ring], own = lab_ring_conf(&lab, port, ring).call_fd, how = (int)any(3);

    at[port].call[ring] = how == 0 ? dup(own) : how == 1 ? -1 : -2;
    CHECK_EQ(lab_wait(&lab, pvs_ring_set_call(lab.port[port].port, ring, how == 2 ? own : at[port].call[ring])), 0);
    if (before >= 0)
        close(before); /* who writes to it after this is found */
}

static void
addresses(uint32_t port)
{
    struct pvs_fdb_filter filter = { .by_port = any(2) == 0, .port_ref = pvs_port_ref(lab.port[port].port) };
    struct pvs_fdb_item item[16];
    uint32_t cursor = 0;
    uint8_t mac[6] = { 2, 0, 0, 0, 0, (uint8_t)port };

    do
        CHECK(pvs_fdb_dump(lab.fdb, lab_clock_ns(), &cursor, item, 16) <= 16);
    while (cursor != 0);
    switch (any(4)) {
    case 0:
        CHECK_EQ(pvs_fdb_set_static(lab.fdb, mac, 0, filter.port_ref, 0), 0);
        break;
    case 1:
        pvs_fdb_remove(lab.fdb, mac, 0);
        break;
    default:
        CHECK(pvs_fdb_flush(lab.fdb, &filter) >= 0);
        pvs_fdb_sweep(lab.fdb, lab_clock_ns(), &cursor, 100, NULL, 0);
    }
}

static void
laziness(uint32_t port)
{
    struct traffic_guest *guest = traffic_take(port);
    guest->lazy = any(4) == 0;
    traffic_give(guest);
}

static void
happen(uint64_t events)
{
    static void (*const kind[])(uint32_t) = {
        one_ring, one_ring, one_ring, all_rings, another_worker, another_worker, memory,    memory,   pair,
        pair,     pair,     tables,   tables,    call,           inject,         addresses, laziness, come_and_go,
    };
    for (uint64_t i = 0; i < events; i++) {
        kind[any(sizeof kind / sizeof kind[0])](any(LAB_PORTS));
        if (any(4) == 0)
            pause_a_little();
        read_everything();
    }
}

/* ---- the run ---- */

static uint64_t
unfinished(void)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < LAB_PORTS; i++) {
        struct traffic_guest *guest = traffic_take(i);
        traffic_collect(guest);
        for (uint32_t r = 1; r < rings_of(i); r += 2)
            n += lab_driver(&lab, i, r).in_flight;
        traffic_give(guest);
    }
    return n;
}

/* Everything runs, nothing new is sent, and what was sent arrives or is dropped. Then the books of each port must balance. */
static void
come_to_rest(bool flood)
{
    uint64_t deadline = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL;

    traffic_set(false, flood);
    for (uint32_t i = 0; i < LAB_PORTS; i++) {
        struct traffic_guest *guest = traffic_take(i);
        guest->lazy = false;
        traffic_give(guest);
        rings_start(i, UINT32_MAX);
        for (uint32_t k = 0; k < rings_of(i) / 2; k++)
            rings_enable(i, k, true, true);
        lab.port[i].conf.enabled = true;
    }
    publish();
    while (unfinished() != 0) {
        CHECK(lab_clock_ns() < deadline);
        pause_a_little();
    }
    injections_finish();
    publish(); /* each worker has begun another round: what it delivered has been shown */
    for (uint32_t i = 0; i < LAB_PORTS; i++) {
        struct traffic_guest *guest = traffic_take(i);
        check_port(i, guest);
        traffic_give(guest);
    }
}

static uint64_t
number_from(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? strtoull(text, NULL, 10) : otherwise;
}

static void
open_lab(uint32_t workers)
{
    static const uint32_t pairs[LAB_PORTS] = { 1, 2, 4, 1, 2, 4, 1, 1 };
    struct lab_conf conf = lab_conf_default(LAB_PORTS);

    conf.threads = true;
    conf.workers = workers;
    conf.poll_us = 20;
    conf.guest.queue_size = 64;
    conf.guest.rx_buf_size = 512; /* a long frame takes several */
    memcpy(conf.pairs, pairs, sizeof pairs);
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < LAB_PORTS; i++) {
        at[i].present = true;
        for (uint32_t r = 0; r < RINGS; r++)
            at[i].call[r] = -2;
    }
}

static void
close_lab(void)
{
    struct pvs_perf perf;
    uint64_t packets = 0;

    traffic_end();
    for (uint32_t i = 0; i < LAB_PORTS; i++)
        taken += lab_counters(&lab, i).value[PVS_C_rx_packets] + lab_counters(&lab, i).rx_drop[PVS_DROP_malformed];
    for (uint32_t w = 0; w < lab.conf.workers; w++) {
        CHECK_EQ(pvs_worker_perf(lab.sw, w, &perf), 0);
        packets += perf.packets;
    }
    CHECK_EQ(packets, taken);
    lab_close(&lab);
    for (uint32_t i = 0; i < LAB_PORTS; i++)
        for (uint32_t r = 0; r < RINGS; r++)
            if (at[i].call[r] >= 0)
                close(at[i].call[r]);
}

static void
nothing_is_lost(uint32_t workers)
{
    uint64_t events = number_from("PVS_TEST_EVENTS", EVENTS), first = number_from("PVS_TEST_SEED", workers);

    alarm(60 + (unsigned)(events / 5)); /* in place of the runner's */
    printf("%u workers, %" PRIu64 " events, seed %" PRIu64 "\n", workers, events, first);
    fflush(stdout);
    seed = first;
    open_lab(workers);
    traffic_start(&lab, 4, seed);
    traffic_set(true, true);
    injected.anywhere = true;
    happen(events / 2);
    come_to_rest(true);
    struct balance half = balance();
    CHECK(half.in <= half.out && half.out <= (LAB_PORTS - 1) * (half.in + half.accepted));

    lab.conf.bridge.flood_unknown = false;
    publish();
    traffic_set(true, false);
    injected.anywhere = false;
    happen(events - events / 2);
    come_to_rest(false);
    struct balance end = balance();
    CHECK_EQ(end.out - half.out, end.in - half.in + (end.accepted - half.accepted));
    printf("  forwarded %" PRIu64 " frames, %" PRIu64 " copies, of these dropped %" PRIu64 "\n", end.in, end.out,
           end.dropped);
    close_lab();
}

TEST_EACH_RING(thread_two_workers_lose_nothing_uncounted)
{
    nothing_is_lost(2);
}

TEST_EACH_RING(thread_four_workers_lose_nothing_uncounted)
{
    nothing_is_lost(4);
}
