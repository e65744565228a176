/* SPDX-License-Identifier: Apache-2.0 */
/*
 * forward.c - from a frame to its copies: decide, deliver, commit (steps 4 and 5 of docs/walk-of-a-frame.md).
 *
 * pvs_decide says what should happen and changes nothing; this file makes it happen, frame by frame in order. Copies are
 * delivered before effects are committed: a frame that has to wait for its receiver leaves no trace, and is decided on
 * anew when it is tried again.
 * Called by the worker's round and by the inject command.
 */
#include "parse.h"
#include "virtqueue_split.h"
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
pvs_receive(struct pvs_worker *w, const struct pvs_port *port, const struct pvs_frame *frame)
{
    struct pvs_counters *c = counters_of(w, port);

    if (frame->malformed) {
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

/* May a frame wait until this full ring has room? Then a kick of its guest is asked for. */
static bool
wait_for_room(struct pvs_worker *w, const struct pvs_port_view *out, struct pvs_ring *ring)
{
    if (out->backpressure_ns == 0)
        return false;
    if (ring->full_since_ns == 0)
        ring->full_since_ns = w->now_ns;
    /* signed: the worker that found it full first may have looked at its clock after us */
    if ((int64_t)(w->now_ns - ring->full_since_ns) >= (int64_t)out->backpressure_ns)
        return false; /* it takes nothing any more */
    atomic_fetch_or_explicit(&ring->waiters, pvs_worker_bit(w), memory_order_relaxed);
    if (!ring->room_armed || ring->room_at != ring->vq.seen_avail) {
        ring->room_armed = true;
        ring->room_at = ring->vq.seen_avail;
        w->look_again |= pvs_split_kick_arm(&ring->vq, ring->room_at);
    }
    return true;
}

/* It took something: what its waiters have to know and its guest to do is over. */
static void
has_room(struct pvs_ring *ring)
{
    ring->full_since_ns = 0;
    if (ring->room_armed) {
        ring->room_armed = false;
        pvs_split_kick_suppress(&ring->vq);
    }
}

/* The receive ring for a frame; NULL without a link. */
static struct pvs_ring *
receive_ring(struct pvs_port *port, const struct pvs_frame *frame)
{
    /* acquire: what control and its starter wrote into the ring is visible */
    uint32_t up = atomic_load_explicit(&port->rx_up, memory_order_acquire);

    if (up == 0 || atomic_load_explicit(&port->broken, memory_order_relaxed) != PVS_BROKEN_NONE)
        return NULL;
    return &port->ring[2 * pvs_steer_choose(&port->steering, frame, up)];
}

/* Make a frame's pieces for a receiver. Which one is next: not the first, if the frame waited after some had gone in. */
static uint32_t
begin(struct pvs_pieces *pieces, const struct pvs_frame *frame, const struct pvs_port_view *out,
      const struct pvs_ring *ring, const struct pvs_ring *from)
{
    uint32_t done = from != NULL && from->progress.ref == out->ref ? from->progress.done : 0;

    pvs_pieces_begin(pieces, frame, ring->offloads, done);
    if (done != 0 && pieces->n != from->progress.n) { /* its receiver started anew, and takes other offloads */
        done = 0;
        pvs_pieces_begin(pieces, frame, ring->offloads, done);
    }
    return done;
}

bool
pvs_deliver(struct pvs_worker *w, const struct pvs_port_view *out, const struct pvs_frame *frame, struct pvs_ring *from)
{
    struct pvs_counters *c = counters_of(w, out->port);
    struct pvs_pieces *pieces = &w->pieces;
    struct pvs_ring *ring = receive_ring(out->port, frame);
    enum pvs_broken broken = PVS_BROKEN_NONE;
    enum pvs_drop drop = PVS_DROP_none;
    uint32_t first, done;

    if (ring == NULL) {
        pvs_count(&c->tx_drop[PVS_DROP_link_down], 1);
        return true;
    }
    if (!pvs_worker_hold(w, ring, from == NULL)) {
        w->look_again = true;
        return false;
    }
    done = first = begin(pieces, frame, out, ring, from);
    for (bool more = done < pieces->n; more; more = pvs_pieces_next(pieces)) {
        drop = pvs_guest_rx_deliver(ring, pieces, w->scratch, &broken);
        if (drop != PVS_DROP_none)
            break;
        pvs_count(&c->value[PVS_C_tx_packets], 1);
        pvs_count(&c->value[PVS_C_tx_bytes], pieces->len);
        w->spent += pieces->len + 64 * (frame->n_seg + 1);
        done++;
    }
    if (done != first) {
        has_room(ring);
        pvs_ring_touch(w, ring);
    }
    if (broken != PVS_BROKEN_NONE) {
        pvs_ring_broken(w, ring, broken);
    } else if (drop == PVS_DROP_guest_rx_full && from != NULL && wait_for_room(w, out, ring)) {
        from->progress.ref = out->ref;
        from->progress.n = pieces->n;
        from->progress.done = done;
        return false;
    }
    if (drop != PVS_DROP_none)
        pvs_count(&c->tx_drop[drop], pieces->n - done);
    return true;
}

/* What a verdict does besides sending copies. */
static void
commit(struct pvs_worker *w, struct pvs_port *in, const struct pvs_frame *frame, const struct pvs_verdict *v)
{
    uint32_t up = atomic_load_explicit(&in->rx_up, memory_order_relaxed);

    pvs_receive(w, in, frame);
    if ((up & (up - 1)) != 0 && !frame->injected)
        pvs_steer_note(&in->steering, frame);
    if (v->punt)
        pvs_punt_frame(w, frame, v->vid, PVS_PUNT_BPDU);
    if (v->learn)
        learn(w, frame, v);
    if (v->drop != PVS_DROP_none && !frame->injected)
        pvs_count(&counters_of(w, in)->rx_drop[v->drop], 1);
}

bool
pvs_forward(struct pvs_worker *w, struct pvs_frame *frame, struct pvs_ring *from)
{
    const struct pvs_tables *tables = w->tables;
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(frame->in_ref)];
    struct pvs_verdict *v = &w->verdict;

    if (in->ref != frame->in_ref) { /* its port has left the tables; the ring's stop follows */
        if (from != NULL && pvs_receive(w, from->port, frame))
            pvs_count(&counters_of(w, from->port)->rx_drop[PVS_DROP_link_down], 1);
        return true;
    }
    if (frame->malformed) {
        pvs_receive(w, in->port, frame);
        return true;
    }
    pvs_decide(frame, tables, w->now_s, v);
    for (uint32_t i = 0; i < v->n_egress; i++) {
        const struct pvs_port_view *out = &tables->port[v->egress[i].port];
        if (v->egress[i].drop != PVS_DROP_none)
            pvs_count(&counters_of(w, out->port)->tx_drop[v->egress[i].drop], 1);
        else if (!pvs_deliver(w, out, frame, v->known ? from : NULL))
            return false;
    }
    commit(w, in->port, frame, v);
    return true;
}
