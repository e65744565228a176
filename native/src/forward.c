/* SPDX-License-Identifier: Apache-2.0 */
/*
 * forward.c - from a frame to its copies: parse, decide, commit (steps 4 and 5 of docs/walk-of-a-frame.md).
 *
 * pvs_decide says what should happen and changes nothing; this file makes it happen, frame by frame in order.
 * Called by the worker's round and by the inject command.
 */
#include "parse.h"
#include "worker.h"

bool
pvs_allow(struct pvs_allowance *allowance, uint32_t now_s, uint32_t limit)
{
    if (allowance->second != now_s)
        *allowance = (struct pvs_allowance){ .second = now_s };
    if (allowance->used >= limit)
        return false;
    allowance->used++;
    return true;
}

static struct pvs_counters *
counters_of(const struct pvs_worker *w, const struct pvs_port *port)
{
    return port->counters[w->index];
}

bool
pvs_receive(struct pvs_worker *w, const struct pvs_port *port, struct pvs_frame *frame)
{
    struct pvs_counters *c = counters_of(w, port);

    if (frame->malformed || !pvs_parse(frame)) {
        pvs_count(&c->rx_drop[PVS_DROP_malformed], 1);
        return false;
    }
    if (frame->injected)
        return true;
    pvs_count(&c->value[PVS_C_rx_packets], 1);
    pvs_count(&c->value[PVS_C_rx_bytes], frame->len);
    pvs_count(&c->value[pvs_size_bin(frame->len)], 1);
    if (frame->parsed.dst == PVS_MAC_BROADCAST)
        pvs_count(&c->value[PVS_C_rx_broadcast_packets], 1);
    else if (pvs_mac_is_group(frame->parsed.dst))
        pvs_count(&c->value[PVS_C_rx_multicast_packets], 1);
    return true;
}

static void
learn(struct pvs_worker *w, const struct pvs_frame *frame, const struct pvs_verdict *v)
{
    uint32_t in = pvs_ref_index(frame->in_ref), old_ref = 0;

    if (v->fresh_needed && !pvs_allow(&w->learning[in], w->now_s, PVS_LEARN_PER_SECOND)) {
        pvs_count(&w->perf.learn_skipped, 1);
        return;
    }
    struct pvs_fdb *fdb = w->tables->bridge[v->bridge].fdb;
    switch (pvs_fdb_learn(fdb, frame->parsed.src, v->vid, frame->in_ref, w->now_s, &old_ref)) {
    case PVS_LEARN_NOTHING:
        return;
    case PVS_LEARN_BUSY:
        pvs_count(&w->perf.learn_skipped, 1);
        return;
    case PVS_LEARN_NEW:
        old_ref = 0;
        break;
    case PVS_LEARN_MOVED:
        break;
    }
    struct pvs_event event = { .time_ns = w->now_ns,
                               .kind = old_ref != 0 ? PVS_EV_MOVED : PVS_EV_LEARNED,
                               .port_ref = frame->in_ref,
                               .detail = old_ref,
                               .vid = v->vid };
    pvs_mac_store(event.mac, frame->parsed.src);
    pvs_event(w, &event);
}

void
pvs_deliver(struct pvs_worker *w, const struct pvs_port_view *out, const struct pvs_frame *frame)
{
    struct pvs_ring *ring = &out->port->ring[0];
    struct pvs_counters *c = counters_of(w, out->port);
    enum pvs_broken broken = PVS_BROKEN_NONE;
    enum pvs_drop drop = PVS_DROP_link_down;

    if (atomic_load_explicit(&out->port->carrier, memory_order_relaxed))
        drop = pvs_guest_rx_deliver(ring, frame, w->scratch, &broken);
    if (drop != PVS_DROP_none) {
        pvs_count(&c->tx_drop[drop], 1);
        if (broken != PVS_BROKEN_NONE)
            pvs_ring_broken(w, ring, broken);
        return;
    }
    pvs_count(&c->value[PVS_C_tx_packets], 1);
    pvs_count(&c->value[PVS_C_tx_bytes], frame->len);
    pvs_ring_touch(w, ring);
}

uint32_t
pvs_forward(struct pvs_worker *w, struct pvs_frame *frame)
{
    const struct pvs_tables *tables = w->tables;
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(frame->in_ref)];
    struct pvs_verdict *v = &w->verdict;

    if (in->ref != frame->in_ref)
        return 0; /* its port has left the tables; the ring's stop follows */
    if (!pvs_receive(w, in->port, frame))
        return 1;
    pvs_decide(frame, tables, w->now_s, v);
    if (v->punt)
        pvs_punt_frame(w, frame, v->vid, PVS_PUNT_BPDU);
    if (v->learn)
        learn(w, frame, v);
    if (v->drop != PVS_DROP_none) {
        if (!frame->injected)
            pvs_count(&counters_of(w, in->port)->rx_drop[v->drop], 1);
        return 1;
    }
    for (uint32_t i = 0; i < v->n_egress; i++) {
        const struct pvs_port_view *out = &tables->port[v->egress[i].port];
        if (v->egress[i].drop != PVS_DROP_none)
            pvs_count(&counters_of(w, out->port)->tx_drop[v->egress[i].drop], 1);
        else
            pvs_deliver(w, out, frame);
    }
    return v->n_egress * (frame->len + 64 * (frame->n_seg + 1));
}
