/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_burst_paths.c - a burst goes as its frames would go one by one: whatever short way forward.c takes with them.
 *
 * How it works: one script of random frames is played twice, all frames of a step at once and then frame by frame, with the
 * clock standing still within a step. What each queue of each guest received and in which order, every counter and every
 * event must be the same. Frames come in runs between the same addresses, since short ways begin there.
 */
#include <string.h>

#include "lab.h"
#include "parse.h"

enum { PORTS = 5, PLAIN = 1, SMALL_MTU = 2, WAITED_FOR = 3, TWO_PAIRS = 4 };
enum { STEPS = 120, MOST_FRAMES = 80, MANY = 1500 };
enum { F_CSUM = 0 };

#define MULTICAST    0x01005e000001ULL
#define STATIC_GROUP 0x01005e000002ULL
#define BPDU         0x0180c2000000ULL

/* Addresses that the FDB has from the beginning: one at PLAIN, one where another port was before it, and one at nobody's. */
#define STATIC_MAC LAB_MAC(50)
#define STALE_MAC  LAB_MAC(51)
#define NOWHERE    LAB_MAC(52)
#define NEW_MAC(i) LAB_MAC(100 + (i))

enum kind { ORDINARY, MALFORMED, REQUEST };

struct sent {
    uint64_t dst, src;
    uint32_t len;
    enum kind kind;
};

/* What a script is played with. */
struct scene {
    uint64_t features;   /* taken from, or added to the default ones */
    uint32_t rx_buffers; /* that a guest has when a step begins, of `rx_buf_size` bytes */
    uint32_t rx_buf_size;
    uint32_t fdb_limit;
    uint32_t largest;
    bool large_fdb, no_waiting, two_pairs, forward_bpdu;
};

/* What is to be the same. */
struct outcome {
    struct lab_counters counters[PORTS];
    uint64_t received[PORTS][2]; /* by pair: a hash of everything in order */
    uint64_t frames, punts, events;
    uint32_t known;
};

static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME], got[PVS_MAX_FRAME];

static void
mix(uint64_t *hash, const void *bytes, size_t len)
{
    const uint8_t *p = bytes;
    for (size_t i = 0; i < len; i++)
        *hash = (*hash ^ p[i]) * 0x100000001b3ULL;
}

static void
set_static(uint64_t mac, uint32_t ref)
{
    uint8_t bytes[6];
    pvs_mac_store(bytes, mac);
    CHECK_EQ(pvs_fdb_set_static(lab.fdb, bytes, 0, ref, 0), 0);
}

static void
open_scene(const struct scene *scene)
{
    struct lab_conf conf = lab_conf_default(PORTS);

    conf.pairs[TWO_PAIRS] = scene->two_pairs ? 2 : 1;
    conf.guest.features ^= scene->features;
    conf.guest.queue_size = 512;
    conf.guest.rx_buf_size = scene->rx_buf_size;
    conf.guest.tx_buf_size = 10000;
    conf.fdb_limit = scene->fdb_limit;
    conf.bridge.punt_bpdu = true;
    conf.bridge.forward_bpdu = scene->forward_bpdu;
    lab_open(&lab, &conf);
    lab.port[SMALL_MTU].conf.mtu = 600; /* neither the first nor the last is the smallest */
    lab.port[WAITED_FOR].conf.mtu = 300;
    lab.port[TWO_PAIRS].conf.mtu = 900;
    lab.port[WAITED_FOR].conf.backpressure_ms = scene->no_waiting ? 0 : 10;
    lab_publish(&lab);
    uint32_t plain = pvs_port_ref(lab.port[PLAIN].port);
    set_static(STATIC_MAC, plain);
    set_static(STATIC_GROUP, plain);
    set_static(STALE_MAC, plain ^ 0x70000);
    set_static(NOWHERE, plain + PORTS);
    for (uint32_t i = 0; scene->large_fdb && i < MANY; i++)
        set_static(LAB_MAC(10000 + i), plain);
}

static uint64_t
some_address(uint64_t *seed, bool source)
{
    static const uint64_t special[] = {
        LAB_BROADCAST, MULTICAST, STATIC_GROUP, BPDU, 0, STALE_MAC, NOWHERE, STATIC_MAC
    };

    switch (lab_random(seed, 8)) {
    case 0:
        return source && lab_random(seed, 4) != 0 ? LAB_MAC(0) : special[lab_random(seed, 8)];
    case 1:
        return NEW_MAC(lab_random(seed, 40));
    default:
        return LAB_MAC(lab_random(seed, PORTS));
    }
}

/* Like the one before it in most things; `own` is the address that the sender should have. */
static struct sent
next_sent(uint64_t *seed, struct sent last, uint64_t own, uint32_t largest)
{
    if (lab_random(seed, 3) == 0)
        last.dst = some_address(seed, false);
    if (lab_random(seed, 6) == 0)
        last.src = lab_random(seed, 3) == 0 ? some_address(seed, true) : own;
    uint32_t odd = lab_random(seed, 24);
    last.kind = odd == 0 ? MALFORMED : odd < 3 ? REQUEST : ORDINARY;
    if (lab_random(seed, 4) == 0)
        last.len = 60 + lab_random(seed, lab_random(seed, 4) == 0 ? largest - 60 : 700);
    return last;
}

static void
put(uint32_t port, uint32_t pair, const struct sent *s, uint32_t salt)
{
    static const uint8_t request[12] = { 1 /* NEEDS_CSUM */, [6] = 34, [8] = 6 }, wrong[12] = { [1] = 77 };
    static const struct pvd_layout parts = { .n_cuts = 4, .cuts = { 12, 150, 163, 420 } }; /* a tail of several parts */
    const uint8_t *header = s->kind == REQUEST ? request : s->kind == MALFORMED ? wrong : NULL;

    lab_frame(frame, s->dst, s->src, s->len, salt);
    if (s->kind == REQUEST)
        lab_udp(frame, s->dst, s->src, (uint16_t)salt, s->len);
    CHECK_EQ(pvd_tx(lab.port[port].guest, pair, header, frame, s->len, salt % 4 == 0 ? &parts : NULL), 0);
    CHECK(pvd_kick_force(lab.port[port].guest, 2 * pair + 1) >= 0);
}

/* Until all `n` frames of a ring have been taken; the clock stands. */
static void
take(uint32_t port, uint32_t pair, uint32_t n)
{
    for (uint32_t rounds = 0, taken = 0; taken < n; rounds++) {
        CHECK(rounds < 100);
        CHECK(pvs_poll_once(lab.sw, 0, lab.now_ns) >= 0);
        int reaped = pvd_tx_reap(lab.port[port].guest, pair);
        CHECK(reaped >= 0);
        taken += (uint32_t)reaped;
    }
}

/* Empty all receive rings and fill them up again. */
static void
receive(const struct scene *scene, struct outcome *o)
{
    struct pvd_rx_info info;
    struct pvs_event event;
    struct pvs_punt punt;
    int len;

    for (uint32_t i = 0; i < PORTS; i++) {
        for (uint32_t pair = 0; pair < pvd_n_rings(lab.port[i].guest) / 2; pair++) {
            while ((len = pvd_rx(lab.port[i].guest, pair, got, sizeof got, &info)) >= 0) {
                mix(&o->received[i][pair], &info, sizeof info);
                mix(&o->received[i][pair], &len, sizeof len);
                mix(&o->received[i][pair], got, (size_t)len);
                o->frames++;
            }
            CHECK_EQ(len, -11 /* EAGAIN */);
            uint32_t there = lab_driver(&lab, i, 2 * pair).in_flight;
            CHECK(pvd_rx_fill(lab.port[i].guest, pair, scene->rx_buffers - there, NULL) >= 0);
        }
    }
    while (pvs_event_next(lab.sw, &event) == 1) {
        mix(&o->events, &event.kind, sizeof event.kind);
        mix(&o->events, &event.detail, sizeof event.detail);
        mix(&o->events, &event.port_ref, sizeof event.port_ref);
        mix(&o->events, event.mac, sizeof event.mac);
    }
    while ((len = pvs_punt_next(lab.sw, &punt, got, sizeof got)) > 0) {
        mix(&o->events, &punt.port_ref, sizeof punt.port_ref);
        mix(&o->events, got, (size_t)len);
        o->punts++;
    }
    CHECK_EQ(len, 0);
}

static void
play(const struct scene *scene, bool in_bursts, struct outcome *o)
{
    uint64_t seed = 4711;

    memset(o, 0, sizeof *o);
    open_scene(scene);
    for (uint32_t step = 0; step < STEPS; step++) {
        receive(scene, o);
        lab.now_ns += lab_random(&seed, 20) == 0 ? 200000000000ULL : 20000000; /* now and then addresses age */
        uint32_t port = lab_random(&seed, 2) == 0 ? 0 : lab_random(&seed, PORTS),
                 n = 1 + lab_random(&seed, MOST_FRAMES);
        uint32_t pair = scene->two_pairs && port == TWO_PAIRS ? lab_random(&seed, 2) : 0;
        struct sent s = { .dst = LAB_MAC(PLAIN), .src = LAB_MAC(port), .len = 60 };
        for (uint32_t i = 0; i < n; i++) {
            s = next_sent(&seed, s, LAB_MAC(port), scene->largest);
            put(port, pair, &s, step * MOST_FRAMES + i);
            if (!in_bursts)
                take(port, pair, 1);
        }
        if (in_bursts)
            take(port, pair, n);
    }
    receive(scene, o);
    o->known = pvs_fdb_count(lab.fdb);
    for (uint32_t i = 0; i < PORTS; i++)
        o->counters[i] = lab_counters(&lab, i);
    lab_check_sums(&lab);
    lab_close(&lab);
}

static struct outcome
play_twice(const struct scene *scene)
{
    struct outcome bursts, singles;

    play(scene, true, &bursts);
    play(scene, false, &singles);
    CHECK_EQ(bursts.frames, singles.frames);
    CHECK_EQ(bursts.punts, singles.punts);
    CHECK_EQ(bursts.events, singles.events);
    CHECK_EQ(bursts.known, singles.known);
    for (uint32_t i = 0; i < PORTS; i++) {
        for (int c = 0; c < PVS_COUNTER_COUNT; c++)
            CHECK_EQ(bursts.counters[i].value[c], singles.counters[i].value[c]);
        for (int d = 0; d < PVS_DROP_COUNT; d++) {
            CHECK_EQ(bursts.counters[i].rx_drop[d], singles.counters[i].rx_drop[d]);
            CHECK_EQ(bursts.counters[i].tx_drop[d], singles.counters[i].tx_drop[d]);
        }
        CHECK_EQ(bursts.received[i][0], singles.received[i][0]);
        CHECK_EQ(bursts.received[i][1], singles.received[i][1]);
    }
    CHECK(bursts.frames > 2000);
    return bursts;
}

static const struct scene USUAL = {
    .features = 1U << F_CSUM, .rx_buffers = 512, .rx_buf_size = 2048, .fdb_limit = 4096, .largest = 1514
};

TEST_EACH_RING(a_burst_goes_as_its_frames_one_by_one)
{
    struct outcome o = play_twice(&USUAL);

    /* what short ways must not swallow is in it */
    CHECK(o.counters[0].rx_drop[PVS_DROP_malformed] > 50);
    CHECK(o.counters[0].rx_drop[PVS_DROP_bpdu] > 5);
    CHECK(o.counters[0].rx_drop[PVS_DROP_same_port] > 50);
    CHECK(o.counters[SMALL_MTU].tx_drop[PVS_DROP_mtu_exceeded] > 50);
}

TEST_EACH_RING(a_burst_goes_as_its_frames_where_a_guest_has_two_pairs)
{
    struct scene scene = USUAL;
    scene.two_pairs = true; /* whose frames are chosen a pair for, so that a flood goes no short way */
    play_twice(&scene);
}

TEST_EACH_RING(a_burst_goes_as_its_frames_where_bpdus_are_relayed)
{
    struct scene scene = USUAL;
    scene.forward_bpdu = true;
    CHECK(play_twice(&scene).punts > 20);
}

TEST_EACH_RING(a_burst_goes_as_its_frames_where_receivers_take_requests)
{
    struct scene scene = USUAL;
    scene.two_pairs = true;
    scene.features |= 1U << PVD_F_GUEST_CSUM;
    play_twice(&scene);
}

TEST_EACH_RING(a_burst_goes_as_its_frames_with_a_large_fdb)
{
    struct scene scene = USUAL;
    scene.large_fdb = true;
    play_twice(&scene);
}

TEST_EACH_RING(a_burst_goes_as_its_frames_with_a_full_fdb)
{
    struct scene scene = USUAL;
    scene.fdb_limit = 14; /* what is learned takes the place of what the burst goes by */
    play_twice(&scene);
}

TEST_EACH_RING(a_burst_goes_as_its_frames_into_scarce_buffers)
{
    struct scene scene = USUAL;
    scene.rx_buffers = 40;
    scene.rx_buf_size = 300;
    scene.no_waiting = true;
    struct outcome o = play_twice(&scene);
    CHECK(o.counters[PLAIN].tx_drop[PVS_DROP_guest_rx_full] > 100);
}

TEST_EACH_RING(a_burst_goes_as_its_frames_over_several_turns)
{
    struct scene scene = USUAL;
    scene.rx_buf_size = 10100;
    scene.largest = 9900; /* more than the budget of a turn, when they are flooded */
    play_twice(&scene);
}

/* ---- what a short way must not skip ---- */

static void
send_all(const struct sent *s, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        put(0, 0, &s[i], i);
    lab_poll(&lab, 2);
}

static uint32_t
count_events(void)
{
    struct pvs_event event;
    uint32_t n = 0;
    while (pvs_event_next(lab.sw, &event) == 1)
        n++;
    return n;
}

TEST_EACH_RING(a_source_that_was_forgotten_within_a_burst_is_learned_anew)
{
    static const struct sent burst[] = { { LAB_MAC(1), LAB_MAC(0), 60, ORDINARY },
                                         { LAB_MAC(1), LAB_MAC(0), 60, ORDINARY },
                                         { LAB_MAC(1), NEW_MAC(0), 60, ORDINARY },
                                         { LAB_MAC(1), LAB_MAC(0), 60, ORDINARY },
                                         { LAB_MAC(1), LAB_MAC(0), 60, ORDINARY } };
    struct lab_conf conf = lab_conf_default(2);

    conf.fdb_limit = 2; /* one takes the other's place */
    lab_open(&lab, &conf);
    set_static(LAB_MAC(1), pvs_port_ref(lab.port[1].port));
    lab_fill(&lab, 1, 10);
    send_all(burst, 5);
    CHECK_EQ(count_events(), 3);
    CHECK_EQ(lab_driver(&lab, 1, 0).posted, 10);
    CHECK_EQ(lab_counters(&lab, 1).value[PVS_C_tx_packets], 5);
    lab_check_sums(&lab);
    lab_close(&lab);
}

TEST_EACH_RING(a_source_that_could_not_be_learned_is_tried_with_the_next_frame)
{
    enum { LIMIT = 8192, BURST = 200 };
    struct sent s = { LAB_MAC(1), 0, 60, ORDINARY };
    struct lab_conf conf = lab_conf_default(2);
    struct pvs_perf perf;

    conf.fdb_limit = 2 * LIMIT;
    lab_open(&lab, &conf);
    set_static(LAB_MAC(1), pvs_port_ref(lab.port[1].port));
    for (uint32_t i = 0; i < LIMIT; i++) {
        s.src = LAB_MAC(10000 + i);
        put(0, 0, &s, i);
        if (i % BURST == BURST - 1 || i == LIMIT - 1) {
            lab.now_ns += LAB_STEP_NS;
            take(0, 0, i % BURST + 1);
        }
    }
    s.src = NEW_MAC(1);
    for (uint32_t i = 0; i < 7; i++)
        put(0, 0, &s, i);
    lab.now_ns += LAB_STEP_NS;
    take(0, 0, 7);
    CHECK_EQ(pvs_worker_perf(lab.sw, 0, &perf), 0);
    CHECK_EQ(perf.learn_skipped, 7);
    lab_close(&lab);
}

TEST_EACH_RING(a_frame_to_a_port_that_is_waited_for_waits_behind_a_flood)
{
    static const uint64_t dst[] = { LAB_BROADCAST, LAB_BROADCAST, LAB_MAC(1), LAB_BROADCAST,
                                    LAB_MAC(1),    LAB_MAC(1),    LAB_MAC(1) };
    enum { N = sizeof dst / sizeof dst[0], ROOM = 5 };
    struct sent burst[N];
    struct lab_conf conf = lab_conf_default(3);

    lab_open(&lab, &conf);
    lab_learn_all(&lab);
    lab.port[1].conf.backpressure_ms = 100;
    lab_publish(&lab);
    CHECK_EQ(pvd_tx_reap(lab.port[0].guest, 0), 1);
    uint64_t dropped = lab_sum(lab_counters(&lab, 1).tx_drop);
    lab_fill(&lab, 1, ROOM);
    for (uint32_t i = 0; i < N; i++)
        burst[i] = (struct sent){ dst[i], LAB_MAC(0), 60, ORDINARY };
    send_all(burst, N);
    CHECK_EQ(pvd_tx_reap(lab.port[0].guest, 0), ROOM);
    for (uint32_t i = 0; i < ROOM; i++) {
        lab_frame(frame, burst[i].dst, burst[i].src, 60, i);
        lab_expect(&lab, 1, frame, 60);
    }
    lab_fill(&lab, 1, N - ROOM);
    pvd_kick_force(lab.port[1].guest, 0);
    lab_poll(&lab, 3);
    CHECK_EQ(pvd_tx_reap(lab.port[0].guest, 0), N - ROOM);
    CHECK_EQ(lab_sum(lab_counters(&lab, 1).tx_drop), dropped);
    lab_check_sums(&lab);
    lab_close(&lab);
}

/* ---- the budget of a turn ---- */

/* How many of 64 frames of 9,000 bytes to these addresses, by turns, leave in one turn. */
static int
taken_in_a_turn(uint64_t first, uint64_t second)
{
    enum { LEN = 9000 };

    for (uint32_t i = 1; i < 4; i++)
        lab_fill(&lab, i, 64);
    for (uint32_t i = 0; i < 64; i++) {
        lab_frame(frame, i % 2 == 0 ? first : second, LAB_MAC(0), LEN, i);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, LEN, NULL), 0);
    }
    CHECK(pvd_kick_force(lab.port[0].guest, 1) >= 0);
    lab_poll(&lab, 1);
    int taken = pvd_tx_reap(lab.port[0].guest, 0);
    for (int i = 0; i < taken; i++) {
        uint64_t dst = i % 2 == 0 ? first : second;
        lab_frame(frame, dst, LAB_MAC(0), LEN, (uint32_t)i);
        for (uint32_t port = 1; port < 4; port++)
            if (dst == LAB_BROADCAST || dst == LAB_MAC(77) || dst == LAB_MAC(port))
                lab_expect(&lab, port, frame, LEN);
    }
    for (uint32_t port = 1; port < 4; port++)
        lab_expect_nothing(&lab, port);
    lab_poll(&lab, 10);
    CHECK_EQ(pvd_tx_reap(lab.port[0].guest, 0), 64 - taken);
    for (uint32_t port = 1; port < 4; port++)
        while (pvd_rx(lab.port[port].guest, 0, got, sizeof got, NULL) >= 0)
            ;
    return taken;
}

TEST_EACH_RING(a_turn_ends_with_the_frame_that_spends_the_budget)
{
    /* a copy costs its bytes and 64 for each segment, of which there is one, and 64 more */
    enum { BUDGET = 512 * 1024, COST = 9000 + 128, UNICAST = BUDGET / COST + 1, FLOOD = BUDGET / (3 * COST) + 1 };
    struct lab_conf conf = lab_conf_default(4);

    conf.guest.rx_buf_size = conf.guest.tx_buf_size = 9100;
    lab_open(&lab, &conf);
    lab_learn_all(&lab);
    CHECK_EQ(pvd_tx_reap(lab.port[0].guest, 0), 1);
    CHECK_EQ(taken_in_a_turn(LAB_MAC(1), LAB_MAC(1)), UNICAST);
    CHECK_EQ(taken_in_a_turn(LAB_MAC(1), LAB_MAC(2)), UNICAST);
    CHECK_EQ(taken_in_a_turn(LAB_BROADCAST, LAB_BROADCAST), FLOOD);
    CHECK_EQ(taken_in_a_turn(LAB_MAC(77), LAB_MAC(77)), FLOOD);
    CHECK_EQ(taken_in_a_turn(LAB_MAC(3), LAB_BROADCAST), 2 * (BUDGET / (4 * COST) + 1));
    lab_check_sums(&lab);
    lab_close(&lab);
}
