/* SPDX-License-Identifier: Apache-2.0 */
/*
 * deliver.c - copies on their way out: to a guest's ring, or by an uplink (step 5 of docs/walk-of-a-frame.md).
 *
 * How it works: a copy that a guest takes as it is goes on a list of its receive ring; at the end of the burst the lists
 * are written, ring by ring. So each ring is locked, reserved from and published once, and the cache misses of many frames
 * overlap. What is more work goes at once, behind what its port's list has: frames to be cut or summed, and those that may
 * have to wait for room. Lists refer to frames of the burst by number.
 * Called by forward.c and by the inject command.
 */
#include "virtqueue_any.h"
#include "worker.h"

static struct pvs_counters *
counters_of(const struct pvs_worker *w, const struct pvs_port *port)
{
    return port->counters[w->index];
}

/* ---- to a guest, piece by piece ---- */

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
        w->look_again |= pvs_vq_kick_arm(&ring->vq, ring->room_at);
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
        pvs_vq_kick_suppress(&ring->vq);
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
        drop = pvs_guest_rx_deliver(ring, pieces, &w->landing, &broken);
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
    } else if (done == first && pvs_ring_lost(w, ring)) {
        /* lost memory reads as a ring without buffers: nothing to wait for */
    } else if (drop == PVS_DROP_guest_rx_full && from != NULL && wait_for_room(w, out, ring)) {
        leave_waiting(from, out, pieces, done);
        return false;
    }
    if (drop != PVS_DROP_none)
        pvs_drop_tx(w, out->port, frame, drop, pieces->n - done);
    else if (out->capture_out != 0)
        pvs_capture_out(w, out, frame, drop);
    return true;
}

/* ---- to a guest, in lists ---- */

/* Copies of a list were dropped, or are captured. */
static __attribute__((noinline)) void
tell_list(struct pvs_worker *w, const struct pvs_destination *d)
{
    const struct pvs_port_view *out = &w->tables->port[d->index];

    for (uint32_t i = 0; i < d->n; i++) {
        enum pvs_drop drop = w->delivery.dropped ? (enum pvs_drop)w->delivery.drop[i] : PVS_DROP_none;
        if (drop != PVS_DROP_none)
            pvs_drop_tx(w, out->port, &d->base[d->number[i]], drop, 1);
        else if (d->captured)
            pvs_capture_out(w, out, &d->base[d->number[i]], drop);
    }
}

/* Write what waits for one ring, and show it to its guest. False: another worker has its lock (and not `wait`). */
static bool
deliver_list(struct pvs_worker *w, struct pvs_destination *d, bool wait)
{
    struct pvs_ring *ring = d->ring;
    struct pvs_counters *c = counters_of(w, ring->queue.port);
    struct pvs_delivery *delivery = &w->delivery;

    if (d->n == 0)
        return true;
    if (!pvs_worker_hold(w, ring, wait))
        return false;
    pvs_guest_rx_deliver_whole(ring, d->base, d->number, d->n, &w->landing, delivery);
    if (delivery->packets != 0) {
        pvs_count(&c->value[PVS_C_tx_packets], delivery->packets);
        pvs_count(&c->value[PVS_C_tx_bytes], delivery->bytes);
        has_room(ring);
        pvs_ring_show(w, ring);
    }
    if (delivery->dropped || d->captured)
        tell_list(w, d);
    if (delivery->broken != PVS_BROKEN_NONE)
        pvs_ring_broken(w, ring, delivery->broken);
    else if (delivery->packets == 0)
        pvs_ring_lost(w, ring);
    if (delivery->packets == 0)
        d->direct = 0; /* whether the ring takes anything yet is to be looked at */
    d->n = 0;
    return true;
}

void
pvs_deliver_lists(struct pvs_worker *w)
{
    bool left = false;

    for (uint32_t i = 0; i < w->n_destinations; i++)
        left |= !deliver_list(w, &w->destination[i], false);
    for (uint32_t i = 0; i < w->n_destinations; i++) {
        if (left)
            deliver_list(w, &w->destination[i], true);
        w->destination_of[w->destination[i].index] = 0;
    }
    w->n_destinations = 0;
}

/* The list for a port; ready to take one more, numbered from `base`, for this ring. */
static struct pvs_destination *
destination(struct pvs_worker *w, const struct pvs_port_view *out, struct pvs_ring *ring, const struct pvs_frame *base)
{
    uint16_t index = (uint16_t)pvs_ref_index(out->ref);
    struct pvs_destination *d = pvs_destination_of(w, index);

    if (d == NULL) {
        d = &w->destination[w->n_destinations];
        w->destination_of[index] = (uint16_t)++w->n_destinations;
        d->index = index;
        d->ring = ring;
        d->base = base;
        d->direct = pvs_one_pair(out->port) && out->backpressure_ns == 0 && out->plain ? out->ref : 0;
        d->mtu = out->mtu;
        d->captured = out->capture_out != 0;
        d->n = 0;
        if (w->n_peers == 1) /* with others the ring is to be looked at under its lock only */
            pvs_vq_prefetch(&ring->vq);
    } else if (d->ring != ring || d->base != base) { /* what came before goes first */
        deliver_list(w, d, true);
        d->ring = ring; /* another pair of the same guest */
        d->base = base;
    }
    return d;
}

/* What is still to be written for a port goes before what is delivered to it at once. */
static void
deliver_earlier(struct pvs_worker *w, uint16_t index)
{
    struct pvs_destination *d = pvs_destination_of(w, index);

    if (d != NULL)
        deliver_list(w, d, true);
}

/* ---- to an uplink ---- */

/* The messages from `first` on were dropped, or are captured. */
static __attribute__((noinline)) void
tell_outbox(struct pvs_worker *w, uint32_t first, uint32_t n, enum pvs_drop drop)
{
    const struct pvs_outbox *box = &w->outbox;
    const struct pvs_port *port = box->uplink->queue.port;
    const struct pvs_port_view *out = &w->tables->port[pvs_ref_index(port->ref)];
    struct pvs_seg seg[PVS_OUTBOX_PARTS];
    struct pvs_frame frame;

    for (uint32_t i = first; i < first + n; i++) {
        pvs_outbox_frame(box, i, &frame, seg);
        if (drop == PVS_DROP_none)
            pvs_capture_out(w, out, &frame, drop);
        else
            pvs_drop_tx(w, port, &frame, drop, 1);
    }
}

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
        if (w->tables->port[pvs_ref_index(u->queue.port->ref)].capture_out != 0)
            tell_outbox(w, first, box->sent - first, PVS_DROP_none);
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

    if (w->tunnel_outbox.n_packets != 0)
        pvs_tunnels_send(w);
    while (box->sent < box->n) {
        enum pvs_drop drop = send_some(w);
        if (drop == PVS_DROP_none)
            break;
        uint32_t n = box->stuck ? box->n - box->sent : 1;
        tell_outbox(w, box->sent, n, drop);
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

/* The queue of a port that a frame goes by. NULL: none is there. */
static inline struct pvs_queue *
choose_queue(struct pvs_port *port, const struct pvs_frame *frame)
{
    /* acquire: what control and its starter wrote into the queue is visible */
    uint32_t up = atomic_load_explicit(&port->rx_up, memory_order_acquire);

    if (up == 0 || atomic_load_explicit(&port->broken, memory_order_relaxed) != PVS_BROKEN_NONE)
        return NULL;
    uint32_t pair = pvs_steer_choose(&port->steering, frame, up);
    return port->n_rings != 0 ? &port->ring[2 * pair].queue : &port->uplink[pair].queue;
}

bool
pvs_deliver(struct pvs_worker *w, const struct pvs_port_view *out, const struct pvs_frame *frame, struct pvs_toward to,
            struct pvs_queue *from)
{
    if (out->tunnel != NULL) {
        pvs_deliver_to_tunnel(w, out, frame, to);
        return true;
    }
    struct pvs_queue *queue = choose_queue(out->port, frame);

    if (queue == NULL) {
        pvs_drop_tx(w, out->port, frame, PVS_DROP_link_down, 1);
        return true;
    }
    if (queue->kind == PVS_QUEUE_UPLINK)
        return deliver_to_uplink(w, out, pvs_uplink_of(queue), frame, from);
    deliver_earlier(w, (uint16_t)pvs_ref_index(out->ref));
    return deliver_to_ring(w, out, pvs_ring_of(queue), frame, from);
}

uint32_t
pvs_edited(struct pvs_worker *w, uint32_t number, uint8_t variant, const struct pvs_edit *edit)
{
    struct pvs_edited *e = &w->edited;

    /* several ports take the same form of a frame; its forms are the last ones */
    for (uint32_t i = e->n; i > 0 && e->of[i - 1].number == number; i--)
        if (e->of[i - 1].variant == variant && pvs_edit_is_same(&e->of[i - 1].edit, edit))
            return i - 1;
    if (e->n == PVS_EDITED || e->n_seg > PVS_EDITED_SEGS - PVS_MAX_SEGS) {
        pvs_deliver_lists(w);
        pvs_worker_send(w); /* nothing refers to them any more */
        e->n = e->n_seg = 0;
    }
    e->of[e->n].number = (uint8_t)number;
    e->of[e->n].variant = variant;
    e->of[e->n].edit = *edit;
    const struct pvs_frame *from = pvs_verdict_frame(&w->verdict, &w->source[number], variant);
    e->n_seg += pvs_frame_edit(&e->frame[e->n], from, edit, e->seg + e->n_seg);
    return e->n++;
}

const struct pvs_frame *
pvs_copy_of(struct pvs_worker *w, uint32_t number, const struct pvs_egress *egress)
{
    const struct pvs_edit *edit = pvs_verdict_edit(&w->verdict, egress->form);

    if (egress->variant == 0 && pvs_edit_is_nothing(edit))
        return &w->source[number];
    return &w->edited.frame[pvs_edited(w, number, egress->variant, edit)];
}

/* Has a shaper taken the copy, or a tunnel? */
static __attribute__((noinline)) bool
take_elsewhere(struct pvs_worker *w, const struct pvs_port_view *out, const struct pvs_frame *frame,
               const struct pvs_egress *egress)
{
    const struct pvs_verdict *v = &w->verdict;
    struct pvs_toward to = { 0 };

    if (out->tunnel != NULL)
        to = (struct pvs_toward){ pvs_verdict_vid(v, egress), pvs_egress_vtep(egress) };
    if (pvs_is_shaped(out) && !pvs_shaper_passes(w, out, frame, to))
        return true;
    if (out->tunnel != NULL)
        pvs_deliver_to_tunnel(w, out, frame, to);
    return out->tunnel != NULL;
}

bool
pvs_deliver_in_burst(struct pvs_worker *w, const struct pvs_port_view *out, uint32_t number,
                     const struct pvs_egress *egress, struct pvs_queue *from)
{
    const struct pvs_edit *edit = pvs_verdict_edit(&w->verdict, egress->form);
    const struct pvs_frame *base = w->source;

    if (egress->variant != 0 || !pvs_edit_is_nothing(edit)) {
        number = pvs_edited(w, number, egress->variant, edit);
        base = w->edited.frame;
    }
    const struct pvs_frame *frame = &base[number];
    if (!out->plain) {
        if (take_elsewhere(w, out, frame, egress))
            return true;
        from =
            pvs_is_shaped(out) ? NULL : from; /* what is too much for it waits with the shaper, not with its sender */
    }
    struct pvs_queue *queue = choose_queue(out->port, frame);
    if (queue == NULL || queue->kind == PVS_QUEUE_UPLINK || (from != NULL && out->backpressure_ns != 0) ||
        (frame->request.checksum && !pvs_request_taken(frame, pvs_ring_of(queue)->offloads)))
        return pvs_deliver(w, out, frame, (struct pvs_toward){ 0 }, from);
    struct pvs_destination *d = destination(w, out, pvs_ring_of(queue), base);
    if (d->n == PVS_BURST) /* mirrors may give a port more copies than there are frames */
        deliver_list(w, d, true);
    pvs_destination_add(w, d, number);
    return true;
}
