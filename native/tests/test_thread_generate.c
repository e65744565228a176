/* SPDX-License-Identifier: Apache-2.0 */
/* test_thread_generate.c - the guest driver's load generator, with the device of reference_device.h in a thread of its own. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "flow_lab.h"
#include "reference_device.h"
#include "test.h"

enum { HDR = REFERENCE_HEADER, GUESTS = 8 };
enum { F_CSUM = 0, F_HOST_TSO4 = 11 };

#define BIT(n) (1ull << (n))

static const uint64_t BASE =
    BIT(PVD_F_VERSION_1) | BIT(PVD_F_MRG_RXBUF) | BIT(PVD_F_INDIRECT_DESC) | BIT(PVD_F_EVENT_IDX);
static const uint64_t GSO = BIT(F_CSUM) | BIT(F_HOST_TSO4) | BIT(PVD_F_GUEST_CSUM) | BIT(PVD_F_GUEST_TSO4);
static const uint64_t FORMATS[] = { 0, BIT(PVD_F_RING_PACKED), BIT(PVD_F_IN_ORDER),
                                    BIT(PVD_F_RING_PACKED) | BIT(PVD_F_IN_ORDER) };
enum { N_FORMATS = sizeof FORMATS / sizeof FORMATS[0] };
static const uint8_t MAC_A[6] = { 2, 0, 0, 0, 0, 0xa }, MAC_B[6] = { 2, 0, 0, 0, 0, 0xb };

static pvd_guest *guest[GUESTS];
static struct reference_ring rx[GUESTS], tx[GUESTS];
static uint32_t n_guests;
static struct pvd_gen_result result;

/* ---- The wire: what guest i sends goes to those that to[i] has a bit for ---- */

enum trouble { NONE, LOSE, SWAP, FLIP, WRONG_ID, BACKWARDS, OVERWRITE };

static struct {
    pthread_t thread;
    atomic_bool stop;
    uint32_t to[GUESTS];
    bool deal; /* to one of them in turn instead of to all */
    enum trouble trouble;
    uint32_t every; /* trouble befalls each so many-th frame */
    uint32_t at;    /* FLIP: which byte */
    uint32_t batch;
    uint32_t n;
} wire;

static uint8_t frame[REFERENCE_FRAME];

/* The next receiver of a frame that is dealt, or all. */
static uint32_t
receivers(uint32_t from, uint32_t n)
{
    uint32_t k = 0, chosen = 0;
    if (!wire.deal)
        return wire.to[from];
    for (uint32_t i = 0; i < n_guests; i++)
        k += wire.to[from] >> i & 1;
    k = n % k;
    for (uint32_t i = 0; i < n_guests; i++)
        if ((wire.to[from] >> i & 1) != 0 && k-- == 0)
            chosen = 1u << i;
    return chosen;
}

static void
deliver(uint32_t from, uint8_t *bytes, uint32_t len, uint32_t n)
{
    uint32_t to = receivers(from, n);
    for (uint32_t i = 0; i < n_guests; i++)
        while ((to >> i & 1) != 0 && !reference_send(&rx[i], bytes, len) && !atomic_load(&wire.stop))
            sched_yield();
}

static void
carry(uint32_t from, const struct reference_chain *c)
{
    static uint8_t kept[REFERENCE_FRAME];
    static uint32_t kept_len;
    bool troubled = wire.every != 0 && ++wire.n % wire.every == 0;
    uint32_t n = wire.n == 0 ? 0 : wire.n - 1;
    reference_read(&tx[from], c, frame);
    if (wire.deal && wire.every == 0)
        n = wire.to[GUESTS - 1]++;
    if (troubled && wire.trouble == LOSE)
        return;
    if (troubled && wire.trouble == FLIP)
        frame[wire.at] ^= 0x10;
    if (troubled && wire.trouble == SWAP) {
        kept_len = c->len;
        memcpy(kept, frame, c->len);
        return;
    }
    deliver(from, frame, c->len, n);
    if (kept_len != 0) {
        deliver(from, kept, kept_len, n);
        kept_len = 0;
    }
}

/* Give chains back in the way that is wanted. */
static void
give_back(struct reference_ring *r, struct reference_chain *c, uint32_t n)
{
    if (wire.trouble == WRONG_ID && n > 0)
        c[0].id = 5000;
    if (r->in_order && n > 0 && wire.batch > 1) {
        reference_use_batch(r, c, n);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        reference_use(r, &c[wire.trouble == BACKWARDS ? n - 1 - i : i], 0);
}

static void *
wire_run(void *unused)
{
    static struct reference_chain c[16];
    (void)unused;
    while (!atomic_load(&wire.stop)) {
        for (uint32_t i = 0; i < n_guests; i++) {
            uint32_t n = 0, most = wire.batch != 0 ? wire.batch : 1;
            while (n < most && reference_take(&tx[i], &c[n]))
                carry(i, &c[n++]);
            give_back(&tx[i], c, n);
            if (n == 0)
                sched_yield();
        }
    }
    return NULL;
}

static void
wire_start(void)
{
    atomic_store(&wire.stop, false);
    CHECK_EQ(pthread_create(&wire.thread, NULL, wire_run, NULL), 0);
}

static void
wire_stop(void)
{
    atomic_store(&wire.stop, true);
    CHECK_EQ(pthread_join(wire.thread, NULL), 0);
}

/* ---- Guests ---- */

static void
open_guest(uint64_t features, uint32_t queue_size, uint32_t rx_buf, uint32_t flags)
{
    struct pvd_conf conf;
    pvd_conf_default(&conf);
    conf.queue_size = queue_size;
    conf.features = features;
    conf.rx_buf_size = rx_buf;
    conf.tx_buf_size = 66000;
    conf.flags = flags;
    CHECK(n_guests < GUESTS);
    CHECK_EQ(pvd_guest_create(&conf, &guest[n_guests]), 0);
    rx[n_guests] = reference_open(guest[n_guests], 0, features);
    tx[n_guests] = reference_open(guest[n_guests], 1, features);
    n_guests++;
}

static void
open_pair(uint64_t features)
{
    open_guest(BASE | features, 64, 2048, 0);
    open_guest(BASE | features, 64, 2048, 0);
    wire.to[0] = 2;
    wire.to[1] = 1;
}

static void
close_all(void)
{
    while (n_guests > 0)
        pvd_guest_destroy(guest[--n_guests]);
    memset(&wire, 0, sizeof wire);
}

static struct pvd_gen_conf
load(uint32_t len, uint32_t level)
{
    struct pvd_gen_conf conf = { .len = len, .level = level, .window = 32, .frames = 400, .stall_ns = 20000000000ull };
    memcpy(conf.dst, MAC_B, 6);
    memcpy(conf.src, MAC_A, 6);
    return conf;
}

static void
check_whole(const struct pvd_gen_conf *conf, uint32_t copies)
{
    CHECK_EQ(result.sent, conf->frames);
    CHECK_EQ(result.received, conf->frames * copies);
    CHECK_EQ(result.lost, 0);
    CHECK_EQ(result.reordered, 0);
    CHECK_EQ(result.corrupted, 0);
    CHECK_EQ(result.foreign, 0);
    CHECK_EQ(result.errors, 0);
    CHECK_EQ(result.measured, result.received);
    CHECK_EQ(result.measured_ns, result.ns);
}

static void
run(const struct pvd_gen_conf *conf)
{
    wire_start();
    CHECK_EQ(pvd_generate(guest[0], &guest[1], n_guests - 1, conf, &result), 0);
    wire_stop();
}

/* Whether rings are as they should be after a run: frames go through by the ordinary calls, too. */
static void
check_rings(void)
{
    static uint8_t got[2048];
    uint8_t sent[60];
    struct pvd_counters c;
    memset(sent, 0x5a, sizeof sent);
    for (uint32_t i = 0; i < 200; i++) {
        sent[0] = (uint8_t)i;
        struct reference_chain chain;
        struct pvd_layout layout = { .n_cuts = i % 3, .cuts = { HDR, 30 } };
        CHECK_EQ(pvd_tx(guest[0], 0, NULL, sent, sizeof sent, &layout), 0);
        CHECK(reference_take(&tx[0], &chain));
        reference_read(&tx[0], &chain, frame);
        CHECK(memcmp(frame + HDR, sent, sizeof sent) == 0);
        reference_use(&tx[0], &chain, 0);
        CHECK_EQ(pvd_tx_reap(guest[0], 0), 1);
        CHECK(reference_send(&rx[1], frame, HDR + sizeof sent));
        CHECK_EQ(pvd_rx(guest[1], 0, got, sizeof got, NULL), sizeof sent);
        CHECK(memcmp(got, sent, sizeof sent) == 0);
        CHECK(pvd_rx_fill(guest[1], 0, 1, NULL) >= 0);
    }
    CHECK_EQ(pvd_counters_get(guest[1], 0, &c), 0);
    CHECK_EQ(c.in_flight, 64);
}

TEST(thread_generator_frames_arrive_whole_in_all_formats_and_layouts)
{
    static const uint32_t LENS[] = { 34, 60, 63, 64, 71, 200, 1518, 9000 };
    static const uint32_t FLAGS[] = { 0, PVD_GEN_SPLIT_HEADER, PVD_GEN_INDIRECT };
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        open_pair(FORMATS[f]);
        wire.batch = 7;
        for (uint32_t flags = 0; flags < 3; flags++) {
            for (uint32_t l = 0; l < sizeof LENS / sizeof LENS[0]; l++) {
                struct pvd_gen_conf conf = load(LENS[l], l % 3);
                conf.flags = FLAGS[flags];
                run(&conf);
                check_whole(&conf, 1);
                conf.level = 2;
                run(&conf);
                check_whole(&conf, 1);
            }
        }
        check_rings();
        close_all();
    }
}

TEST(thread_generator_takes_any_ring_size_and_order_of_buffers)
{
    static const uint32_t SIZES[] = { 1, 3, 50, 100 };
    for (uint32_t s = 0; s < 4; s++) {
        open_guest(BASE | FORMATS[s % 2 * 2 + 1], SIZES[s], 2048, PVD_CONF_SHUFFLE);
        open_guest(BASE, 64, 2048, PVD_CONF_SHUFFLE);
        wire.to[0] = 2;
        struct pvd_gen_conf conf = load(1000, 2);
        conf.window = SIZES[s] < 32 ? SIZES[s] : 32;
        run(&conf);
        check_whole(&conf, 1);
        close_all();
    }
}

TEST(thread_generator_uses_receive_buffers_that_were_posted_otherwise)
{
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        open_pair(FORMATS[f]);
        struct pvd_layout cut = { .n_cuts = 1, .cuts = { HDR } };
        CHECK_EQ(pvd_rx_fill(guest[1], 0, 5, &cut), 5);
        struct pvd_gen_conf conf = load(3000, 2);
        run(&conf);
        check_whole(&conf, 1);
        close_all();
    }
}

TEST(thread_generator_sends_gso_frames)
{
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        for (uint32_t level = 0; level < 3; level++) {
            open_guest(BASE | GSO | FORMATS[f], 64, 4096, 0);
            open_guest(BASE | GSO | FORMATS[f], 64, 4096, 0);
            wire.to[0] = 2;
            struct pvd_gen_conf conf = load(65000, level);
            conf.flags = PVD_GEN_GSO;
            conf.frames = 40;
            conf.window = 8;
            run(&conf);
            check_whole(&conf, 1);
            /* What the last one held: a header that says how to cut it, and a TCP segment. */
            static const uint8_t header[10] = { 1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0 };
            CHECK(memcmp(frame, header, sizeof header) == 0);
            CHECK_EQ(frame[HDR + 12] << 8 | frame[HDR + 13], 0x0800);
            CHECK_EQ(frame[HDR + 16] << 8 | frame[HDR + 17], 65000 - 14);
            uint32_t sum = 0;
            for (uint32_t i = 14; i < 34; i += 2)
                sum += (uint32_t)frame[HDR + i] << 8 | frame[HDR + i + 1];
            CHECK_EQ((sum & 0xffff) + (sum >> 16), 0xffff);
            /* 10.0 + 0.1 + 10.0 + 0.2 + TCP + length */
            CHECK_EQ(frame[HDR + 50] << 8 | frame[HDR + 51], (0x0a00 + 1 + 0x0a00 + 2 + 6 + 65000 - 34) % 0xffff);
            close_all();
        }
    }
    open_pair(0);
    struct pvd_gen_conf conf = load(65000, 1);
    conf.flags = PVD_GEN_GSO;
    CHECK_EQ(pvd_generate(guest[0], &guest[1], 1, &conf, &result), -EINVAL);
    close_all();
}

TEST(thread_generator_rotates_addresses_and_receivers)
{
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        for (uint32_t level = 0; level < 3; level++) {
            struct pvd_gen_conf conf = load(64, level);
            conf.n_dst = 3;
            conf.n_src = 7;
            open_pair(FORMATS[f]);
            run(&conf);
            check_whole(&conf, 1);
            /* Frame 399, of addresses that are counted from 0. */
            CHECK_EQ(frame[HDR + 5], 0xb + 399 % 3);
            CHECK_EQ(frame[HDR + 11], 0xa + 399 % 7);
            close_all();
            open_pair(FORMATS[f]);
            open_guest(BASE, 64, 2048, 0);
            open_guest(BASE, 64, 128, 0);
            wire.to[0] = 2 + 4 + 8;
            wire.deal = true;
            conf.n_dst = 3;
            run(&conf);
            check_whole(&conf, 1);
            wire.deal = false;
            conf.flags = PVD_GEN_FLOOD;
            conf.n_dst = 1;
            run(&conf);
            check_whole(&conf, 3);
            close_all();
        }
    }
}

/* As the short form and as the general one write and check it: at 64 bytes, and longer. */
TEST(thread_generator_rotates_ports)
{
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        for (uint32_t i = 0; i < 6; i++) {
            struct pvd_gen_conf conf = load(i < 3 ? 64 : 200, i % 3);
            conf.n_tuples = 2001;
            conf.frames = 2001 + 1999;
            open_pair(FORMATS[f]);
            run(&conf);
            check_whole(&conf, 1);
            /* Tuple 1998, and its whole IP header: from 10.0.0.1:1001 to 10.0.0.2:1998. */
            const uint8_t *ip = frame + HDR + 14;
            CHECK(flow_get16(frame + HDR + 12) == 0x0800 && ip[9] == 17);
            CHECK_EQ(flow_sum(0, ip, 20), 0xffff);
            CHECK_EQ(flow_get16(ip + 2), conf.len - 14);
            CHECK_EQ(flow_get16(ip + 24), conf.len - 34);
            CHECK_EQ(flow_get16(ip + 20), 1001);
            CHECK_EQ(flow_get16(ip + 22), 1998);
            conf.len = 63;
            CHECK_EQ(pvd_generate(guest[0], &guest[1], 1, &conf, &result), -EINVAL);
            close_all();
        }
    }
}

TEST(thread_generator_serves_several_flows)
{
    struct pvd_gen_flow flows[6];
    for (uint32_t i = 0; i < 6; i++) {
        open_guest(BASE | FORMATS[i % N_FORMATS], 64, 2048, 0);
        wire.to[i] = 1u << (i ^ 1);
    }
    for (uint32_t i = 0; i < 6; i++) {
        flows[i] = (struct pvd_gen_flow){ .tx = guest[i], .rx = guest[i ^ 1] };
        memcpy(flows[i].dst, MAC_B, 6);
        memcpy(flows[i].src, MAC_A, 6);
        flows[i].dst[1] = flows[i].src[1] = (uint8_t)i;
    }
    wire_start();
    for (uint32_t level = 0; level < 3; level++) {
        struct pvd_gen_conf conf = load(400, level);
        CHECK_EQ(pvd_generate_many(flows, 6, &conf, &result), 0);
        CHECK_EQ(result.sent, 6 * 400);
        CHECK_EQ(result.received, 6 * 400);
        CHECK_EQ(result.lost + result.corrupted + result.foreign + result.reordered + result.errors, 0);
    }
    wire_stop();
    struct pvd_gen_conf conf = load(400, 1);
    flows[5].rx = guest[0];
    CHECK_EQ(pvd_generate_many(flows, 6, &conf, &result), -EINVAL);
    flows[5].rx = guest[4];
    conf.flags = PVD_GEN_FLOOD;
    CHECK_EQ(pvd_generate_many(flows, 6, &conf, &result), -EINVAL);
    CHECK_EQ(pvd_generate_many(flows, 0, &conf, &result), -EINVAL);
    close_all();
}

/* Of the gaps it learns at once: no stall may be waited for, though the losses would fill the window. */
TEST(thread_generator_counts_losses_and_goes_on_at_once)
{
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        open_pair(FORMATS[f]);
        wire.trouble = LOSE;
        wire.every = 11;
        struct pvd_gen_conf conf = load(64, 1);
        conf.window = 10;
        run(&conf);
        CHECK_EQ(result.lost, 400 / 11);
        CHECK_EQ(result.received, 400 - 400 / 11);
        CHECK_EQ(result.reordered + result.corrupted + result.foreign + result.errors, 0);
        close_all();
    }
}

TEST(thread_generator_counts_frames_out_of_order)
{
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        open_pair(FORMATS[f]);
        wire.trouble = SWAP;
        wire.every = 10;
        struct pvd_gen_conf conf = load(64, 1);
        conf.frames = 399;
        run(&conf);
        CHECK_EQ(result.received, 399);
        CHECK_EQ(result.reordered, 39);
        CHECK_EQ(result.lost + result.corrupted + result.foreign + result.errors, 0);
        close_all();
    }
}

/* Which bytes are looked at: at level 1 the first 64 (with GSO the headers and 48 more), at level 2 all. */
TEST(thread_generator_sees_changed_bytes)
{
    static const struct {
        uint32_t len, flags, level, at, corrupted, foreign, n_tuples;
    } CASES[] = {
        { 1000, 0, 0, 3, 0, 0, 0 },
        { 1000, 0, 0, 16, 0, 39, 0 },
        { 1000, 0, 1, 3, 39, 0, 0 },
        { 1000, 0, 1, 13, 0, 39, 0 },
        { 1000, 0, 1, 17, 0, 39, 0 },
        { 1000, 0, 1, 63, 39, 0, 0 },
        { 1000, 0, 1, 64, 0, 0, 0 },
        { 1000, 0, 2, 64, 39, 0, 0 },
        { 1000, 0, 2, 999, 39, 0, 0 },
        { 60, 0, 1, 59, 39, 0, 0 },
        { 9000, 0, 2, 2036, 39, 0, 0 },
        { 9000, 0, 2, 2035, 39, 0, 0 },
        { 9000, 0, 2, 8999, 39, 0, 0 },
        { 9000, 0, 1, 60, 39, 0, 0 },
        { 9000, 0, 1, 70, 0, 0, 0 },
        { 9000, PVD_GEN_GSO, 1, 30, 39, 0, 0 },
        { 9000, PVD_GEN_GSO, 1, 103, 39, 0, 0 },
        { 9000, PVD_GEN_GSO, 1, 104, 0, 0, 0 },
        { 9000, PVD_GEN_GSO, 2, 104, 39, 0, 0 },
        { 9000, PVD_GEN_SPLIT_HEADER, 2, 4100, 39, 0, 0 },
        { 64, 0, 1, 30, 39, 0, 10 },
        { 64, 0, 1, 37, 39, 0, 10 },
        { 64, 0, 1, 49, 0, 39, 10 },
        { 200, 0, 1, 37, 39, 0, 10 },
        { 200, 0, 1, 95, 39, 0, 10 },
    };
    for (uint32_t f = 0; f < 2; f++) {
        for (uint32_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
            open_pair(FORMATS[f] | GSO);
            wire.trouble = FLIP;
            wire.every = 10;
            wire.at = HDR + CASES[i].at;
            struct pvd_gen_conf conf = load(CASES[i].len, CASES[i].level);
            conf.flags = CASES[i].flags;
            conf.n_tuples = CASES[i].n_tuples;
            conf.frames = 399;
            /* At level 0 nothing tells which frames are missing: a stall must, once, as all of them fit the window. */
            conf.window = 64;
            conf.stall_ns = conf.level == 0 ? 2000000000 : conf.stall_ns;
            run(&conf);
            CHECK_EQ(result.corrupted, CASES[i].corrupted);
            CHECK_EQ(result.foreign, CASES[i].foreign);
            CHECK_EQ(result.lost, CASES[i].foreign);
            CHECK_EQ(result.errors + result.reordered, 0);
            close_all();
        }
    }
}

TEST(thread_generator_understands_chains_used_backwards)
{
    for (uint32_t f = 0; f < 2; f++) {
        open_pair(FORMATS[f]);
        wire.trouble = BACKWARDS;
        wire.batch = 5;
        struct pvd_gen_conf conf = load(64, 1);
        run(&conf);
        check_whole(&conf, 1);
        close_all();
    }
}

TEST(thread_generator_counts_violations)
{
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        open_pair(FORMATS[f]);
        wire.trouble = WRONG_ID;
        struct pvd_gen_conf conf = load(64, 1);
        conf.stall_ns = 500000000;
        run(&conf);
        CHECK_EQ(result.errors, 400);
        struct pvd_counters c;
        CHECK_EQ(pvd_counters_get(guest[0], 1, &c), 0);
        CHECK_EQ(c.last_error, PVD_ERR_ID_RANGE);
        close_all();
    }
}

/* A byte behind a receive buffer, written while the run goes on. */
TEST(thread_generator_finds_overwritten_guards)
{
    for (uint32_t f = 0; f < 2; f++) {
        open_pair(FORMATS[f]);
        CHECK_EQ(pvd_rx_fill(guest[1], 0, 64, NULL), 64);
        struct reference_ring peek = rx[1];
        struct reference_chain c;
        CHECK(reference_take(&peek, &c));
        *(uint8_t *)pvd_ptr(guest[1], c.seg[0].gpa + 2048, 1) ^= 1;
        struct pvd_gen_conf conf = load(64, 0);
        run(&conf);
        CHECK_EQ(result.received, 400);
        CHECK_EQ(result.errors, 1);
        close_all();
    }
}

TEST(thread_generator_ends_without_a_device)
{
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        open_pair(FORMATS[f]);
        struct pvd_gen_conf conf = load(64, 1);
        conf.frames = 10000;
        conf.stall_ns = 1000000;
        CHECK_EQ(pvd_generate(guest[0], &guest[1], 1, &conf, &result), 0);
        CHECK(result.sent > 0);
        CHECK_EQ(result.lost, result.sent);
        CHECK_EQ(pvd_generate(guest[0], &guest[1], 1, &conf, &result), -EBUSY);
        close_all();
    }
}

/* Whether a run had frames on both sides of its warm-up's end, and some of them due behind it. */
static bool
saw_both_sides(void)
{
    return result.measured > 0 && result.measured < result.received && result.latencies > 0;
}

TEST(thread_generator_keeps_a_rate_and_tells_latencies)
{
    for (uint32_t f = 0; f < 2; f++) {
        open_pair(FORMATS[f]);
        struct pvd_gen_conf conf = load(64, 1);
        conf.frames = 0;
        conf.rate_pps = 5000;
        /* A busy machine may leave all of a run out, or send it so late that only frames of the warm-up get through: it
         * has until the longest run to show what is looked for. */
        for (uint64_t ms = 100; ms == 100 || (!saw_both_sides() && ms <= 6400); ms *= 2) {
            conf.warmup_ns = ms * 1000000;
            conf.duration_ns = 4 * conf.warmup_ns;
            run(&conf);
            CHECK_EQ(result.lost + result.corrupted + result.foreign + result.errors, 0);
            /* What wasn't due is never sent. How much less it is on a busy machine is up to that. */
            CHECK(result.sent <= 5000 * (result.ns + 1000000) / 1000000000 + 1);
            CHECK(result.latencies <= result.measured && result.measured_ns <= result.ns);
        }
        CHECK(saw_both_sides());
        CHECK(result.measured_ns < result.ns);
        CHECK(pvd_gen_latency(&result, 0.5) > 0);
        CHECK(pvd_gen_latency(&result, 0.5) <= pvd_gen_latency(&result, 0.99));
        CHECK(pvd_gen_latency(&result, 1.0) <= result.latency_max + result.latency_max / 64 + 1);
        conf.level = 0;
        CHECK_EQ(pvd_generate(guest[0], &guest[1], 1, &conf, &result), -EINVAL);
        conf.level = 1;
        conf.len = 39;
        CHECK_EQ(pvd_generate(guest[0], &guest[1], 1, &conf, &result), -EINVAL);
        close_all();
    }
}

/* More is in flight than the receive ring holds; nothing is lost, as this device waits for buffers. */
TEST(thread_generator_receives_no_faster_than_told)
{
    open_pair(0);
    struct pvd_gen_conf conf = load(64, 1);
    conf.window = 100;
    conf.rx_pps = 2000;
    run(&conf);
    check_whole(&conf, 1);
    CHECK(result.ns >= (400 - 64) * 1000000000ull / 2000);
    close_all();
}

TEST(thread_generator_stops_when_told)
{
    open_pair(0);
    struct pvd_gen_conf conf = load(64, 1);
    conf.frames = 0;
    conf.duration_ns = 3600000000000ull;
    pvd_stop(guest[0], 1);
    CHECK_EQ(pvd_generate(guest[0], &guest[1], 1, &conf, &result), 0);
    CHECK_EQ(result.sent, 0);
    close_all();
}

TEST(thread_generator_round_trips)
{
    uint64_t ns[30];
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        open_pair(FORMATS[f]);
        struct pvd_gen_conf conf = load(60, 1);
        wire_start();
        CHECK_EQ(pvd_pingpong(guest[0], guest[1], &conf, 30, 0, ns), 30);
        wire_stop();
        for (uint32_t i = 0; i < 30; i++)
            CHECK(ns[i] > 0 && ns[i] < UINT64_MAX);
        close_all();
    }
}

/* A bucket's middle is within 1/64 of what is counted in it. */
TEST(latency_buckets_are_as_exact_as_said)
{
    for (uint64_t ns = 1; ns < 1ull << 38; ns += 1 + ns / 7) {
        struct pvd_gen_result r = { .latencies = 0 };
        uint32_t i = 0;
        while (i < PVD_GEN_BUCKETS - 1 && pvd_gen_bucket_ns(i) < ns)
            i++;
        uint64_t above = pvd_gen_bucket_ns(i), below = i > 0 ? pvd_gen_bucket_ns(i - 1) : 0;
        CHECK(above >= ns && below < ns);
        CHECK(above - ns <= ns / 64 || ns - below <= ns / 64);
        r.latency[i] = 1;
        r.latencies = 1;
        CHECK_EQ(pvd_gen_latency(&r, 0.5), above);
    }
    struct pvd_gen_result r = { .latencies = 100, .latency = { [10] = 50, [20] = 49, [30] = 1 } };
    CHECK_EQ(pvd_gen_latency(&r, 0.5), 10);
    CHECK_EQ(pvd_gen_latency(&r, 0.51), 20);
    CHECK_EQ(pvd_gen_latency(&r, 0.99), 20);
    CHECK_EQ(pvd_gen_latency(&r, 1.0), 30);
}
