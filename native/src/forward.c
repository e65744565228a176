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

/* Make a frame's pieces for a receiver. Which one is next: not the first, if the frame waited after some had gone in. */
static uint32_t
begin(struct pvs_pieces *pieces, const struct pvs_frame *frame, const struct pvs_port_view *out, uint8_t offloads,
      const struct pvs_queue *from)
{
    uint32_t done = from != NULL && from->progress.ref == out->ref ? from->progress.done : 0;

    pvs_pieces_begin(pieces, frame, offloads, done);
    if (done != 0 && pieces->n != from->progress.n) { /* its receiver started anew, and takes other offloads */
        done = 0;
        pvs_pieces_begin(pieces, frame, offloads, done);
    }
    return done;
}

/* The frame waits in the queue it came by; `done` of its pieces have been delivered. */
static void
leave_waiting(struct pvs_queue *from, const struct pvs_port_view *out, const struct pvs_pieces *pieces, uint32_t done)
{
    from->progress.ref = out->ref;
    from->progress.n = pieces->n;
    from->progress.done = done;
}

/* What a piece costs of the turn's budget. */
static uint32_t
cost(const struct pvs_pieces *pieces)
{
    return pieces->len + 64 * (pieces->frame->n_seg + 1);
}

static bool
deliver_to_ring(struct pvs_worker *w, const struct pvs_port_view *out, struct pvs_ring *ring,
                const struct pvs_frame *frame, struct pvs_queue *from)
{
    struct pvs_counters *c = counters_of(w, out->port);
    struct pvs_pieces *pieces = &w->pieces;
    enum pvs_broken broken = PVS_BROKEN_NONE;
    enum pvs_drop drop = PVS_DROP_none;
    uint32_t first, done;

    if (!pvs_worker_hold(w, ring, from == NULL)) {
        w->look_again = true;
        return false;
    }
    done = first = begin(pieces, frame, out, ring->offloads, from);
    for (bool more = done < pieces->n; more; more = pvs_pieces_next(pieces)) {
        drop = pvs_guest_rx_deliver(ring, pieces, w->scratch, &broken);
        if (drop != PVS_DROP_none)
            break;
        pvs_count(&c->value[PVS_C_tx_packets], 1);
        pvs_count(&c->value[PVS_C_tx_bytes], pieces->len);
        w->spent += cost(pieces);
        done++;
    }
    if (done != first) {
        has_room(ring);
        pvs_ring_touch(w, ring);
    }
    if (broken != PVS_BROKEN_NONE) {
        pvs_ring_broken(w, ring, broken);
    } else if (drop == PVS_DROP_guest_rx_full && from != NULL && wait_for_room(w, out, ring)) {
        leave_waiting(from, out, pieces, done);
        return false;
    }
    if (drop != PVS_DROP_none)
        pvs_count(&c->tx_drop[drop], pieces->n - done);
    return true;
}

/* ---- to an uplink ---- */

/* Send what is in the outbox, and count what has gone. none, or why the next one has not. */
static enum pvs_drop
send_some(struct pvs_worker *w)
{
    struct pvs_outbox *box = &w->outbox;
    struct pvs_uplink *u = box->uplink;
    struct pvs_counters *c = counters_of(w, u->queue.port);
    uint32_t first = box->sent;
    uint64_t bytes = 0;

    pvs_worker_release(w); /* system calls take their time: nobody is to wait for a ring meanwhile */
    enum pvs_drop drop = pvs_outbox_send(box);
    for (uint32_t i = first; i < box->sent; i++)
        bytes += box->len[i];
    if (box->sent != first) {
        pvs_count(&c->value[PVS_C_tx_packets], box->sent - first);
        pvs_count(&c->value[PVS_C_tx_bytes], bytes);
        /* relaxed additions: several workers may send by one queue, and only sums are read */
        atomic_fetch_add_explicit(&u->tx_packets, box->sent - first, memory_order_relaxed);
        atomic_fetch_add_explicit(&u->tx_bytes, bytes, memory_order_relaxed);
        if (atomic_load_explicit(&u->full_since_ns, memory_order_relaxed) != 0) /* the line stays shared */
            atomic_store_explicit(&u->full_since_ns, 0, memory_order_relaxed);
    }
    return drop;
}

static void
outbox_clear(struct pvs_outbox *box)
{
    box->n = box->sent = 0;
    box->bounced = false;
}

void
pvs_worker_send(struct pvs_worker *w)
{
    struct pvs_outbox *box = &w->outbox;

    while (box->sent < box->n) {
        enum pvs_drop drop = send_some(w);
        if (drop == PVS_DROP_none)
            break;
        uint32_t n = box->stuck ? box->n - box->sent : 1;
        pvs_count(&counters_of(w, box->uplink->queue.port)->tx_drop[drop], n);
        box->sent += n;
    }
    outbox_clear(box);
}

/* May a frame wait until the kernel takes it? Nothing wakes us for that: it is tried again and again. */
static bool
wait_for_uplink(struct pvs_worker *w, const struct pvs_port_view *out, struct pvs_uplink *u)
{
    uint64_t since = atomic_load_explicit(&u->full_since_ns, memory_order_relaxed);

    if (since == 0)
        atomic_store_explicit(&u->full_since_ns, since = w->now_ns, memory_order_relaxed);
    return (int64_t)(w->now_ns - since) < (int64_t)out->backpressure_ns; /* signed: as in wait_for_room */
}

static bool
deliver_to_uplink(struct pvs_worker *w, const struct pvs_port_view *out, struct pvs_uplink *u,
                  const struct pvs_frame *frame, struct pvs_queue *from)
{
    struct pvs_outbox *box = &w->outbox;
    struct pvs_pieces *pieces = &w->pieces;
    bool may_wait = from != NULL && out->backpressure_ns != 0;
    uint32_t done = begin(pieces, frame, out, u->offloads, from);

    if (box->uplink != u || may_wait) {
        pvs_worker_send(w);
        box->uplink = u;
    }
    for (bool more = done < pieces->n; more; more = pvs_pieces_next(pieces)) {
        if (pvs_outbox_full(box))
            pvs_worker_send(w);
        pvs_outbox_put(box, pieces);
        w->spent += cost(pieces);
        if (!may_wait)
            continue;
        /* whether it has to wait must be known before it is committed: no bursts here */
        if (send_some(w) == PVS_DROP_uplink_tx_full && wait_for_uplink(w, out, u)) {
            outbox_clear(box);
            leave_waiting(from, out, pieces, done);
            return false;
        }
        pvs_worker_send(w);
        done++;
    }
    return true;
}

bool
pvs_deliver(struct pvs_worker *w, const struct pvs_port_view *out, const struct pvs_frame *frame,
            struct pvs_queue *from)
{
    struct pvs_port *port = out->port;
    /* acquire: what control and its starter wrote into the queue is visible */
    uint32_t up = atomic_load_explicit(&port->rx_up, memory_order_acquire);

    if (up == 0 || atomic_load_explicit(&port->broken, memory_order_relaxed) != PVS_BROKEN_NONE) {
        pvs_count(&counters_of(w, port)->tx_drop[PVS_DROP_link_down], 1);
        return true;
    }
    uint32_t pair = pvs_steer_choose(&port->steering, frame, up);
    if (port->n_rings != 0)
        return deliver_to_ring(w, out, &port->ring[2 * pair], frame, from);
    return deliver_to_uplink(w, out, &port->uplink[pair], frame, from);
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
pvs_forward(struct pvs_worker *w, struct pvs_frame *frame, struct pvs_queue *from)
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
