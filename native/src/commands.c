/* SPDX-License-Identifier: Apache-2.0 */
/*
 * commands.c - a worker's side of every command (see command.h). Runs between two bursts: nothing is pinned then.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "parse.h"
#include "virtqueue_split.h"
#include "worker.h"

static int64_t
ring_start(struct pvs_worker *w, struct pvs_ring *ring)
{
    if (ring->kick_fd >= 0) {
        struct epoll_event watch = { .events = EPOLLIN | EPOLLET, .data.ptr = ring };
        if (epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, ring->kick_fd, &watch) != 0)
            return -errno;
    }
    pvs_split_kick_suppress(&ring->vq);
    ring->call_owed = true;
    ring->poll_ns = w->poll_ns;
    ring->rested_ns = 0;
    atomic_store_explicit(&ring->running, true, memory_order_relaxed);
    pvs_ring_want_notify(w, ring);
    if (pvs_ring_is_guest_tx(ring))
        pvs_ring_activate(w, ring); /* look once without a kick: none follows a migration or a reconnect */
    return 0;
}

static void
ring_stop(struct pvs_worker *w, struct pvs_ring *ring)
{
    if (ring->active)
        pvs_ring_deactivate(w, ring);
    if (ring->kick_fd >= 0)
        epoll_ctl(w->epoll_fd, EPOLL_CTL_DEL, ring->kick_fd, NULL);
    atomic_store_explicit(&ring->running, false, memory_order_relaxed);
}

static void
ring_call(struct pvs_worker *w, struct pvs_ring *ring)
{
    if (!atomic_load_explicit(&ring->running, memory_order_relaxed))
        return;
    pvs_worker_hold(w, ring, true);
    ring->call_owed = true;
    pvs_ring_want_notify(w, ring);
    pvs_worker_release(w);
}

/* A transmit ring is looked at: as long as it was disabled its frames were discarded, and it may have been at rest. */
static void
ring_enable(struct pvs_worker *w, struct pvs_ring *ring)
{
    if (pvs_ring_is_guest_tx(ring) && atomic_load_explicit(&ring->running, memory_order_relaxed) && !ring->active)
        pvs_ring_activate(w, ring);
}

static int64_t
inject(struct pvs_worker *w, struct pvs_command *command)
{
    const struct pvs_port_view *view = &w->tables->port[pvs_ref_index(command->inject.port_ref)];
    struct pvs_frame *frame = &w->burst.frame[0];
    struct pvs_seg tail;

    if (view->ref != command->inject.port_ref)
        return -ENOENT;
    pvs_frame_from_bytes(frame, &tail, command->bytes, command->inject.len);
    frame->in_ref = view->ref;
    frame->injected = true;
    if (!pvs_parse(frame))
        return -EINVAL;
    if (!view->enabled)
        return -ENETDOWN;
    if (command->inject.direction == PVS_INGRESS)
        pvs_forward(w, frame, NULL);
    else
        pvs_deliver(w, view, frame, NULL);
    return 0;
}

void
pvs_command_run(struct pvs_worker *w, struct pvs_command *command)
{
    struct pvs_ring *ring = command->ring.ring;

    switch (command->op) {
    case PVS_OP_PUBLISH:
        w->tables = command->publish.tables;
        break;
    case PVS_OP_RING_START:
        if (ring->worker == w->index)
            command->result = ring_start(w, ring);
        break;
    case PVS_OP_RING_STOP:
        pvs_worker_flush(w); /* what an earlier command of this round gave must be shown while the ring is mapped */
        if (ring->worker == w->index)
            ring_stop(w, ring);
        break;
    case PVS_OP_RING_ENABLE:
        if (ring->worker == w->index)
            ring_enable(w, ring);
        break;
    case PVS_OP_RING_CALL:
        if (ring->worker == w->index)
            ring_call(w, ring);
        break;
    case PVS_OP_INJECT:
        if (w->index == 0)
            command->result = inject(w, command);
        break;
    }
    /* acq_rel: what each worker did before counting itself off is visible to whoever is last, and so to control */
    if (atomic_fetch_sub_explicit(&command->remaining, 1, memory_order_acq_rel) == 1) {
        if (command->op == PVS_OP_RING_STOP)
            command->result = ring->vq.next_avail; /* nobody is inside any more */
        pvs_mail_put(&w->done, command);
        w->wake_control = true;
    }
}
