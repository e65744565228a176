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

__attribute__((noinline)) bool
pvs_fits_tunnel(const struct pvs_frame *frame, const struct pvs_port_view *out, const struct pvs_edit *edit)
{
    int32_t longer = (edit->push ? PVS_VLAN_HLEN : 0) - edit->cut;

    return out->tunnel != NULL &&
           pvs_pieces_fit(frame, longer, pvs_tunnel_room(out, (uint32_t)(frame->parsed.l3_offset + longer)));
}

static void
add_copy(const struct pvs_frame *frame, const struct pvs_port_view *out, enum pvs_form form, enum pvs_drop drop,
         struct pvs_verdict *v)
{
    if (drop == PVS_DROP_none && !pvs_fits(frame, out, &v->place.form[form]))
        drop = PVS_DROP_mtu_exceeded;
    v->egress[v->n_egress++] =
        (struct pvs_egress){ .port = (uint16_t)pvs_ref_index(out->ref), .form = (uint8_t)form, .drop = (uint8_t)drop };
}

/*
 * To each of these but the one it came from. A port without a link, one that is kept apart from the sender, or that doesn't take
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
        if (out != in && pvs_has_link(out) && (in->apart & out->apart) == 0 &&
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

/* The class of what is flooded; false when the port has sent too much of it. */
static bool
storm_allows(const struct pvs_port_view *in, enum pvs_storm class, const struct pvs_frame *frame, uint64_t now_ns,
             struct pvs_verdict *v)
{
    if (in->policy == NULL || in->policy->storm[class].unit == 0)
        return true;
    v->storm = (uint8_t)(class + 1);
    if (pvs_meter_allows(&in->policy->storm[class], &in->meters->storm[class], pvs_frame_segments(frame), now_ns))
        return true;
    v->storm = 0;
    drop_frame(v, PVS_DROP_storm_control);
    return false;
}

/* Is a known address where it is for good? */
static bool
stays(const struct pvs_fdb *fdb, const struct pvs_fdb_hit *hit)
{
    return hit->is_static || pvs_fdb_is_sticky(fdb, (uint32_t)hit->at);
}

static void
learning(const struct pvs_frame *frame, const struct pvs_port_view *in, const struct pvs_bridge_view *bridge,
         uint32_t now_s, struct pvs_verdict *v)
{
    uint64_t src = frame->parsed.src, at = pvs_sender_at(frame, in);

    if (src == 0 || pvs_mac_is_group(src) || at == 0)
        return;
    struct pvs_fdb_hit hit = pvs_fdb_find(bridge->fdb, src, v->place.vid, now_s);
    bool elsewhere = hit.state != PVS_FDB_UNKNOWN && !pvs_fdb_same(hit.at, at);
    if (elsewhere && stays(bridge->fdb, &hit))
        return;
    v->fresh_needed = hit.state == PVS_FDB_UNKNOWN || elsewhere;
    v->learn = v->fresh_needed || hit.state == PVS_FDB_STALE;
}

/* May one more address be learned from a port? Not of a station that is somewhere else for good. */
static bool
sender_allowed(const struct pvs_frame *frame, const struct pvs_port_view *in, const struct pvs_bridge_view *bridge,
               uint32_t now_s, const struct pvs_verdict *v)
{
    const struct pvs_security *rules = in->security;

    if (rules == NULL || frame->injected)
        return true;
    struct pvs_fdb_hit hit = pvs_fdb_find(bridge->fdb, frame->parsed.src, v->place.vid, now_s);
    if ((uint32_t)hit.at == frame->in_ref) /* it counts as one of them for as long as it is there, grown old or not */
        return true;
    if (hit.state != PVS_FDB_UNKNOWN && stays(bridge->fdb, &hit))
        return false;
    return rules->max_macs == 0 || pvs_fdb_held(bridge->fdb, pvs_ref_index(in->ref)) < rules->max_macs;
}

/* A destination the FDB knows and whose port is still on this bridge; else the frame is flooded. */
static void
forward(const struct pvs_frame *frame, const struct pvs_tables *tables, const struct pvs_bridge_view *bridge,
        struct pvs_moment now, struct pvs_verdict *v)
{
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(frame->in_ref)];
    struct pvs_fdb_hit hit = pvs_fdb_find(bridge->fdb, frame->parsed.dst, v->place.vid, now.s);
    const struct pvs_port_view *out = &tables->port[pvs_ref_index((uint32_t)hit.at)];

    if (hit.state == PVS_FDB_UNKNOWN || out->ref != (uint32_t)hit.at || out->bridge != v->bridge) {
        if (!bridge->flood_unknown)
            drop_frame(v, PVS_DROP_no_destination);
        else if (storm_allows(in, PVS_STORM_UNKNOWN, frame, now.ns, v))
            flood(frame, tables, bridge, v);
    } else if ((uint32_t)hit.at == frame->in_ref) {
        drop_frame(v, PVS_DROP_same_port);
    } else {
        enum pvs_form form;
        enum pvs_drop drop = PVS_DROP_none;
        if (!pvs_vlan_leave(out->vlan, &v->place, &form))
            drop = PVS_DROP_vlan_filtered;
        if ((out->apart & in->apart) != 0)
            drop = (out->apart & in->apart & PVS_APART_ISOLATED) != 0 ? PVS_DROP_isolated : PVS_DROP_split_horizon;
        if (out->mirrored_to)
            drop = PVS_DROP_mirror_output;
        if (!pvs_has_link(out))
            drop = PVS_DROP_link_down;
        add_copy(frame, out, form, drop, v);
        v->known = true;
        v->vtep = (uint16_t)(hit.at >> 32);
    }
}

/* Is a tunnel's frame from one of its remotes, if it asks for that? */
static bool
takes_sender(const struct pvs_frame *frame, struct pvs_tunnel *tunnel, const struct pvs_vlan_place *place)
{
    struct pvs_segment *segment = pvs_tunnel_segment(tunnel, place->vid);

    return segment != NULL && pvs_tunnel_takes(tunnel, segment, frame->vtep);
}

/* Does the port take the frame? It is in its VLAN then. */
static bool
let_in(const struct pvs_frame *frame, const struct pvs_port_view *in, uint64_t now_ns, struct pvs_verdict *v)
{
    enum pvs_drop drop = PVS_DROP_none;

    if (in->mirrored_to) {
        drop = PVS_DROP_mirror_output;
    } else if (!pvs_vlan_enter(in->vlan, frame, &v->place)) {
        pvs_vlan_enter_tagged(frame, &v->place); /* who watches drops is to see it as it came */
        drop = PVS_DROP_vlan_filtered;
    } else if (in->tunnel != NULL && !frame->injected && !takes_sender(frame, in->tunnel, &v->place)) {
        drop = PVS_DROP_unknown_vtep;
    } else if (in->security != NULL && !frame->injected && !pvs_security_allows(in->security, frame)) {
        drop = PVS_DROP_port_security;
    } else if (in->policy != NULL && in->policy->policing.unit != 0) {
        v->policed = pvs_meter_allows(&in->policy->policing, &in->meters->policing, frame->len, now_ns);
        drop = v->policed ? PVS_DROP_none : PVS_DROP_policed;
    }
    if (drop != PVS_DROP_none)
        drop_frame(v, drop);
    return drop == PVS_DROP_none;
}

/* What becomes of a frame that came by an enabled port. */
static void
decide(const struct pvs_frame *frame, const struct pvs_tables *tables, struct pvs_moment now, bool source_known,
       struct pvs_verdict *v)
{
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(frame->in_ref)];
    const struct pvs_bridge_view *bridge = &tables->bridge[in->bridge];
    uint64_t dst = frame->parsed.dst;

    if (in->plain)
        pvs_vlan_enter_tagged(frame, &v->place);
    else if (!let_in(frame, in, now.ns, v))
        return;
    if (pvs_mac_is_link_local(dst)) {
        v->punt = bridge->punt_bpdu;
        if (dst == PVS_MAC_PAUSE || !bridge->forward_bpdu) {
            drop_frame(v, PVS_DROP_bpdu);
            return;
        }
    }
    if (!source_known) {
        if (!sender_allowed(frame, in, bridge, now.s, v)) {
            v->punt = false;
            drop_frame(v, PVS_DROP_port_security);
            return;
        }
        learning(frame, in, bridge, now.s, v);
    }
    if (!pvs_mac_is_group(dst)) {
        forward(frame, tables, bridge, now, v);
        return;
    }
    enum pvs_storm class = dst == PVS_MAC_BROADCAST ? PVS_STORM_BROADCAST : PVS_STORM_MULTICAST;
    if (storm_allows(in, class, frame, now.ns, v))
        flood(frame, tables, bridge, v);
}

void
pvs_decide(const struct pvs_frame *frame, const struct pvs_tables *tables, struct pvs_moment now, bool source_known,
           struct pvs_verdict *v)
{
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(frame->in_ref)];

    v->drop = PVS_DROP_none;
    v->learn = v->fresh_needed = v->punt = v->known = v->policed = false;
    v->storm = 0;
    v->bridge = in->bridge;
    v->n_egress = 0;
    v->vtep = 0;
    if (!in->enabled) {
        drop_frame(v, PVS_DROP_link_down);
        return;
    }
    decide(frame, tables, now, source_known, v);
    if (tables->bridge[in->bridge].n_mirrors != 0)
        pvs_mirror(frame, tables, v);
}
