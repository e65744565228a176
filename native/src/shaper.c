/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shaper.c - frames that wait until a port's rate has room for them.
 *
 * How it works: each frame for a shaped port is charged to the port's bucket (policy.h), which says when it may leave. One that
 * may not leave yet is owned (hold.h) and waits in the worker's queue for that port; a timer sends what is due. The
 * moments of a port's frames only grow, so its queue is in order; several workers share the bucket, not the queue.
 * Called by deliver.c, and by the worker's timers.
 */
#include "worker.h"

/* Take the first frame off the queue. */
static struct pvs_owned *
take(struct pvs_shaper *s)
{
    struct pvs_owned *owned = s->first;

    s->first = owned->next;
    if (s->first == NULL)
        s->end = &s->first;
    return owned;
}

/* The timer: send what is due. The port may have left the tables, and its frames go with it. */
static void
send_due(struct pvs_timer *timer, uint64_t now_ns)
{
    struct pvs_shaper *s = (struct pvs_shaper *)(void *)timer;
    struct pvs_worker *w = s->worker;
    const struct pvs_port_view *out = &w->tables->port[pvs_ref_index(s->ref)];

    while (s->first != NULL && s->first->at_ns <= now_ns) {
        struct pvs_owned *owned = take(s);
        if (out->ref == s->ref && !out->enabled)
            pvs_drop_tx(w, out->port, &owned->frame, PVS_DROP_link_down, 1);
        else if (out->ref == s->ref)
            pvs_deliver(w, out, &owned->frame, (struct pvs_toward){ owned->vid, owned->vtep }, NULL);
        pvs_worker_send(w); /* what waits for the kernel refers to the frame */
        pvs_owned_free(owned);
    }
    if (s->first != NULL)
        pvs_wheel_set(&w->wheel, &s->timer, s->first->at_ns);
}

/* The queue for a port; empty, if what waits there was for one that had this index before. */
static struct pvs_shaper *
shaper_of(struct pvs_worker *w, const struct pvs_port_view *out)
{
    struct pvs_shaper *s = &w->shaper[pvs_ref_index(out->ref)];

    if (s->ref != out->ref) {
        while (s->ref != 0 && s->first != NULL)
            pvs_owned_free(take(s));
        pvs_wheel_cancel(&w->wheel, &s->timer);
        *s = (struct pvs_shaper){ .timer.fire = send_due, .worker = w, .ref = out->ref };
        s->end = &s->first;
    }
    return s;
}

void
pvs_shapers_forget(struct pvs_worker *w)
{
    for (uint32_t i = 0; i < PVS_MAX_PORTS; i++)
        for (struct pvs_owned *owned = w->shaper[i].first; owned != NULL; owned = owned->next)
            if (!pvs_vtep_is_linked(w->vteps, owned->vtep))
                owned->vtep = 0;
}

bool
pvs_shaper_passes(struct pvs_worker *w, const struct pvs_port_view *out, const struct pvs_frame *frame,
                  struct pvs_toward to)
{
    struct pvs_shaper *s = shaper_of(w, out);
    const struct pvs_rate *rate = &out->policy->shaping;
    uint64_t after = pvs_meter_after(rate, &out->meters->shaping, frame->len, w->now_ns);
    uint64_t wait = after > rate->depth_ns ? after - rate->depth_ns : 0;

    if (wait == 0 && s->first == NULL) {
        pvs_meter_charge(rate, &out->meters->shaping, frame->len, w->now_ns);
        return true;
    }
    struct pvs_owned *owned = wait <= PVS_SHAPING_NS ? pvs_own(&w->slab, frame, pvs_ref_index(out->ref)) : NULL;
    if (owned == NULL) {
        pvs_drop_tx(w, out->port, frame, PVS_DROP_shaped, 1);
        return false;
    }
    w->spent += pvs_copy_cost(frame);
    pvs_meter_charge(rate, &out->meters->shaping, frame->len, w->now_ns);
    owned->at_ns = w->now_ns + wait;
    owned->next = NULL;
    owned->vid = to.vid;
    owned->vtep = to.vtep;
    *s->end = owned;
    s->end = &owned->next;
    if (s->first == owned)
        pvs_wheel_set(&w->wheel, &s->timer, owned->at_ns);
    return false;
}
