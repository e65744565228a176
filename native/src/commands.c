/* SPDX-License-Identifier: Apache-2.0 */
/*
 * commands.c - a worker's side of every command (see command.h). Runs between two bursts: nothing is pinned then.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "parse.h"
#include "virtqueue_any.h"
#include "worker.h"

static int64_t
ring_start(struct pvs_worker *w, struct pvs_ring *ring)
{
    if (ring->kick_fd >= 0) {
        struct epoll_event watch = { .events = EPOLLIN | EPOLLET, .data.ptr = &ring->queue };
        if (epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, ring->kick_fd, &watch) != 0)
            return -errno;
    }
    pvs_vq_kick_suppress(&ring->vq);
    ring->call_owed = true;
    ring->queue.poll_ns = w->poll_ns;
    ring->queue.rested_ns = 0;
    atomic_store_explicit(&ring->queue.running, true, memory_order_relaxed);
    pvs_ring_want_notify(w, ring);
    if (pvs_ring_is_guest_tx(ring))
        pvs_queue_activate(w, &ring->queue); /* look once without a kick: none follows a migration or a reconnect */
    return 0;
}

static void
ring_stop(struct pvs_worker *w, struct pvs_ring *ring)
{
    if (ring->queue.active)
        pvs_queue_deactivate(w, &ring->queue);
    if (ring->kick_fd >= 0)
        epoll_ctl(w->epoll_fd, EPOLL_CTL_DEL, ring->kick_fd, NULL);
    atomic_store_explicit(&ring->queue.running, false, memory_order_relaxed);
}

static void
ring_call(struct pvs_worker *w, struct pvs_ring *ring)
{
    if (!atomic_load_explicit(&ring->queue.running, memory_order_relaxed))
        return;
    pvs_worker_hold(w, ring, true);
    ring->call_owed = true;
    pvs_ring_want_notify(w, ring);
    pvs_worker_release(w);
}

static int64_t
uplink_start(struct pvs_worker *w, struct pvs_uplink *u)
{
    /* edge-triggered: frames that were there before are seen because it is looked at once without an edge */
    struct epoll_event watch = { .events = EPOLLIN | EPOLLET, .data.ptr = &u->queue };
    if (epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, u->fd, &watch) != 0)
        return -errno;
    atomic_store_explicit(&u->queue.running, true, memory_order_relaxed);
    pvs_queue_activate(w, &u->queue);
    return 0;
}

static void
uplink_stop(struct pvs_worker *w, struct pvs_uplink *u)
{
    /* some may have waited for their receiver */
    pvs_drop_received(w, u->queue.port, u->in->frame + u->done, u->n - u->done, PVS_DROP_link_down);
    pvs_count(&u->rx_packets, w->taken_packets);
    pvs_count(&u->rx_bytes, w->taken_bytes);
    u->done = u->n;
    if (u->kind == PVS_ENDPOINT) /* nor will the rest of them be looked at */
        pvs_drop_rx(w, u->queue.port, NULL, PVS_DROP_link_down, u->in->n_messages - u->in->message_at);
    if (u->queue.active)
        pvs_queue_deactivate(w, &u->queue);
    if (!atomic_load_explicit(&u->queue.running, memory_order_relaxed))
        return; /* its start has failed */
    pvs_uplink_count_overrun(w, u);
    epoll_ctl(w->epoll_fd, EPOLL_CTL_DEL, u->fd, NULL);
    atomic_store_explicit(&u->queue.running, false, memory_order_relaxed);
}

/* A transmit ring is looked at: as long as it was disabled its frames were discarded, and it may have been at rest. */
static void
ring_enable(struct pvs_worker *w, struct pvs_ring *ring)
{
    if (pvs_ring_is_guest_tx(ring) && atomic_load_explicit(&ring->queue.running, memory_order_relaxed) &&
        !ring->queue.active)
        pvs_queue_activate(w, &ring->queue);
}

/* The first half of a move: the queue is no longer ours. What it is in the middle of, it stays in. */
static void
release(struct pvs_worker *w, struct pvs_queue *queue)
{
    int fd = pvs_queue_wake_fd(queue);

    if (queue->active)
        pvs_queue_deactivate(w, queue);
    if (fd >= 0)
        epoll_ctl(w->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

/* The second half: it is ours. Its descriptor has its place in our epoll already; what came meanwhile is looked for. */
static void
adopt(struct pvs_worker *w, struct pvs_queue *queue)
{
    struct epoll_event watch = { .events = EPOLLIN | EPOLLET, .data.ptr = queue };
    int fd = pvs_queue_wake_fd(queue);

    if (fd >= 0)
        epoll_ctl(w->epoll_fd, EPOLL_CTL_MOD, fd, &watch);
    queue->rested_ns = 0;
    pvs_queue_activate(w, queue);
    if (queue->kind == PVS_QUEUE_UPLINK && pvs_uplink_of(queue)->kind == PVS_ENDPOINT)
        pvs_endpoint_forget(pvs_uplink_of(queue), w->vteps); /* as those did who had theirs */
    if (queue->kind == PVS_QUEUE_RING) { /* its call descriptor may have been replaced while nobody had it */
        pvs_ring_of(queue)->call_owed = true;
        pvs_ring_want_notify(w, pvs_ring_of(queue));
    }
}

/* What waits here must not name VTEPs that have been unlinked: their numbers will be others'. */
static void
forget_vteps(struct pvs_worker *w)
{
    for (uint32_t i = 0; i < w->n_active; i++) {
        struct pvs_queue *queue = w->active[i];
        if (queue->kind == PVS_QUEUE_UPLINK && pvs_uplink_of(queue)->kind == PVS_ENDPOINT)
            pvs_endpoint_forget(pvs_uplink_of(queue), w->vteps);
    }
    pvs_shapers_forget(w);
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
        pvs_forward_injected(w, frame);
    else
        pvs_deliver(w, view, frame, (struct pvs_toward){ .vid = frame->parsed.vid }, NULL);
    pvs_worker_send(w); /* its bytes go with the command */
    return 0;
}

/* What leaves, of a frame whose verdict has been reached. */
static void
tell_copy(struct pvs_worker *w, const struct pvs_egress *egress, struct pvs_trace_copy *out)
{
    const struct pvs_verdict *v = &w->verdict;
    const struct pvs_port_view *port = &w->tables->port[egress->port];
    bool of_mirror = egress->form >= PVS_FORMS && egress->form < PVS_FORM_AS_IS;

    w->edited.n = w->edited.n_seg = 0;
    uint32_t number = pvs_edited(w, 0, egress->variant, pvs_verdict_edit(v, egress->form));
    const struct pvs_frame *leaves = &w->edited.frame[number];
    *out = (struct pvs_trace_copy){ .port_ref = port->ref,
                                    .drop = egress->drop,
                                    .mirror = (int16_t)(of_mirror ? (egress->form - PVS_FORMS) / PVS_FORMS : -1),
                                    .tun_id = PVS_NO_FLOW,
                                    .len = leaves->len,
                                    .head_len = leaves->head_len };
    if (out->head_len > sizeof out->head)
        out->head_len = sizeof out->head;
    memcpy(out->head, leaves->head, out->head_len);
    if (port->tunnel == NULL)
        return;
    out->vid = pvs_verdict_vid(v, egress);
    out->vtep = pvs_egress_vtep(egress);
    const struct pvs_segment *segment = pvs_tunnel_segment(port->tunnel, out->vid);
    if (segment != NULL && segment->vni != PVS_NO_KEY)
        out->tun_id = (uint32_t)segment->vni;
}

/* Decide on a frame, and do nothing about it. */
static int64_t
trace(struct pvs_worker *w, const struct pvs_command *command)
{
    const struct pvs_trace_conf *conf = &command->trace.conf;
    const struct pvs_port_view *in = &w->tables->port[pvs_ref_index(command->trace.port_ref)];
    struct pvs_trace *out = command->trace.out;
    struct pvs_frame *frame = &w->burst.frame[0];
    struct pvs_moment now = { .ns = w->now_ns, .s = w->now_s, .worker = PVS_MAX_WORKERS };
    struct pvs_verdict *v = &w->verdict;
    struct pvs_seg tail;

    if (in->ref != command->trace.port_ref || in->bridge == PVS_NO_BRIDGE)
        return -ENOENT;
    pvs_frame_from_bytes(frame, &tail, conf->frame, conf->len);
    frame->in_ref = in->ref;
    frame->injected = false;
    frame->vid = conf->vid;
    frame->vtep = conf->vtep;
    frame->tun_id = conf->tun_id;
    if (!pvs_parse(frame))
        return -EINVAL;
    *out = (struct pvs_trace){ .n_steps = 1 };
    out->step[0] = (struct pvs_step){ .kind = PVS_STEP_PARSED,
                                      .a = frame->parsed.ethertype,
                                      .b = (uint32_t)frame->parsed.vid << 16 | frame->parsed.inner_vid };
    const struct pvs_flows *flows = w->tables->bridge[in->bridge].flows;
    if (flows != NULL) {
        pvs_flow_pull(frame);
        pvs_flow_key(frame, in->slot, in->tunnel != NULL ? frame->tun_id : 0, PVS_DEPTH_L3, out->key);
        if (frame->malformed && flows->table->depth != PVS_DEPTH_L2) { /* as pull_for_flows */
            out->step[out->n_steps++] = (struct pvs_step){ .kind = PVS_STEP_DROP, .a = PVS_DROP_malformed };
            out->drop = PVS_DROP_malformed;
            out->counter = PVS_NO_FLOW;
            return 0;
        }
    }
    w->source = frame;
    v->trace = out;
    pvs_decide_noted(frame, w->tables, now, false, v);
    out->drop = v->drop;
    out->counter = v->flow;
    out->n_copies = v->n_egress;
    for (uint32_t i = 0; i < v->n_egress && i < sizeof out->copy / sizeof out->copy[0]; i++)
        tell_copy(w, &v->egress[i], &out->copy[i]);
    return 0;
}

/* What the worker of a queue alone does with it. */
static void
run_own(struct pvs_worker *w, struct pvs_command *command)
{
    struct pvs_queue *queue = command->queue;

    switch (command->op) {
    case PVS_OP_RING_START:
        command->result = ring_start(w, pvs_ring_of(queue));
        break;
    case PVS_OP_RING_STOP:
        ring_stop(w, pvs_ring_of(queue));
        break;
    case PVS_OP_RING_ENABLE:
        ring_enable(w, pvs_ring_of(queue));
        break;
    case PVS_OP_RING_CALL:
        ring_call(w, pvs_ring_of(queue));
        break;
    case PVS_OP_UPLINK_START:
        command->result = uplink_start(w, pvs_uplink_of(queue));
        break;
    case PVS_OP_UPLINK_STOP:
        uplink_stop(w, pvs_uplink_of(queue));
        break;
    case PVS_OP_RELEASE:
        release(w, queue);
        break;
    case PVS_OP_ADOPT:
        adopt(w, queue);
        break;
    default: /* of no queue */
        break;
    }
}

void
pvs_command_run(struct pvs_worker *w, struct pvs_command *command)
{
    switch (command->op) {
    case PVS_OP_PUBLISH:
        w->tables = command->publish.tables;
        break;
    case PVS_OP_SYNC:
        forget_vteps(w);
        break;
    case PVS_OP_RECORDER:
        pvs_recorder_choose(&w->recorder, command->recorder.every, command->recorder.filter);
        break;
    case PVS_OP_RING_STOP: /* what an earlier command of this round gave must be shown while the ring is mapped */
    case PVS_OP_RELEASE:   /* likewise: the ring may stand on this worker's lists */
        pvs_worker_flush(w);
        break;
    case PVS_OP_INJECT:
        if (w->index == 0)
            command->result = inject(w, command);
        break;
    case PVS_OP_TRACE:
        if (w->index == 0)
            command->result = trace(w, command);
        break;
    case PVS_OP_REMOTES: /* it is enough that all have passed by */
    case PVS_OP_RING_START:
    case PVS_OP_RING_ENABLE:
    case PVS_OP_RING_CALL:
    case PVS_OP_UPLINK_START:
    case PVS_OP_UPLINK_STOP:
    case PVS_OP_ADOPT:
        break;
    }
    if (command->op >= PVS_OP_RING_START && command->worker == w->index)
        run_own(w, command);
    /* acq_rel: what each worker did before counting itself off is visible to whoever is last, and so to control */
    if (atomic_fetch_sub_explicit(&command->remaining, 1, memory_order_acq_rel) == 1) {
        if (command->op == PVS_OP_RING_STOP)
            command->result = pvs_vq_base(&pvs_ring_of(command->queue)->vq); /* nobody is inside any more */
        pvs_mail_put(&w->done, command);
        w->wake_control = true;
    }
}
