/* SPDX-License-Identifier: Apache-2.0 */
/* decide.c - see decide.h. */
#include "decide.h"

#include "parse.h"

/*
 * This file is compiled twice: as it is, and by trace.c with notes, which tell what is found on the way. So what explains a frame can't
 * differ from what forwards it, and forwarding doesn't even ask whether someone listens.
 */
#ifndef PVS_NOTED
#define PVS_DECIDE         pvs_decide
#define NOTE(v, step, ...) ((void)0)
#endif

static void
drop_frame(struct pvs_verdict *v, enum pvs_drop reason)
{
    if (v->n_egress == 0) /* a flow's actions may have sent copies of it before */
        v->drop = (uint8_t)reason;
}

static void
add_copy(const struct pvs_frame *frame, const struct pvs_port_view *out, uint8_t form, uint16_t toward,
         enum pvs_drop drop, struct pvs_verdict *v)
{
    if (drop == PVS_DROP_none && !pvs_fits(frame, out, pvs_verdict_edit(v, form)))
        drop = PVS_DROP_mtu_exceeded;
    struct pvs_egress *copy = &v->egress[v->n_egress++];
    copy->port = (uint16_t)pvs_ref_index(out->ref);
    copy->form = form;
    copy->drop = (uint8_t)drop;
    copy->variant = v->variant;
    copy->toward = toward;
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
            add_copy(frame, out, (uint8_t)form, 0, PVS_DROP_none, v);
    }
}

static void
flood(const struct pvs_frame *frame, const struct pvs_tables *tables, const struct pvs_bridge_view *bridge,
      struct pvs_verdict *v)
{
    uint32_t before = v->n_egress;

    flood_to(frame, tables, bridge->member, bridge->n_members, v);
    if (bridge->vlans != NULL) {
        const uint32_t *start = &bridge->vlans->start[v->place.vid];
        flood_to(frame, tables, bridge->vlans->member + start[0], start[1] - start[0], v);
    }
    NOTE(v, PVS_STEP_FLOOD, v->n_egress - before, 0, 0);
    if (v->n_egress == before)
        drop_frame(v, PVS_DROP_no_destination);
}

/* The class of what is flooded; false when the port has sent too much of it. */
static bool
storm_allows(const struct pvs_port_view *in, enum pvs_storm class, const struct pvs_frame *frame, uint64_t now_ns,
             struct pvs_verdict *v)
{
    if (in->policy == NULL || in->policy->storm[class].unit == 0)
        return true;
    bool allowed =
        pvs_meter_allows(&in->policy->storm[class], &in->meters->storm[class], pvs_frame_segments(frame), now_ns);
    NOTE(v, PVS_STEP_STORM, class, allowed, 0);
    if (allowed)
        v->storm = (uint8_t)(class + 1);
    else
        drop_frame(v, PVS_DROP_storm_control);
    return allowed;
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
    NOTE(v, PVS_STEP_LEARN, elsewhere ? 3 : v->fresh_needed ? 2 : v->learn, pvs_ref_index((uint32_t)hit.at), 0);
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
    bool known = hit.state != PVS_FDB_UNKNOWN && out->ref == (uint32_t)hit.at && out->bridge == v->bridge;

    NOTE(v, PVS_STEP_FDB, known, (uint32_t)hit.at, (uint32_t)(hit.at >> 32));
    if (!known) {
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
        if (v->known == PVS_NO_COPY)
            v->known = v->n_egress;
        add_copy(frame, out, (uint8_t)form, (uint16_t)(hit.at >> 32), drop, v);
    }
}

/* Is a tunnel's frame from a remote of the network that it came by, if that is asked for? Its tags don't matter. */
static bool
takes_sender(const struct pvs_frame *frame, struct pvs_tunnel *tunnel)
{
    struct pvs_segment *segment = pvs_tunnel_segment(tunnel, frame->vid);

    return segment != NULL && pvs_tunnel_takes(tunnel, segment, frame->vtep);
}

/* Is it in a VLAN that its port takes? It is put there, or where its tag says. */
static inline __attribute__((always_inline)) bool
enter(const struct pvs_frame *frame, const struct pvs_port_view *in, struct pvs_verdict *v)
{
    bool entered = pvs_vlan_enter(in->vlan, frame, &v->place);

    if (!entered)
        pvs_vlan_enter_tagged(frame, &v->place); /* who watches drops is to see it as it came */
    v->placed = v->variant;
    NOTE(v, PVS_STEP_VLAN, v->place.vid, entered, 0);
    return entered;
}

/* Does the port take the frame? Of what flows look at its VLAN doesn't matter: they may do something else than `normal`. */
static bool
let_in(const struct pvs_frame *frame, const struct pvs_port_view *in, bool entered, uint64_t now_ns,
       struct pvs_verdict *v)
{
    enum pvs_drop drop = PVS_DROP_none;

    if (in->mirrored_to) {
        drop = PVS_DROP_mirror_output;
    } else if (!entered) {
        drop = PVS_DROP_vlan_filtered;
    } else if (in->tunnel != NULL && !frame->injected && !takes_sender(frame, in->tunnel)) {
        drop = PVS_DROP_unknown_vtep;
    } else if (in->security != NULL && !frame->injected && !pvs_security_allows(in->security, frame)) {
        drop = PVS_DROP_port_security;
    } else if (in->policy != NULL && in->policy->policing.unit != 0) {
        v->policed = pvs_meter_allows(&in->policy->policing, &in->meters->policing, frame->len, now_ns);
        drop = v->policed ? PVS_DROP_none : PVS_DROP_policed;
    }
    NOTE(v, PVS_STEP_TAKEN, drop, 0, 0);
    if (drop != PVS_DROP_none)
        drop_frame(v, drop);
    return drop == PVS_DROP_none;
}

/* What a bridge without flows does with a frame in its VLAN. */
static inline __attribute__((always_inline)) void
normal(const struct pvs_frame *frame, const struct pvs_tables *tables, struct pvs_moment now, bool source_known,
       struct pvs_verdict *v)
{
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(frame->in_ref)];
    const struct pvs_bridge_view *bridge = &tables->bridge[in->bridge];
    uint64_t dst = frame->parsed.dst;

    if (pvs_mac_is_link_local(dst)) {
        bool goes_on = dst != PVS_MAC_PAUSE && bridge->forward_bpdu;
        NOTE(v, PVS_STEP_BPDU, goes_on, 0, 0);
        if (v->variant == 0) /* what the port was sent is for us */
            v->punt = bridge->punt_bpdu;
        if (!goes_on) {
            drop_frame(v, PVS_DROP_bpdu);
            return;
        }
    }
    if (!source_known) {
        bool allowed = sender_allowed(frame, in, bridge, now.s, v);
        NOTE(v, PVS_STEP_SENDER, allowed, 0, 0);
        if (!allowed) {
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

/* ---- flows ---- */

/* How far the actions of a flow have come. */
struct acting {
    const struct pvs_frame *came, *frame; /* as it came, and as it is by now */
    const struct pvs_tables *tables;
    struct pvs_flows *flows;
    struct pvs_moment now;
    bool fresh;      /* the next edit is of another variant */
    bool entered;    /* its port takes it into its VLAN, as it came */
    bool sent;       /* something said where it goes, be it to nobody */
    bool to_network; /* tunnels carry it in this one: */
    uint32_t tun_id;
    struct pvs_verdict *v;
};

/* A tunnel's network that the frame goes by: PVS_DROP_none, its VLAN, and in which form the frame leaves. */
static enum pvs_drop
find_network(const struct acting *a, const struct pvs_port_view *out, uint16_t *vid, uint8_t *form)
{
    struct pvs_tunnel *tunnel = out->tunnel;

    *vid = a->frame->parsed.vid;
    if (!a->to_network) {
        if (tunnel->by_vid != NULL && pvs_tags(&a->frame->parsed) != 0)
            *form = PVS_FORM_CUT;
        return pvs_tunnel_segment(tunnel, *vid) == NULL ? PVS_DROP_no_destination : PVS_DROP_none;
    }
    /* by the way that packets of its endpoint find it: a tunnel may have thousands of networks */
    const struct pvs_network_entry *found = pvs_demux_find(out->demux, a->tun_id);
    if (found == NULL || found->tunnel != tunnel)
        return PVS_DROP_no_destination;
    *vid = found->segment->vid;
    return PVS_DROP_none;
}

/* A copy as the frame is by now. */
static void
send_to(struct acting *a, const struct pvs_port_view *out)
{
    const struct pvs_port_view *in = &a->tables->port[pvs_ref_index(a->came->in_ref)];
    struct pvs_verdict *v = a->v;
    enum pvs_drop drop = PVS_DROP_none;
    uint8_t form = PVS_FORM_AS_IS;
    uint16_t vid = 0;

    if (out->tunnel != NULL)
        drop = find_network(a, out, &vid, &form);
    /* as Open vSwitch does; tunnels of one mesh may be joined by who says so */
    if (out != in && (in->apart & out->apart & PVS_APART_ISOLATED) != 0)
        drop = PVS_DROP_isolated;
    if (out->mirrored_to)
        drop = PVS_DROP_mirror_output;
    if (!pvs_has_link(out))
        drop = PVS_DROP_link_down;
    add_copy(a->frame, out, form, vid, drop, v);
}

static void
send_to_all(struct acting *a)
{
    const struct pvs_port_view *in = &a->tables->port[pvs_ref_index(a->came->in_ref)];
    uint32_t before = a->v->n_egress;

    for (uint32_t i = 0; i < a->flows->n_members; i++) {
        const struct pvs_port_view *out = &a->tables->port[a->flows->member[i]];
        if (out != in && pvs_has_link(out) && (in->apart & out->apart) == 0)
            send_to(a, out);
    }
    NOTE(a->v, PVS_STEP_FLOOD, a->v->n_egress - before, 0, 0);
    (void)before;
}

/* The port's slot is named by an action; nothing goes back where it came from. */
static void
send_by_slot(struct acting *a, uint32_t slot)
{
    uint16_t port = a->flows->port[slot];

    if (port == PVS_NO_PORT || port == pvs_ref_index(a->came->in_ref))
        return;
    if (a->v->n_egress == 0)
        a->v->known = 0;
    send_to(a, &a->tables->port[port]);
}

static enum pvs_drop
edit(struct acting *a, const struct pvs_flow_action *action, bool *done)
{
    struct pvs_verdict *v = a->v;

    if (a->fresh) {
        struct pvs_frame *to = &v->frame[v->n_variants++];
        memcpy(to, a->frame, offsetof(struct pvs_frame, head) + a->frame->head_len);
        a->frame = to;
        a->fresh = false;
        v->variant = v->n_variants;
    }
    return pvs_flow_edit(&v->frame[v->variant - 1], action, done);
}

/* Where an edited frame is. Behind a tag that was taken off there may be another, which VLANs have to know of. */
static bool
enter_again(struct acting *a)
{
    struct pvs_frame *frame = &a->v->frame[a->v->variant - 1];
    bool hidden = frame->parsed.ethertype == ETHERTYPE_8021Q || frame->parsed.ethertype == ETHERTYPE_8021AD;

    if (hidden && pvs_tags(&frame->parsed) < 2 && !pvs_parse(frame)) {
        frame->malformed = false; /* it is cut short: payload, for who sends it elsewhere */
        return false;
    }
    return enter(frame, &a->tables->port[pvs_ref_index(a->came->in_ref)], a->v);
}

static enum pvs_drop
act_normal(struct acting *a)
{
    bool entered = a->v->variant == 0 ? a->entered : enter_again(a);

    a->fresh = a->sent = true;
    if (entered)
        normal(a->frame, a->tables, a->now, false, a->v);
    else
        drop_frame(a->v, PVS_DROP_vlan_filtered);
    return PVS_DROP_none;
}

static enum pvs_drop
act_meter(struct acting *a, uint32_t slot, bool *done)
{
    struct pvs_verdict *v = a->v;
    struct pvs_flow_meter *meter = a->flows->meter[slot].state;
    uint32_t units = a->flows->meter[slot].packets ? pvs_frame_segments(a->came) : a->came->len;

    *done = meter != NULL;
    if (meter == NULL)
        return PVS_DROP_none;
    if (pvs_meter_allows(&a->flows->meter[slot].rate, &meter->bucket, units, a->now.ns)) {
        v->meter[v->n_meters++] = (uint8_t)slot;
        return PVS_DROP_none;
    }
    v->over = (uint16_t)(slot + 1);
    return PVS_DROP_meter;
}

/* Not none: the frame goes no further. `*done`: it had an effect. */
static enum pvs_drop
act(struct acting *a, const struct pvs_flow_action *action, bool *done)
{
    uint32_t before = a->v->n_egress;

    *done = true;
    switch ((enum pvs_flow_action_kind)action->kind) {
    case PVS_ACT_NORMAL:
        return act_normal(a);
    case PVS_ACT_OUTPUT:
        send_by_slot(a, action->slot);
        break;
    case PVS_ACT_IN_PORT:
        send_to(a, &a->tables->port[pvs_ref_index(a->came->in_ref)]);
        break;
    case PVS_ACT_ALL:
    case PVS_ACT_FLOOD:
        send_to_all(a);
        break;
    case PVS_ACT_MIRROR:
        *done = a->flows->mirror[action->slot] != PVS_NO_MIRROR;
        if (*done)
            a->v->mirrors |= UINT32_C(1) << a->flows->mirror[action->slot];
        return PVS_DROP_none;
    case PVS_ACT_METER:
        return act_meter(a, action->slot, done);
    case PVS_ACT_SET_TUNNEL:
        a->to_network = true;
        a->tun_id = (uint32_t)action->value;
        return PVS_DROP_none;
    default:
        return edit(a, action, done);
    }
    a->fresh = a->sent = true;
    *done = a->v->n_egress != before;
    return PVS_DROP_none;
}

/* What flows say. A frame that none matches is forwarded as without them. */
static __attribute__((noinline)) void
by_flows(const struct pvs_frame *frame, const struct pvs_tables *tables, struct pvs_moment now, bool entered,
         struct pvs_verdict *v)
{
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(frame->in_ref)];
    struct pvs_flows *flows = tables->bridge[in->bridge].flows;
    struct acting a = { .came = frame,
                        .frame = frame,
                        .tables = tables,
                        .flows = flows,
                        .now = now,
                        .fresh = true,
                        .entered = entered,
                        .v = v };
    uint64_t key[PVS_FLOW_WORDS];
    enum pvs_drop drop = PVS_DROP_none;

    pvs_flow_key(frame, in->slot, in->tunnel != NULL ? frame->tun_id : 0, flows->table->depth, key);
    uint32_t probes;
    const struct pvs_flow *flow = pvs_flow_find(flows->table, key, now.worker, &probes);
    v->probes = (uint16_t)(probes < UINT16_MAX ? probes : UINT16_MAX);
    NOTE(v, PVS_STEP_FLOW, flow != NULL ? flow->counter : PVS_NO_FLOW, 0, 0);
    if (flow == NULL) {
        act_normal(&a);
        return;
    }
    v->flow = flow->counter;
    v->n_variants = v->n_meters = 0;
    v->over = 0;
    v->edit[PVS_FORM_AS_IS - PVS_FORMS] = (struct pvs_edit){ 0 };
    v->edit[PVS_FORM_CUT - PVS_FORMS] = (struct pvs_edit){ .cut = PVS_VLAN_HLEN };
    for (uint32_t i = 0; i < flow->n_actions && drop == PVS_DROP_none; i++) {
        bool done;
        drop = act(&a, &flow->action[i], &done);
        NOTE(v, PVS_STEP_ACTION, flow->action[i].kind, i, done);
    }
    if (drop == PVS_DROP_none)
        drop = a.sent ? PVS_DROP_no_destination : PVS_DROP_flow_drop;
    if (v->n_egress != 0)
        v->drop = PVS_DROP_none;
    else if (v->drop == PVS_DROP_none)
        v->drop = (uint8_t)drop;
}

/* What becomes of a frame that came by an enabled port. Flattened: `normal` is for flows as well, but this is its short way. */
static inline __attribute__((flatten)) void
decide(const struct pvs_frame *frame, const struct pvs_tables *tables, struct pvs_moment now, bool source_known,
       struct pvs_verdict *v)
{
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(frame->in_ref)];
    const struct pvs_bridge_view *bridge = &tables->bridge[in->bridge];

    if (in->plain) {
        pvs_vlan_enter_tagged(frame, &v->place);
        NOTE(v, PVS_STEP_VLAN, v->place.vid, 1, 0);
    } else {
        bool entered = enter(frame, in, v);
        if (!let_in(frame, in, entered || bridge->flows != NULL, now.ns, v))
            return;
        if (bridge->flows != NULL) {
            v->punt = entered && bridge->punt_bpdu && pvs_mac_is_link_local(frame->parsed.dst);
            by_flows(frame, tables, now, entered, v);
            return;
        }
    }
    normal(frame, tables, now, source_known, v);
}

void
PVS_DECIDE(const struct pvs_frame *frame, const struct pvs_tables *tables, struct pvs_moment now, bool source_known,
           struct pvs_verdict *v)
{
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(frame->in_ref)];

    v->drop = PVS_DROP_none;
    v->learn = v->fresh_needed = v->punt = v->policed = false;
    v->storm = v->variant = v->placed = 0;
    v->known = PVS_NO_COPY;
    v->flow = PVS_NO_FLOW;
    v->n_egress = v->mirrors = 0;
    v->bridge = in->bridge;
    v->probes = 0;
    if (!in->enabled) {
        drop_frame(v, PVS_DROP_link_down);
        return;
    }
    decide(frame, tables, now, source_known, v);
    if (tables->bridge[in->bridge].n_mirrors != 0)
        pvs_mirror(frame, tables, v);
}
