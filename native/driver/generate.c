/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load between driver guests, for the demo, tests and benchmarks: the loop over all flows, and its accounting.
 *
 * How it works: the calling thread serves all flows in turn: takes back what was sent, receives and checks, and sends, a
 * burst each. Without a rate the loop is closed: at most `window` frames of a flow are in flight. With one, frames are sent
 * when they are due and the window is only a limit; what is late is sent at once, and its latency counts from when it was
 * due, so that nobody's waiting is left out.
 *
 * Accounting. in flight = sent - received - given up. A gap in sequence numbers gives frames up at once (level 1 and 2);
 * otherwise a stall does. What counts as lost is decided at the end, so a late frame is never counted twice.
 */
#define _GNU_SOURCE
#include "generate.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#define MAX_STALLS      10u  /* in a row, then a flow ends whatever its limits say */
#define LOOPS_PER_CLOCK 64u  /* busy loops between two looks at the clock */
#define IDLE_LOOPS      256u /* loops without progress before the CPU is yielded */

uint64_t
pvd_gen_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

void
pvd_gen_relax(uint32_t idle)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
    if (idle > IDLE_LOOPS) {
        /* The switch may need this very core to move anything. */
        sched_yield();
    }
}

/* ---- The loop ---- */

void
pvd_gen_silence(struct pvd_gen *g)
{
    for (uint32_t i = 0; i < g->n_flows; i++) {
        struct pvd_flow *f = &g->flows[i];
        pvd_call_disarm(f->tx->guest, f->tx->index);
        for (uint32_t k = 0; k < f->n_rx; k++) {
            pvd_call_disarm(f->rx[k].q->guest, f->rx[k].q->index);
        }
    }
}

bool
pvd_gen_stopped(const struct pvd_gen *g)
{
    for (uint32_t i = 0; i < g->n_flows; i++) {
        if (atomic_load_explicit(&g->flows[i].tx->guest->stop, memory_order_relaxed)) {
            return true;
        }
    }
    return false;
}

static uint64_t
in_flight(const struct pvd_flow *f)
{
    bool flood = (f->gen->conf.flags & PVD_GEN_FLOOD) != 0;
    uint64_t done = flood ? UINT64_MAX : 0;
    for (uint32_t i = 0; i < f->n_rx; i++) {
        uint64_t here = f->rx[i].received + f->rx[i].given_up;
        if (!flood) {
            done += here;
        } else if (here < done) {
            done = here;
        }
    }
    done += f->forgiven;
    return done < f->sent ? f->sent - done : 0;
}

/* How many frames may be sent now, a burst at most. */
static uint32_t
allowance(struct pvd_flow *f)
{
    struct pvd_gen *g = f->gen;
    uint64_t flying = in_flight(f);
    uint64_t n = flying < g->conf.window ? g->conf.window - flying : 0;
    if (g->conf.frames != 0 && n > g->conf.frames - f->sent) {
        n = g->conf.frames - f->sent;
    }
    if (n > g->conf.burst) {
        n = g->conf.burst;
    }
    if (f->spec.paced) {
        g->now = pvd_gen_now();
        double due = g->now < f->first_due ? 0 : (double)(g->now - f->first_due) / g->interval_ns + 1;
        double more = due - (double)f->sent;
        n = more < 1 ? 0 : more < (double)n ? (uint64_t)more : n;
    }
    return (uint32_t)n;
}

/* Fetch what the flow's turn begins with. */
static void
fetch(const struct pvd_flow *f)
{
    const struct pvd_queue *tx = f->tx;
    const struct pvd_queue *rx = f->rx[0].q;
    __builtin_prefetch(tx->packed ? (const void *)&tx->ring[tx->p.next_used.at] : tx->device_area);
    __builtin_prefetch(rx->packed ? (const void *)&rx->ring[rx->p.next_used.at] : rx->device_area);
}

static uint64_t
received(const struct pvd_flow *f)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < f->n_rx; i++) {
        n += f->rx[i].received;
    }
    return n;
}

static uint64_t
all_received(const struct pvd_gen *g)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < g->n_flows; i++) {
        n += received(&g->flows[i]);
    }
    return n;
}

/* Whether receivers may look at their rings; slow ones only when a frame is due. */
static bool
may_receive(const struct pvd_gen *g)
{
    if (g->conf.rx_pps == 0) {
        return true;
    }
    double due = (double)(pvd_gen_now() - g->start) * (double)g->conf.rx_pps / (double)NS_PER_S;
    return (double)all_received(g) < due;
}

/* One round of everything. Whether anything moved. */
static bool
turn(struct pvd_gen *g, bool sending)
{
    bool moved = false;
    for (uint32_t i = 0; i < g->n_flows; i++) {
        struct pvd_flow *f = &g->flows[i];
        fetch(&g->flows[i + 1 < g->n_flows ? i + 1 : 0]);
        moved |= f->reap(f);
        for (uint32_t k = 0; k < f->n_rx && may_receive(g); k++) {
            moved |= f->rx[k].receive(&f->rx[k]);
        }
        if (sending && f->stalls < MAX_STALLS) {
            uint32_t n = allowance(f);
            f->blocked = n > 0 && f->send(f, n) == 0;
            moved |= n > 0 && !f->blocked;
        }
    }
    return moved;
}

/* Note which flows went on since the last look, and give up what one that stalls has in flight. Whether any flow may
 * still send. */
static bool
look_at_flows(struct pvd_gen *g, uint64_t now)
{
    bool sending = false;
    for (uint32_t i = 0; i < g->n_flows; i++) {
        struct pvd_flow *f = &g->flows[i];
        uint64_t moved = f->sent + received(f);
        if (moved != f->moved) {
            f->moved = moved;
            f->last_progress = now;
            f->stalls = 0;
        } else if (in_flight(f) == 0 && !f->blocked) {
            /* Nothing is due. */
            f->last_progress = now;
        } else if (now - f->last_progress > g->conf.stall_ns) {
            f->forgiven += in_flight(f);
            f->last_progress = now;
            f->stalls++;
        }
        sending |= f->stalls < MAX_STALLS && (g->conf.frames == 0 || f->sent < g->conf.frames);
    }
    return sending;
}

static uint64_t
all_in_flight(const struct pvd_gen *g)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < g->n_flows; i++) {
        n += in_flight(&g->flows[i]);
    }
    return n;
}

/* From the end of the warm-up on frames count for rates. */
static void
look_at_warm_up(struct pvd_gen *g, uint64_t now)
{
    if (g->warm == UINT64_MAX && now - g->start >= g->conf.warmup_ns) {
        g->warm = now;
        g->warm_received = all_received(g);
    }
}

/* `end` is when the last frame came. */
static void
note_times(const struct pvd_gen *g, uint64_t end)
{
    g->result->ns = end - g->start;
    if (g->warm < end) {
        g->result->measured = all_received(g) - g->warm_received;
        g->result->measured_ns = end - g->warm;
    }
}

/* Wait until the device has given back the frames' descriptors, with which it may be a moment behind. */
static void
await_reaped(struct pvd_gen *g)
{
    uint64_t end = pvd_gen_now() + g->conf.stall_ns;
    for (uint32_t i = 0; i < g->n_flows; i++) {
        struct pvd_flow *f = &g->flows[i];
        for (uint32_t idle = 0; pvd_in_flight(f->tx) > 0 && !pvd_gen_stopped(g) && pvd_gen_now() < end; idle++) {
            pvd_gen_relax(idle);
            f->reap(f);
        }
    }
}

static void
run_loop(struct pvd_gen *g)
{
    uint32_t idle = 0;
    uint32_t loops = 0;
    bool sending = true;
    g->start = pvd_gen_now();
    uint64_t last = g->start;
    for (uint32_t i = 0; i < g->n_flows; i++) {
        struct pvd_flow *f = &g->flows[i];
        f->last_progress = g->start;
        f->first_due = g->start + (uint64_t)(g->interval_ns * i / g->n_flows);
    }
    look_at_warm_up(g, g->start);
    while (!pvd_gen_stopped(g) && (sending || all_in_flight(g) > 0)) {
        bool moved = turn(g, sending);
        idle = moved ? 0 : idle + 1;
        if (moved && ++loops % LOOPS_PER_CLOCK != 0) {
            continue;
        }
        uint64_t now = pvd_gen_now();
        last = idle <= 1 ? now : last;
        if (moved) {
            pvd_gen_silence(g);
        }
        look_at_warm_up(g, now);
        sending = look_at_flows(g, now);
        if (g->conf.duration_ns != 0 && now - g->start >= g->conf.warmup_ns + g->conf.duration_ns) {
            sending = false;
        }
        pvd_gen_relax(idle);
    }
    if (idle == 0) {
        last = pvd_gen_now();
    }
    note_times(g, last);
    await_reaped(g);
}

/* ---- Calls ---- */

static uint64_t
violations(const struct pvd_way *ways, uint32_t n)
{
    uint64_t errors = 0;
    for (uint32_t i = 0; i < n; i++) {
        errors += pvd_queue_of(ways[i].tx, 1)->counters.errors;
        for (uint32_t k = 0; k < ways[i].n_rx; k++) {
            errors += pvd_queue_of(ways[i].rx[k], 0)->counters.errors;
        }
    }
    return errors;
}

static int
generate(const struct pvd_way *ways, uint32_t n, const struct pvd_gen_conf *conf, struct pvd_gen_result *result)
{
    struct pvd_gen g;
    *result = (struct pvd_gen_result){ 0 };
    if (n == 0 || (conf->frames == 0 && conf->duration_ns == 0)) {
        return -EINVAL;
    }
    uint64_t before = violations(ways, n);
    int rc = pvd_gen_open(&g, ways, n, conf, result);
    if (rc != 0) {
        return rc;
    }
    pvd_gen_silence(&g);
    run_loop(&g);
    for (uint32_t i = 0; i < n; i++) {
        result->sent += g.flows[i].sent;
    }
    result->received = all_received(&g);
    uint64_t expected = result->sent * ((conf->flags & PVD_GEN_FLOOD) != 0 ? ways[0].n_rx : 1);
    result->lost = expected > result->received ? expected - result->received : 0;
    pvd_gen_close(&g);
    result->errors = violations(ways, n) - before;
    return 0;
}

int
pvd_generate(pvd_guest *tx, pvd_guest **rx, uint32_t n_rx, const struct pvd_gen_conf *conf,
             struct pvd_gen_result *result)
{
    struct pvd_way way = { .tx = tx, .rx = rx, .n_rx = n_rx, .dst = conf->dst, .src = conf->src };
    return generate(&way, 1, conf, result);
}

/* Whether no ring would be used by two flows. */
static bool
distinct(const struct pvd_gen_flow *flows, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < i; k++) {
            if (flows[i].tx == flows[k].tx || flows[i].rx == flows[k].rx) {
                return false;
            }
        }
    }
    return true;
}

int
pvd_generate_many(struct pvd_gen_flow *flows, uint32_t n, const struct pvd_gen_conf *conf,
                  struct pvd_gen_result *result)
{
    *result = (struct pvd_gen_result){ 0 };
    if (n == 0 || (conf->flags & PVD_GEN_FLOOD) != 0 || !distinct(flows, n)) {
        return -EINVAL;
    }
    struct pvd_way *ways = calloc(n, sizeof(*ways));
    if (ways == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n; i++) {
        ways[i] = (struct pvd_way){
            .tx = flows[i].tx, .rx = &flows[i].rx, .n_rx = 1, .dst = flows[i].dst, .src = flows[i].src
        };
    }
    int rc = generate(ways, n, conf, result);
    free(ways);
    return rc;
}
