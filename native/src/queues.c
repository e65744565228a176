/* SPDX-License-Identifier: Apache-2.0 */
/*
 * queues.c - where a queue stands with a worker: polled, waiting, held, touched, to be notified, broken (worker.h).
 *
 * Called by the worker's round, by forward.c and by commands.c, on the worker's thread.
 */
#include "virtqueue_any.h"
#include "worker.h"

void
pvs_queue_activate(struct pvs_worker *w, struct pvs_queue *queue)
{
    if (queue->kind == PVS_QUEUE_RING)
        pvs_vq_kick_suppress(&pvs_ring_of(queue)->vq);
    queue->idle_since_ns = w->now_ns;
    queue->active = true;
    queue->waiting = false;
    w->n_kickless += queue->kickless;
    queue->active_at = w->n_active;
    w->active[w->n_active++] = queue;
}

void
pvs_queue_deactivate(struct pvs_worker *w, struct pvs_queue *queue)
{
    struct pvs_queue *last = w->active[--w->n_active];
    w->active[queue->active_at] = last;
    last->active_at = queue->active_at;
    queue->active = false;
    w->n_kickless -= queue->kickless || queue->waiting;
    queue->waiting = false;
}

/* Nothing that its own guest or interface does ends the waiting of a queue, so it counts as one without a kick. */
void
pvs_queue_set_waiting(struct pvs_worker *w, struct pvs_queue *queue, bool waiting)
{
    if (queue->waiting != waiting && !queue->kickless)
        w->n_kickless += waiting ? 1U : UINT32_MAX;
    queue->waiting = waiting;
}

bool
pvs_worker_hold(struct pvs_worker *w, struct pvs_ring *ring, bool wait)
{
    if (w->held == ring)
        return true;
    pvs_worker_release(w);
    if (wait)
        pvs_ring_lock(ring);
    else if (!pvs_ring_try(ring))
        return false;
    w->held = ring;
    return true;
}

void
pvs_worker_release(struct pvs_worker *w)
{
    if (w->held != NULL)
        pvs_ring_unlock(w->held);
    w->held = NULL;
}

void
pvs_ring_show(struct pvs_worker *w, struct pvs_ring *ring)
{
    pvs_vq_publish(&ring->vq);
    pvs_ring_want_notify(w, ring);
    pvs_ring_lost(w, ring);
}

bool
pvs_ring_lost(struct pvs_worker *w, struct pvs_ring *ring)
{
    bool lost = atomic_load_explicit(&ring->queue.port->memory_lost, memory_order_relaxed);

    if (__builtin_expect(lost, 0))
        pvs_ring_broken(w, ring, PVS_BROKEN_MEMORY_LOST);
    return lost;
}

void
pvs_ring_touch(struct pvs_worker *w, struct pvs_ring *ring)
{
    if (!(ring->touched & pvs_worker_bit(w))) {
        ring->touched |= pvs_worker_bit(w);
        w->touched[w->n_touched++] = ring;
    }
}

void
pvs_ring_want_notify(struct pvs_worker *w, struct pvs_ring *ring)
{
    if (!(ring->notify & pvs_worker_bit(w))) {
        ring->notify |= pvs_worker_bit(w);
        w->notify[w->n_notify++] = ring;
    }
}

void
pvs_ring_broken(struct pvs_worker *w, struct pvs_ring *ring, enum pvs_broken why)
{
    struct pvs_port *port = ring->queue.port;
    uint32_t none = PVS_BROKEN_NONE;

    /* lost memory reads as zeros, which make many a ring look wrong: name the cause */
    if (atomic_load_explicit(&port->memory_lost, memory_order_relaxed))
        why = PVS_BROKEN_MEMORY_LOST;
    /* relaxed: it only decides which of several workers tells */
    if (!atomic_compare_exchange_strong_explicit(&port->broken, &none, why, memory_order_relaxed, memory_order_relaxed))
        return;
    atomic_store_explicit(&port->rx_up, 0, memory_order_relaxed);
    pvs_event(w,
              &(struct pvs_event){ .time_ns = w->now_ns, .kind = PVS_EV_BROKEN, .port_ref = port->ref, .detail = why });
}

void
pvs_uplink_count_overrun(struct pvs_worker *w, struct pvs_uplink *u)
{
    u->overrun_seen_s = w->now_s;
    pvs_drop_rx(w, u->queue.port, NULL, PVS_DROP_uplink_rx_full, pvs_uplink_overrun(u));
}
