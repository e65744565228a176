/* SPDX-License-Identifier: Apache-2.0 */
/* effects.c - see effects.h. */
#include "effects.h"

#include "parse.h"

void
pvs_learn(struct pvs_worker *w, const struct pvs_frame *frame, const struct pvs_verdict *v)
{
    uint32_t in = pvs_ref_index(frame->in_ref), old_ref = 0;

    if (v->fresh_needed && !pvs_allow(&w->learning[in], w->now_s, PVS_LEARN_PER_SECOND)) {
        pvs_count(&w->perf.learn_skipped, 1);
        return;
    }
    struct pvs_fdb *fdb = w->tables->bridge[v->bridge].fdb;
    uint64_t src = pvs_verdict_frame(v, frame, v->placed)->parsed.src;
    const struct pvs_security *rules = frame->injected ? NULL : w->tables->port[in].security;
    uint32_t most = rules != NULL ? rules->max_macs : 0; /* looked at again: other workers learn as well */
    uint64_t at = pvs_sender_at(frame, &w->tables->port[in]);
    switch (pvs_fdb_learn(fdb, src, v->place.vid, at, most, w->now_s, &old_ref)) {
    case PVS_LEARN_NOTHING:
        return;
    case PVS_LEARN_BUSY:
        pvs_count(&w->perf.learn_skipped, 1);
        return;
    case PVS_LEARN_NEW:
        old_ref = 0;
        break;
    case PVS_LEARN_MOVED:
        break;
    }
    struct pvs_event event = { .time_ns = w->now_ns,
                               .kind = old_ref != 0 ? PVS_EV_MOVED : PVS_EV_LEARNED,
                               .port_ref = frame->in_ref,
                               .detail = old_ref,
                               .vtep = (uint16_t)(at >> 32),
                               .vid = v->place.vid };
    pvs_mac_store(event.mac, src);
    pvs_event(w, &event);
}

void
pvs_charge(struct pvs_worker *w, const struct pvs_frame *frame, const struct pvs_verdict *v)
{
    const struct pvs_port_view *in = &w->tables->port[pvs_ref_index(frame->in_ref)];
    const struct pvs_policy *policy = in->policy;

    if (v->policed)
        pvs_meter_charge(&policy->policing, &in->meters->policing, frame->len, w->now_ns);
    if (v->storm != 0)
        pvs_meter_charge(&policy->storm[v->storm - 1], &in->meters->storm[v->storm - 1], pvs_frame_segments(frame),
                         w->now_ns);
}

/* What a look at a hash table of flows costs of the turn's budget: with many masks, frames that no cache knows are dear. */
enum { PROBE_COST = 64 };

__attribute__((noinline)) void
pvs_count_flow(struct pvs_worker *w, const struct pvs_frame *frame, const struct pvs_verdict *v)
{
    const struct pvs_flows *flows = w->tables->bridge[v->bridge].flows;

    w->spent += v->probes * (uint64_t)PROBE_COST;
    if (v->flow == PVS_NO_FLOW)
        return;
    pvs_flow_count(w->flow_counters, w->index, v->flow, 1, frame->len, w->now_ns);
    for (uint32_t i = 0; i < v->n_meters; i++) {
        struct pvs_flow_meter *meter = flows->meter[v->meter[i]].state;
        uint32_t units = flows->meter[v->meter[i]].packets ? pvs_frame_segments(frame) : frame->len;
        pvs_meter_charge(&flows->meter[v->meter[i]].rate, &meter->bucket, units, w->now_ns);
        pvs_count(&meter->of[w->index].packets, 1);
        pvs_count(&meter->of[w->index].bytes, frame->len);
    }
    if (v->over != 0) {
        struct pvs_flow_meter *meter = flows->meter[v->over - 1].state;
        pvs_count(&meter->of[w->index].packets, 1);
        pvs_count(&meter->of[w->index].bytes, frame->len);
        pvs_count(&meter->of[w->index].dropped_packets, 1);
        pvs_count(&meter->of[w->index].dropped_bytes, frame->len);
    }
}

__attribute__((noinline)) void
pvs_drop_copy(struct pvs_worker *w, const struct pvs_frame *frame, const struct pvs_egress *egress)
{
    const struct pvs_port_view *out = &w->tables->port[egress->port];
    const struct pvs_frame *copy =
        out->capture_out == 0 ? frame : pvs_copy_of(w, (uint32_t)(frame - w->source), egress);

    pvs_drop_tx(w, out->port, copy, (enum pvs_drop)egress->drop, 1);
    if (egress->drop != PVS_DROP_mtu_exceeded || out->tunnel == NULL || !out->tunnel->too_big ||
        (uint32_t)(egress - w->verdict.egress) != w->verdict.known)
        return;
    const struct pvs_edit *edit = pvs_verdict_edit(&w->verdict, egress->form);
    const struct pvs_frame *leaves = pvs_verdict_frame(&w->verdict, frame, egress->variant);
    uint32_t l3_offset = (uint32_t)(leaves->parsed.l3_offset + (edit->push ? PVS_VLAN_HLEN : 0) - edit->cut);
    uint32_t room = pvs_tunnel_room(out, l3_offset);
    if (room > l3_offset)
        pvs_tell_too_big(w, frame, room - l3_offset);
}
