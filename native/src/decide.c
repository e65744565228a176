/* SPDX-License-Identifier: Apache-2.0 */
/* decide.c - see decide.h. */
#include "decide.h"

#include "parse.h"

static void
drop_frame(struct pvs_verdict *v, enum pvs_drop reason)
{
    v->drop = (uint8_t)reason;
    v->n_egress = 0;
}

/* What, if anything, keeps a copy from leaving by this port. */
static enum pvs_drop
egress_check(const struct pvs_frame *frame, const struct pvs_port_view *out)
{
    if (!out->enabled || atomic_load_explicit(out->rx_up, memory_order_relaxed) == 0)
        return PVS_DROP_link_down;
    if (!pvs_fits_mtu(frame, out->mtu))
        return PVS_DROP_mtu_exceeded;
    return PVS_DROP_none;
}

/* To every member with a link but the one it came from. A port without a link is no party to a flood: not a drop. */
static void
flood(const struct pvs_frame *frame, const struct pvs_tables *tables, const struct pvs_bridge_view *bridge,
      struct pvs_verdict *v)
{
    uint32_t in = pvs_ref_index(frame->in_ref);

    for (uint32_t i = 0; i < bridge->n_members; i++) {
        uint16_t port = bridge->member[i];
        if (port == in)
            continue;
        enum pvs_drop drop = egress_check(frame, &tables->port[port]);
        if (drop != PVS_DROP_link_down)
            v->egress[v->n_egress++] = (struct pvs_egress){ .port = port, .drop = (uint8_t)drop };
    }
    if (v->n_egress == 0)
        drop_frame(v, PVS_DROP_no_destination);
}

static void
learning(const struct pvs_frame *frame, const struct pvs_bridge_view *bridge, uint32_t now_s, struct pvs_verdict *v)
{
    uint64_t src = frame->parsed.src;

    if (src == 0 || pvs_mac_is_group(src))
        return;
    struct pvs_fdb_hit hit = pvs_fdb_find(bridge->fdb, src, v->vid, now_s);
    v->fresh_needed = hit.state == PVS_FDB_UNKNOWN || (hit.port_ref != frame->in_ref && !hit.is_static);
    v->learn = v->fresh_needed || hit.state == PVS_FDB_STALE;
}

/* A destination the FDB knows and whose port is still on this bridge; else the frame is flooded. */
static void
forward(const struct pvs_frame *frame, const struct pvs_tables *tables, const struct pvs_bridge_view *bridge,
        uint32_t now_s, struct pvs_verdict *v)
{
    struct pvs_fdb_hit hit = pvs_fdb_find(bridge->fdb, frame->parsed.dst, v->vid, now_s);
    const struct pvs_port_view *out = &tables->port[pvs_ref_index(hit.port_ref)];

    if (hit.state == PVS_FDB_UNKNOWN || out->ref != hit.port_ref || out->bridge != v->bridge) {
        if (bridge->flood_unknown)
            flood(frame, tables, bridge, v);
        else
            drop_frame(v, PVS_DROP_no_destination);
    } else if (hit.port_ref == frame->in_ref) {
        drop_frame(v, PVS_DROP_same_port);
    } else {
        v->egress[0] = (struct pvs_egress){ .port = (uint16_t)pvs_ref_index(hit.port_ref),
                                            .drop = (uint8_t)egress_check(frame, out) };
        v->n_egress = 1;
        v->known = true;
    }
}

void
pvs_decide(const struct pvs_frame *frame, const struct pvs_tables *tables, uint32_t now_s, bool source_known,
           struct pvs_verdict *v)
{
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(frame->in_ref)];
    const struct pvs_bridge_view *bridge = &tables->bridge[in->bridge];
    uint64_t dst = frame->parsed.dst;

    v->drop = PVS_DROP_none;
    v->learn = v->fresh_needed = v->punt = v->known = false;
    v->vid = 0;
    v->bridge = in->bridge;
    v->n_egress = 0;

    if (!in->enabled) {
        drop_frame(v, PVS_DROP_link_down);
        return;
    }
    if (pvs_mac_is_link_local(dst)) {
        v->punt = bridge->punt_bpdu;
        if (dst == PVS_MAC_PAUSE || !bridge->forward_bpdu) {
            drop_frame(v, PVS_DROP_bpdu);
            return;
        }
    }
    if (!source_known)
        learning(frame, bridge, now_s, v);
    if (pvs_mac_is_group(dst))
        flood(frame, tables, bridge, v);
    else
        forward(frame, tables, bridge, now_s, v);
}
