/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Closed-loop load and latency between driver guests, for the demo, tests and benchmarks.
 *
 * Light on purpose: the switch shall be the limit. In the plain layout the template lies in every transmit
 * slot from the start, and per frame only descriptor, net header and what changes in the frame's first line
 * are written.
 *
 * A frame: destination, source, EtherType 0x88b5 (local experimental, IEEE 802), the run's number, a sequence
 * number, then a pattern made from the sequence number (level 2). Frames of another run or of others are
 * "foreign".
 *
 * Accounting. in flight = sent - received - given up. A gap in sequence numbers gives frames up at once
 * (level 1 and 2); otherwise a stall does. What counts as lost is decided at the end, so a late frame is
 * never counted twice.
 */
#define _GNU_SOURCE
#include "generate.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEFAULT_BURST    32u
#define DEFAULT_STALL_NS 100000000ull
#define MAX_STALLS       10u  /* in a row, then the run ends whatever its limits say */
#define LOOPS_PER_CLOCK  64u  /* busy loops between two looks at the clock */
#define IDLE_LOOPS       256u /* loops without progress before the CPU is yielded */
#define MAX_FRAME        1048576u

#define ETHERTYPE_AT 12u
#define RUN_AT       14u
#define SEQ_AT       18u
#define PATTERN_AT   26u

uint64_t
pvd_gen_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static uint32_t
next_run(void)
{
    static _Atomic uint32_t runs;
    return (uint32_t)pvd_gen_now() * 2654435761u + atomic_fetch_add_explicit(&runs, 1, memory_order_relaxed);
}

/* The k-th address after `base`, counted in its last four bytes. */
static void
write_mac(uint8_t *to, const uint8_t *base, uint32_t k)
{
    uint32_t low = ((uint32_t)base[2] << 24 | (uint32_t)base[3] << 16 | (uint32_t)base[4] << 8 | base[5]) + k;
    uint8_t mac[6] = {
        base[0], base[1], (uint8_t)(low >> 24), (uint8_t)(low >> 16), (uint8_t)(low >> 8), (uint8_t)low
    };
    memcpy(to, mac, sizeof(mac));
}

static uint64_t
pattern_word(uint64_t seq, uint32_t k)
{
    return (seq + 1) * 0x9e3779b97f4a7c15ull + k * 0xbf58476d1ce4e5b9ull;
}

static void
write_pattern(uint8_t *frame, uint32_t len, uint64_t seq)
{
    uint32_t at = PATTERN_AT;
    for (uint32_t k = 0; at < len; k++) {
        uint64_t word = pattern_word(seq, k);
        uint32_t n = len - at < 8 ? len - at : 8;
        memcpy(frame + at, &word, n);
        at += n;
    }
}

static bool
pattern_intact(const uint8_t *frame, uint32_t len, uint64_t seq)
{
    uint32_t at = PATTERN_AT;
    for (uint32_t k = 0; at < len; k++) {
        uint64_t word = pattern_word(seq, k);
        uint32_t n = len - at < 8 ? len - at : 8;
        if (memcmp(frame + at, &word, n) != 0) {
            return false;
        }
        at += n;
    }
    return true;
}

static void
write_template(const struct gen *g, uint8_t *frame)
{
    memset(frame, 0, g->conf.len);
    write_mac(frame, g->conf.dst, 0);
    write_mac(frame + 6, g->conf.src, 0);
    frame[ETHERTYPE_AT] = 0x88;
    frame[ETHERTYPE_AT + 1] = 0xb5;
    memcpy(frame + RUN_AT, &g->run, sizeof(g->run));
}

/* What differs from frame to frame. */
static void
write_variable(const struct gen *g, uint8_t *frame, uint64_t i)
{
    uint64_t seq = (g->conf.flags & PVD_GEN_FLOOD) != 0 ? i : i / g->n_rx;
    if (g->conf.n_dst > 1) {
        write_mac(frame, g->conf.dst, (uint32_t)(i % g->conf.n_dst));
    }
    if (g->conf.n_src > 1) {
        write_mac(frame + 6, g->conf.src, (uint32_t)(i % g->conf.n_src));
    }
    if (g->conf.level >= 1) {
        memcpy(frame + SEQ_AT, &seq, sizeof(seq));
    }
    if (g->conf.level >= 2) {
        write_pattern(frame, g->conf.len, seq);
    }
}

/* One frame in the plain layout: slot memory holds the template already. False when the ring is full. */
static bool
send_plain(struct gen *g)
{
    static const struct pvd_layout one_piece;
    uint32_t hdr_len = g->tx->guest->hdr_len;
    int head = pvd_chain_build(g->tx, hdr_len + g->conf.len, &one_piece);
    if (head < 0) {
        return false;
    }
    uint8_t *p = g->tx->slots[head].ptr;
    memset(p, 0, hdr_len);
    write_variable(g, p + hdr_len, g->sent);
    pvd_chain_post(g->tx, (uint16_t)head);
    return true;
}

bool
pvd_gen_send(struct gen *g)
{
    write_variable(g, g->frame, g->sent);
    return pvd_tx_post(g->tx, NULL, g->frame, g->conf.len, &g->layout) == 0;
}

static bool
send_burst(struct gen *g, uint64_t room)
{
    uint32_t n = room < g->conf.burst ? (uint32_t)room : g->conf.burst;
    uint32_t i = 0;
    while (i < n && (g->plain ? send_plain(g) : pvd_gen_send(g))) {
        g->sent++;
        i++;
    }
    if (i > 0) {
        pvd_publish(g->tx);
        pvd_queue_kick(g->tx);
    }
    return i > 0;
}

/* The frame in one piece: where it lies, or copied together. */
static const uint8_t *
whole(const struct pvd_view *v, uint8_t *scratch, uint32_t need)
{
    if (v->n_pieces > 0 && v->pieces[0].len >= need) {
        return v->pieces[0].ptr;
    }
    uint32_t at = 0;
    for (uint32_t i = 0; i < v->n_pieces && at < need; i++) {
        uint32_t n = v->pieces[i].len < need - at ? v->pieces[i].len : need - at;
        memcpy(scratch + at, v->pieces[i].ptr, n);
        at += n;
    }
    return scratch;
}

static void
account_sequence(struct gen *g, struct receiver *r, uint64_t seq)
{
    if (seq < r->next) {
        g->result->reordered++;
        r->given_up -= r->given_up > 0;
        return;
    }
    r->given_up += seq - r->next;
    r->next = seq + 1;
}

static void
check_frame(struct gen *g, struct receiver *r, const struct pvd_view *v)
{
    if (v->len < PVD_GEN_MIN_LEN) {
        g->result->foreign++;
        return;
    }
    bool all = g->conf.level >= 2 && v->len == g->conf.len;
    const uint8_t *frame = whole(v, g->scratch, all ? v->len : PVD_GEN_MIN_LEN);
    uint32_t run;
    uint64_t seq;
    memcpy(&run, frame + RUN_AT, sizeof(run));
    memcpy(&seq, frame + SEQ_AT, sizeof(seq));
    if (frame[ETHERTYPE_AT] != 0x88 || frame[ETHERTYPE_AT + 1] != 0xb5 || run != g->run) {
        g->result->foreign++;
        return;
    }
    r->received++;
    if (v->len != g->conf.len || (all && !pattern_intact(frame, v->len, seq))) {
        g->result->corrupted++;
    }
    if (g->conf.level >= 1) {
        account_sequence(g, r, seq);
    }
}

static void
prefetch_received(const struct pvd_queue *q, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t id = q->used->ring[(uint16_t)(q->last_used + i) & q->mask].id;
        __builtin_prefetch(q->slots[id & q->mask].ptr);
    }
}

bool
pvd_gen_receive(struct gen *g, struct receiver *r)
{
    struct pvd_queue *q = r->q;
    struct pvd_view *view = q->guest->view;
    uint32_t pending = pvd_used_pending(q);
    if (pending == 0) {
        return false;
    }
    uint32_t n = pending < g->conf.burst ? pending : g->conf.burst;
    prefetch_received(q, n);
    for (uint32_t i = 0; i < n; i++) {
        int rc = pvd_rx_view(q, view, g->conf.level >= 1);
        if (rc == -EAGAIN) {
            break;
        }
        if (rc == 0) {
            check_frame(g, r, view);
            pvd_rx_release(q, view, true);
        }
    }
    pvd_publish(q);
    pvd_queue_kick(q);
    return true;
}

static uint64_t
in_flight(const struct gen *g)
{
    uint64_t done = (g->conf.flags & PVD_GEN_FLOOD) != 0 ? UINT64_MAX : 0;
    for (uint32_t i = 0; i < g->n_rx; i++) {
        uint64_t here = g->rx[i].received + g->rx[i].given_up;
        if ((g->conf.flags & PVD_GEN_FLOOD) == 0) {
            done += here;
        } else if (here < done) {
            done = here;
        }
    }
    done += g->forgiven;
    return done < g->sent ? g->sent - done : 0;
}

/* One round of everything. Whether anything moved. */
static bool
turn(struct gen *g, bool sending)
{
    bool moved = pvd_tx_reap_queue(g->tx) != 0;
    for (uint32_t i = 0; i < g->n_rx; i++) {
        moved |= pvd_gen_receive(g, &g->rx[i]);
    }
    if (sending) {
        uint64_t flying = in_flight(g);
        uint64_t room = flying < g->conf.window ? g->conf.window - flying : 0;
        uint64_t left = g->conf.frames != 0 ? g->conf.frames - g->sent : room;
        room = room < left ? room : left;
        moved |= room > 0 && send_burst(g, room);
    }
    return moved;
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

/* Polling needs no calls; asked again from time to time, because with EVENT_IDX the wish wears off. */
void
pvd_gen_silence(struct gen *g)
{
    pvd_call_disarm(g->tx->guest, g->tx->index);
    for (uint32_t i = 0; i < g->n_rx; i++) {
        pvd_call_disarm(g->rx[i].q->guest, g->rx[i].q->index);
    }
}

/* Whether pvd_stop was asked for. */
bool
pvd_gen_stopped(const struct gen *g)
{
    return atomic_load_explicit(&g->tx->guest->stop, memory_order_relaxed);
}

static void
run_loop(struct gen *g)
{
    uint32_t idle = 0;
    uint32_t loops = 0;
    uint32_t stalls = 0;
    bool sending = true;
    g->start = pvd_gen_now();
    g->last_progress = g->start;
    while (!pvd_gen_stopped(g) && (sending || in_flight(g) > 0)) {
        bool moved = turn(g, sending);
        idle = moved ? 0 : idle + 1;
        stalls = moved ? 0 : stalls;
        if (moved && ++loops % LOOPS_PER_CLOCK != 0) {
            sending = sending && (g->conf.frames == 0 || g->sent < g->conf.frames);
            continue;
        }
        uint64_t now = pvd_gen_now();
        if (moved) {
            g->last_progress = now;
            pvd_gen_silence(g);
        } else if (now - g->last_progress > g->conf.stall_ns) {
            g->forgiven += in_flight(g);
            g->last_progress = now;
            stalls++;
        }
        bool in_time = g->conf.duration_ns == 0 || now - g->start < g->conf.duration_ns;
        sending = in_time && stalls < MAX_STALLS && (g->conf.frames == 0 || g->sent < g->conf.frames);
        pvd_gen_relax(idle);
    }
    if (idle == 0) {
        g->last_progress = pvd_gen_now();
    }
    /* The device may be a moment behind with the frames' descriptors. */
    for (uint64_t end = pvd_gen_now() + g->conf.stall_ns;
         !pvd_gen_stopped(g) && pvd_in_flight(g->tx) > 0 && pvd_gen_now() < end;) {
        pvd_gen_relax(++idle);
        pvd_tx_reap_queue(g->tx);
    }
}

static uint64_t
violations(const struct gen *g)
{
    uint64_t n = g->tx->counters.errors;
    for (uint32_t i = 0; i < g->n_rx; i++) {
        n += g->rx[i].q->counters.errors;
    }
    return n;
}

static int
conf_check(const struct gen *g)
{
    const struct pvd_gen_conf *c = &g->conf;
    if (c->len > MAX_FRAME || c->len + g->tx->guest->hdr_len > g->tx->guest->conf.tx_buf_size) {
        return -EMSGSIZE;
    }
    bool flood = (c->flags & PVD_GEN_FLOOD) != 0;
    bool rotation = flood || c->n_dst % g->n_rx == 0;
    if (c->len < PVD_GEN_MIN_LEN || c->window < 1 || c->window > g->tx->num || c->level > 2 || !rotation) {
        return -EINVAL;
    }
    return 0;
}

void
pvd_gen_free(struct gen *g)
{
    free(g->rx);
    free(g->frame);
    free(g->scratch);
}

/* A generator from `tx` to `rx`, its template made; 0 or an error, and then nothing is left to free. */
int
pvd_gen_init(struct gen *g, pvd_guest *tx, pvd_guest **rx, uint32_t n_rx, const struct pvd_gen_conf *conf)
{
    *g = (struct gen){ .conf = *conf, .tx = pvd_queue_of(tx, 1), .n_rx = n_rx, .run = next_run() };
    g->conf.burst = conf->burst != 0 ? conf->burst : DEFAULT_BURST;
    g->conf.stall_ns = conf->stall_ns != 0 ? conf->stall_ns : DEFAULT_STALL_NS;
    g->conf.n_dst = conf->n_dst != 0 ? conf->n_dst : 1;
    int rc = n_rx == 0 ? -EINVAL : conf_check(g);
    if (rc != 0) {
        return rc;
    }
    g->rx = calloc(n_rx, sizeof(*g->rx));
    g->frame = malloc(MAX_FRAME);
    g->scratch = malloc(MAX_FRAME);
    if (g->rx == NULL || g->frame == NULL || g->scratch == NULL) {
        pvd_gen_free(g);
        return -ENOMEM;
    }
    bool mute = tx->mute;
    for (uint32_t i = 0; i < n_rx; i++) {
        mute |= rx[i]->mute;
        g->rx[i].q = pvd_queue_of(rx[i], 0);
    }
    if (mute) {
        pvd_gen_free(g);
        return -EFAULT;
    }
    write_template(g, g->frame);
    return 0;
}

void
pvd_gen_choose_layout(struct gen *g)
{
    const struct pvd_guest *guest = g->tx->guest;
    bool any = pvd_has(guest, PVD_F_VERSION_1) || pvd_has(guest, PVD_F_ANY_LAYOUT);
    if (!any || (g->conf.flags & PVD_GEN_SPLIT_HEADER) != 0) {
        g->layout.n_cuts = 1;
        g->layout.cuts[0] = guest->hdr_len;
    }
    if ((g->conf.flags & PVD_GEN_INDIRECT) != 0) {
        g->layout.flags = PVD_LAYOUT_INDIRECT;
    }
    g->plain = g->layout.n_cuts == 0 && g->layout.flags == 0;
}

static void
fill_slots(const struct gen *g)
{
    for (uint32_t i = 0; i < g->tx->num; i++) {
        memcpy(g->tx->slots[i].ptr + g->tx->guest->hdr_len, g->frame, g->conf.len);
    }
}

/* Post all there is, after emptying what earlier traffic left: a full ring would drop the run's first frames.
 */
void
pvd_gen_fill(struct gen *g)
{
    for (uint32_t i = 0; i < g->n_rx; i++) {
        for (uint32_t k = 0; k < g->rx[i].q->num && pvd_gen_receive(g, &g->rx[i]); k++) {
        }
        pvd_rx_fill_queue(g->rx[i].q, g->rx[i].q->num, NULL);
        pvd_queue_kick(g->rx[i].q);
    }
}

/* Frames of earlier traffic still in the transmit ring would be overwritten by the template. */
int
pvd_gen_await_quiet(struct gen *g)
{
    uint64_t end = pvd_gen_now() + g->conf.stall_ns;
    for (uint32_t idle = 0; pvd_in_flight(g->tx) > 0; idle++) {
        if (pvd_gen_now() > end) {
            return -EBUSY;
        }
        pvd_tx_reap_queue(g->tx);
        pvd_gen_relax(idle);
    }
    return 0;
}

int
pvd_generate(pvd_guest *tx, pvd_guest **rx, uint32_t n_rx, const struct pvd_gen_conf *conf,
             struct pvd_gen_result *result)
{
    struct gen g;
    *result = (struct pvd_gen_result){ 0 };
    int rc = conf->frames == 0 && conf->duration_ns == 0 ? -EINVAL : pvd_gen_init(&g, tx, rx, n_rx, conf);
    if (rc != 0) {
        return rc;
    }
    g.result = result;
    rc = pvd_gen_await_quiet(&g);
    if (rc == 0 && (conf->flags & PVD_GEN_INDIRECT) != 0 && !pvd_has(tx, PVD_F_INDIRECT_DESC)) {
        rc = -EINVAL;
    }
    if (rc == 0) {
        pvd_gen_choose_layout(&g);
        if (g.plain) {
            fill_slots(&g);
        }
        pvd_gen_fill(&g);
        pvd_gen_silence(&g);
        uint64_t before = violations(&g);
        run_loop(&g);
        result->sent = g.sent;
        for (uint32_t i = 0; i < n_rx; i++) {
            result->received += g.rx[i].received;
        }
        uint64_t expected = g.sent * ((conf->flags & PVD_GEN_FLOOD) != 0 ? n_rx : 1);
        result->lost = expected > result->received ? expected - result->received : 0;
        result->errors = violations(&g) - before;
        result->ns = g.last_progress - g.start;
    }
    pvd_gen_free(&g);
    return rc;
}
