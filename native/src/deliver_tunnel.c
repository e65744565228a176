/* SPDX-License-Identifier: Apache-2.0 */
/*
 * deliver_tunnel.c - copies on their way out by tunnels (step 5 of docs/walk-of-a-frame.md).
 *
 * How it works: a copy is finished for the wire here (cut and summed as a receiver without any offloads would need it, in pieces that fit
 * the underlay), and put into the worker's outbox for tunnels (port_tunnel.h) with the numbers of the VTEPs that get it. The outbox is sent when it is
 * full, and before what it points to goes.
 * Called by deliver.c.
 */
#include "worker.h"

static __attribute__((noinline)) void
captured(struct pvs_worker *w, const struct pvs_port_view *out, const struct pvs_packet *packet)
{
    struct pvs_seg seg[PVS_PACKET_PARTS];
    struct pvs_frame frame;

    pvs_packet_frame(&w->tunnel_outbox, packet, &frame, seg);
    pvs_capture_out(w, out, &frame, PVS_DROP_none);
}

static __attribute__((noinline)) void
dropped(struct pvs_worker *w, const struct pvs_packet *packet, uint16_t vtep, enum pvs_drop drop)
{
    const struct pvs_port_view *out = &w->tables->port[packet->port];
    struct pvs_seg seg[PVS_PACKET_PARTS];
    struct pvs_frame frame;

    pvs_packet_frame(&w->tunnel_outbox, packet, &frame, seg);
    pvs_drop_tx(w, out->port, &frame, drop, 1);
    if (drop == PVS_DROP_mtu_exceeded && pvs_allow(&w->too_big_told, w->now_s, PVS_TOO_BIG_PER_SECOND))
        pvs_event(
            w, &(struct pvs_event){ .time_ns = w->now_ns, .kind = PVS_EV_TOO_BIG, .port_ref = out->ref, .vtep = vtep });
}

static void
count(void *worker, const struct pvs_packet *packet, uint16_t vtep, enum pvs_drop drop)
{
    struct pvs_worker *w = worker;
    const struct pvs_port_view *out = &w->tables->port[packet->port];
    struct pvs_counters *c = out->port->counters[w->index];

    if (drop != PVS_DROP_none) {
        dropped(w, packet, vtep, drop);
        return;
    }
    pvs_count(&c->value[PVS_C_tx_packets], 1);
    pvs_count(&c->value[PVS_C_tx_bytes], packet->len);
    if (out->capture_out != 0)
        captured(w, out, packet);
}

void
pvs_tunnels_send(struct pvs_worker *w)
{
    struct pvs_tunnel_outbox *box = &w->tunnel_outbox;

    pvs_worker_release(w); /* system calls take their time: nobody is to wait for a ring meanwhile */
    pvs_tunnel_send(box, w->vteps, count, w);
    pvs_tunnel_outbox_clear(box);
}

/* All pieces of a frame. */
static void
put(struct pvs_worker *w, const struct pvs_port_view *out, const struct pvs_segment *segment,
    const struct pvs_frame *frame, const uint16_t *vtep, uint32_t n)
{
    struct pvs_tunnel_outbox *box = &w->tunnel_outbox;
    struct pvs_pieces *pieces = &w->pieces;
    uint16_t port = (uint16_t)pvs_ref_index(out->ref);
    uint32_t source = pvs_flow_hash(frame);

    pvs_pieces_begin_within(pieces, frame, pvs_tunnel_room(out, frame->parsed.l3_offset));
    do {
        if (!pvs_tunnel_outbox_takes(box))
            pvs_tunnels_send(w);
        w->spent += (uint64_t)n * (pieces->len + 64 * (frame->n_seg + 1));
        pvs_tunnel_put(box, out->tunnel, segment, port, pieces, vtep, n, source);
    } while (pvs_pieces_next(pieces));
}

void
pvs_deliver_to_tunnel(struct pvs_worker *w, const struct pvs_port_view *out, const struct pvs_frame *frame,
                      struct pvs_toward to)
{
    struct pvs_segment *segment = pvs_tunnel_segment(out->tunnel, to.vid);
    const struct pvs_remotes *remotes = segment == NULL ? NULL : pvs_segment_remotes(segment);
    uint32_t n = to.vtep != 0 ? 1 : remotes != NULL ? remotes->n_flood : 0;
    const uint16_t *vtep = to.vtep != 0 ? &to.vtep : remotes != NULL ? remotes->vtep : NULL;

    if (segment == NULL || n == 0) {
        pvs_drop_tx(w, out->port, frame, PVS_DROP_no_destination, 1);
        return;
    }
    put(w, out, segment, frame, vtep, n);
}
