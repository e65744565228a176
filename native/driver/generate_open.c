/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a generator comes to be: flows from who sends to whom, the path that each ring takes, and rings that are quiet and
 * full before the first frame.
 */
#include "generate.h"

#include <errno.h>
#include <stdlib.h>

#define DEFAULT_BURST    32u
#define DEFAULT_STALL_NS 100000000ull

static uint64_t
next_run(void)
{
    static _Atomic uint32_t runs;
    uint32_t n = atomic_fetch_add_explicit(&runs, 1, memory_order_relaxed);
    return (pvd_gen_now() + n) * 0xd1342543de82ef95ull | 1;
}

static void
choose_layout(struct pvd_flow *f)
{
    const struct pvd_guest *guest = f->tx->guest;
    if (!pvd_any_layout(guest) || (f->gen->conf.flags & PVD_GEN_SPLIT_HEADER) != 0) {
        f->layout.n_cuts = 1;
        f->layout.cuts[0] = guest->hdr_len;
    }
    if ((f->gen->conf.flags & PVD_GEN_INDIRECT) != 0) {
        f->layout.flags = PVD_LAYOUT_INDIRECT;
    }
}

/* The lean path if the layout allows it, and then with the template in all buffers. */
static int
prepare_sending(struct pvd_flow *f)
{
    bool plain = f->layout.n_cuts == 0 && f->layout.flags == 0;
    f->lane.q = f->tx;
    if (plain && pvd_lane_open(&f->lane, PVD_MAX_HDR_LEN + f->spec.len)) {
        for (uint32_t i = 0; i < f->tx->num; i++) {
            pvd_frame_template(&f->spec, f->tx->slots[i].ptr + PVD_MAX_HDR_LEN);
        }
        (f->tx->packed ? pvd_packed_choose : pvd_split_choose)(f);
        return 0;
    }
    f->send = pvd_general_send;
    f->reap = pvd_general_reap;
    f->frame = malloc(f->spec.len + PVD_BLOCK_MAX);
    if (f->frame == NULL) {
        return -ENOMEM;
    }
    pvd_frame_template(&f->spec, f->frame);
    return 0;
}

/* All buffers posted, after emptying what earlier traffic left: a full ring would drop the run's first frames. */
static void
prepare_receiving(struct pvd_receiver *r)
{
    struct pvd_queue *q = r->q;
    r->receive = pvd_general_receive;
    for (uint32_t k = 0; k < q->num && r->receive(r); k++) {
    }
    pvd_rx_fill_queue(q, q->num, NULL);
    pvd_queue_kick(q);
    r->lane.q = q;
    if (q->guest->conf.rx_buf_size >= PVD_MAX_HDR_LEN + PVD_BLOCK_MAX &&
        pvd_lane_open(&r->lane, q->guest->conf.rx_buf_size)) {
        (q->packed ? pvd_packed_choose_receive : pvd_split_choose_receive)(r);
    }
}

/* Frames of earlier traffic still in the transmit ring would be overwritten by the template. */
static int
await_quiet(const struct pvd_flow *f)
{
    uint64_t end = pvd_gen_now() + f->gen->conf.stall_ns;
    for (uint32_t idle = 0; pvd_in_flight(f->tx) > 0; idle++) {
        if (pvd_gen_now() > end) {
            return -EBUSY;
        }
        pvd_tx_reap_queue(f->tx);
        pvd_gen_relax(idle);
    }
    return 0;
}

static int
flow_init(struct pvd_flow *f, const struct pvd_way *way)
{
    const struct pvd_gen_conf *c = &f->gen->conf;
    const struct pvd_guest *guest = way->tx;
    bool mute = guest->mute;
    f->tx = pvd_queue_of(guest, 1);
    f->n_rx = way->n_rx;
    for (uint32_t i = 0; i < way->n_rx; i++) {
        mute |= way->rx[i]->mute;
        f->rx[i] = (struct pvd_receiver){ .flow = f, .q = pvd_queue_of(way->rx[i], 0) };
    }
    if (mute) {
        return -EFAULT;
    }
    if (c->len > PVD_MAX_FRAME || c->len + guest->hdr_len > guest->conf.tx_buf_size) {
        return -EMSGSIZE;
    }
    bool indirect = (c->flags & PVD_GEN_INDIRECT) != 0;
    if (c->window < 1 || (indirect && !pvd_has(guest, PVD_F_INDIRECT_DESC))) {
        return -EINVAL;
    }
    int rc = pvd_spec_init(&f->spec, c, way, next_run());
    for (uint32_t i = 0; rc == 0 && i < way->n_rx; i++) {
        pvd_cursor_set(&f->spec, &f->rx[i].next, f->spec.streams > 1 ? i : 0, 0);
    }
    choose_layout(f);
    return rc != 0 ? rc : await_quiet(f);
}

static int
init_flows(struct pvd_gen *g, const struct pvd_way *ways, uint32_t n)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        g->flows[i] = (struct pvd_flow){ .gen = g, .rx = g->receivers + at };
        at += ways[i].n_rx;
        int rc = flow_init(&g->flows[i], &ways[i]);
        if (rc != 0) {
            return rc;
        }
        g->n_flows++;
    }
    for (uint32_t i = 0; i < n; i++) {
        int rc = prepare_sending(&g->flows[i]);
        if (rc != 0) {
            return rc;
        }
    }
    for (uint32_t i = 0; i < at; i++) {
        prepare_receiving(&g->receivers[i]);
    }
    return 0;
}

int
pvd_gen_open(struct pvd_gen *g, const struct pvd_way *ways, uint32_t n, const struct pvd_gen_conf *conf,
             struct pvd_gen_result *result)
{
    uint32_t n_rx = 0;
    *g = (struct pvd_gen){ .conf = *conf, .result = result, .warm = UINT64_MAX };
    g->conf.burst = conf->burst != 0 ? conf->burst : DEFAULT_BURST;
    g->conf.burst = g->conf.burst < PVD_GEN_BURST ? g->conf.burst : PVD_GEN_BURST;
    g->conf.stall_ns = conf->stall_ns != 0 ? conf->stall_ns : DEFAULT_STALL_NS;
    g->interval_ns = conf->rate_pps != 0 ? (double)NS_PER_S * n / (double)conf->rate_pps : 0;
    for (uint32_t i = 0; i < n; i++) {
        if (ways[i].n_rx == 0) {
            return -EINVAL;
        }
        n_rx += ways[i].n_rx;
    }
    g->flows = calloc(n, sizeof(*g->flows));
    g->receivers = calloc(n_rx, sizeof(*g->receivers));
    g->scratch = malloc(PVD_MAX_FRAME);
    int rc = g->flows == NULL || g->receivers == NULL || g->scratch == NULL ? -ENOMEM : init_flows(g, ways, n);
    if (rc != 0) {
        pvd_gen_close(g);
    }
    return rc;
}

void
pvd_gen_close(struct pvd_gen *g)
{
    for (uint32_t i = 0; i < g->n_flows; i++) {
        struct pvd_flow *f = &g->flows[i];
        for (uint32_t k = 0; k < f->n_rx; k++) {
            pvd_lane_close(&f->rx[k].lane);
        }
        pvd_lane_close(&f->lane);
        free(f->frame);
    }
    free(g->flows);
    free(g->receivers);
    free(g->scratch);
}
