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

static void
add_copy(const struct pvs_frame *frame, const struct pvs_port_view *out, enum pvs_form form, enum pvs_drop drop,
         struct pvs_verdict *v)
{
    if (drop == PVS_DROP_none && !pvs_fits_mtu(frame, out->mtu))
        drop = PVS_DROP_mtu_exceeded;
    v->egress[v->n_egress++] =
        (struct pvs_egress){ .port = (uint16_t)pvs_ref_index(out->ref), .form = (uint8_t)form, .drop = (uint8_t)drop };
}

static bool
has_link(const struct pvs_port_view *out)
{
    return out->enabled && atomic_load_explicit(out->rx_up, memory_order_relaxed) != 0;
}

/*
 * To each of these but the one it came from. A port without a link, one that is isolated from the sender, or that doesn't take
 * what lies behind the VLAN's tag, is no party to a flood: not a drop.
 */
static void
flood_to(const struct pvs_frame *frame, const struct pvs_tables *tables, const uint16_t *member, uint32_t n,
         struct pvs_verdict *v)
{
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(frame->in_ref)];

    for (uint32_t i = 0; i < n; i++) {
        const struct pvs_port_view *out = &tables->port[member[i]];
        enum pvs_form form;
        if (out != in && has_link(out) && !(in->isolated && out->isolated) &&
            pvs_vlan_leave(out->vlan, &v->place, &form))
            add_copy(frame, out, form, PVS_DROP_none, v);
    }
}

static void
flood(const struct pvs_frame *frame, const struct pvs_tables *tables, const struct pvs_bridge_view *bridge,
      struct pvs_verdict *v)
{
    flood_to(frame, tables, bridge->member, bridge->n_members, v);
    if (bridge->vlans != NULL) {
        const uint32_t *start = &bridge->vlans->start[v->place.vid];
        flood_to(frame, tables, bridge->vlans->member + start[0], start[1] - start[0], v);
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
    struct pvs_fdb_hit hit = pvs_fdb_find(bridge->fdb, src, v->place.vid, now_s);
    v->fresh_needed = hit.state == PVS_FDB_UNKNOWN || (hit.port_ref != frame->in_ref && !hit.is_static);
    v->learn = v->fresh_needed || hit.state == PVS_FDB_STALE;
}

/* A destination the FDB knows and whose port is still on this bridge; else the frame is flooded. */
static void
forward(const struct pvs_frame *frame, const struct pvs_tables *tables, const struct pvs_bridge_view *bridge,
        uint32_t now_s, struct pvs_verdict *v)
{
    struct pvs_fdb_hit hit = pvs_fdb_find(bridge->fdb, frame->parsed.dst, v->place.vid, now_s);
    const struct pvs_port_view *out = &tables->port[pvs_ref_index(hit.port_ref)];

    if (hit.state == PVS_FDB_UNKNOWN || out->ref != hit.port_ref || out->bridge != v->bridge) {
        if (bridge->flood_unknown)
            flood(frame, tables, bridge, v);
        else
            drop_frame(v, PVS_DROP_no_destination);
    } else if (hit.port_ref == frame->in_ref) {
        drop_frame(v, PVS_DROP_same_port);
    } else {
        enum pvs_form form;
        enum pvs_drop drop = PVS_DROP_none;
        if (!pvs_vlan_leave(out->vlan, &v->place, &form))
            drop = PVS_DROP_vlan_filtered;
        if (out->isolated && tables->port[pvs_ref_index(frame->in_ref)].isolated)
            drop = PVS_DROP_isolated;
        if (!has_link(out))
            drop = PVS_DROP_link_down;
        add_copy(frame, out, form, drop, v);
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
    v->bridge = in->bridge;
    v->n_egress = 0;

    if (!in->enabled) {
        drop_frame(v, PVS_DROP_link_down);
        return;
    }
    if (!pvs_vlan_enter(in->vlan, frame, &v->place)) {
        drop_frame(v, PVS_DROP_vlan_filtered);
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
