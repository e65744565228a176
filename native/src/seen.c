/* SPDX-License-Identifier: Apache-2.0 */
/*
 * seen.c - what a worker tells of the frames it has seen: drops, samples, captured ones (worker.h, recorder.h, capture.h).
 *
 * How it works: every drop is counted and recorded here and nowhere else, so for each port, direction and reason the records stand for as
 * many frames as the counter says. A copy for a captured port is captured where it is known what became of it: here if
 * it was dropped, in deliver.c and deliver_tunnel.c if it has left. A frame that came by a captured port is captured when it
 * has been forwarded, or dropped.
 * Nothing here allocates, waits or calls the kernel.
 */
#include "worker.h"

/* The port's view, if it is in the tables. */
static const struct pvs_port_view *
view_of(const struct pvs_worker *w, uint32_t ref)
{
    const struct pvs_port_view *view = &w->tables->port[pvs_ref_index(ref)];

    return ref != 0 && view->ref == ref ? view : NULL;
}

/* The VLAN that a frame came in; 0: in none, or that isn't known. */
static uint16_t
vid_of(const struct pvs_worker *w, const struct pvs_frame *frame)
{
    const struct pvs_port_view *in = view_of(w, frame->in_ref);

    if (frame->malformed)
        return 0;
    if (in != NULL && in->vlan != NULL && in->vlan->mode == PVS_VLAN_MAPPED && !frame->injected)
        return frame->vid;
    return pvs_vlan_of(in == NULL ? NULL : in->vlan, &frame->parsed);
}

/* ---- records ---- */

static void
describe(const struct pvs_worker *w, const struct pvs_frame *frame, struct pvs_record *record)
{
    uint32_t n = frame->head_len < sizeof record->bytes ? frame->head_len : (uint32_t)sizeof record->bytes;

    record->in_ref = frame->in_ref;
    record->vid = vid_of(w, frame);
    if (n == 0) /* it is none: its bytes were not even fetched */
        return;
    record->len = frame->len;
    record->n_bytes = (uint8_t)n;
    memcpy(record->bytes, frame->head, n);
}

static void
record_drop(struct pvs_worker *w, const struct pvs_port *port, const struct pvs_frame *frame, enum pvs_record_kind kind,
            enum pvs_drop why, uint32_t n)
{
    struct pvs_record record = {
        .time_ns = w->now_ns, .port_ref = port->ref, .count = n, .kind = (uint8_t)kind, .drop = (uint8_t)why
    };

    if (frame != NULL)
        describe(w, frame, &record);
    pvs_record_put(&w->recorder.ring[PVS_RECORD_DROPS], &record);
}

__attribute__((noinline)) void
pvs_drop_rx(struct pvs_worker *w, const struct pvs_port *port, const struct pvs_frame *frame, enum pvs_drop why,
            uint32_t n)
{
    if (n == 0)
        return;
    pvs_count(&port->counters[w->index]->rx_drop[why], n);
    record_drop(w, port, frame, PVS_RECORD_RX_DROP, why, n);
}

/* What a copy that goes nowhere costs of the turn's budget: it was decided on, and is counted and recorded. */
enum { DROP_COST = 64 };

__attribute__((noinline)) void
pvs_drop_tx(struct pvs_worker *w, const struct pvs_port *port, const struct pvs_frame *frame, enum pvs_drop why,
            uint32_t n)
{
    const struct pvs_port_view *out = view_of(w, port->ref);

    if (n == 0)
        return;
    w->spent += DROP_COST;
    pvs_count(&port->counters[w->index]->tx_drop[why], n);
    if (why == PVS_DROP_guest_rx_full || why == PVS_DROP_uplink_tx_full)
        pvs_count(&w->perf.queue_full, n);
    record_drop(w, port, frame, PVS_RECORD_TX_DROP, why, n);
    if (out != NULL && out->capture_out != 0)
        pvs_capture_out(w, out, frame, why);
}

/* ---- captures ---- */

static void
capture(struct pvs_worker *w, uint32_t slots, const struct pvs_frame *frame, const struct pvs_captured *what)
{
    for (; slots != 0; slots &= slots - 1) {
        struct pvs_captured captured = *what; /* each fills in its own lengths */
        pvs_capture_put(w->captures[__builtin_ctz(slots)], w->index, frame, &captured);
    }
}

/* Where the first copy of the frame goes that was decided on last, and how many there are. */
static const struct pvs_egress *
first_copy(const struct pvs_verdict *v, uint32_t *copies)
{
    const struct pvs_egress *first = NULL;

    *copies = 0;
    for (uint32_t i = 0; i < v->n_egress; i++) {
        if (v->egress[i].drop != PVS_DROP_none)
            continue;
        if (first == NULL)
            first = &v->egress[i];
        ++*copies;
    }
    return first;
}

/* `v`: what was decided on it, NULL: nothing was. */
static void
capture_in(struct pvs_worker *w, uint32_t slots, const struct pvs_frame *frame, const struct pvs_verdict *v,
           enum pvs_drop drop)
{
    struct pvs_captured what = { .time_ns = w->now_ns,
                                 .port_ref = frame->in_ref,
                                 .direction = PVS_INGRESS,
                                 .drop = (uint32_t)drop,
                                 .counter = v == NULL ? PVS_NO_FLOW : v->flow,
                                 .vid = vid_of(w, frame),
                                 .unfinished = !frame->malformed && frame->request.checksum };
    const struct pvs_egress *first = v == NULL ? NULL : first_copy(v, &what.copies);

    if (first != NULL)
        what.peer_ref = w->tables->port[first->port].ref;
    if (frame->head_len != 0) /* otherwise it is none */
        capture(w, slots, frame, &what);
}

__attribute__((noinline)) void
pvs_capture_out(struct pvs_worker *w, const struct pvs_port_view *out, const struct pvs_frame *frame, enum pvs_drop why)
{
    const struct pvs_captured what = { .time_ns = w->now_ns,
                                       .port_ref = out->ref,
                                       .direction = PVS_EGRESS,
                                       .drop = (uint32_t)why,
                                       .peer_ref = frame->in_ref,
                                       .counter = PVS_NO_FLOW,
                                       .vid = vid_of(w, frame),
                                       .unfinished = frame->request.checksum };

    capture(w, out->capture_out, frame, &what);
}

/* ---- frames that came by a port ---- */

static void
sample(struct pvs_worker *w, const struct pvs_frame *frame, const struct pvs_verdict *v, enum pvs_drop drop)
{
    uint32_t copies = 0;
    const struct pvs_egress *first = v == NULL ? NULL : first_copy(v, &copies);
    struct pvs_record record = { .time_ns = w->now_ns,
                                 .port_ref = frame->in_ref,
                                 .count = 1,
                                 .kind = PVS_RECORD_FRAME,
                                 .drop = (uint8_t)drop,
                                 .copies = (uint16_t)copies,
                                 .out = first == NULL ? 0 : first->port };

    describe(w, frame, &record);
    pvs_record_put(&w->recorder.ring[PVS_RECORD_FRAMES], &record);
}

void
pvs_saw(struct pvs_worker *w, const struct pvs_frame *frame)
{
    const struct pvs_verdict *v = frame->malformed ? NULL : &w->verdict;
    enum pvs_drop drop = v == NULL ? PVS_DROP_malformed : (enum pvs_drop)v->drop;
    const struct pvs_port_view *in = view_of(w, frame->in_ref);

    if (in != NULL && in->capture_in != 0)
        capture_in(w, in->capture_in, frame, v, drop);
    /* control's own are no traffic; and what was not fetched has no bytes to be filtered by */
    if (!frame->injected && frame->head_len != 0 && pvs_recorder_wants(&w->recorder, frame))
        sample(w, frame, v, drop);
}

void
pvs_saw_dropped(struct pvs_worker *w, const struct pvs_frame *frame, enum pvs_drop why)
{
    const struct pvs_port_view *in = view_of(w, frame->in_ref);

    if (in != NULL && in->capture_in != 0)
        capture_in(w, in->capture_in, frame, NULL, why);
}
