/* SPDX-License-Identifier: Apache-2.0 */
/* mirror.c - see mirror.h. */
#include "mirror.h"

#include "decide.h"
#include "parse.h"

/* The mirrors that want this frame because of the ports it touches. */
static uint32_t
selected(const struct pvs_port_view *in, const struct pvs_tables *tables, const struct pvs_verdict *v)
{
    uint32_t found = in->mirror_in;

    for (uint32_t i = 0; i < v->n_egress; i++) /* of a frame that is dropped there is none */
        if (v->egress[i].drop == PVS_DROP_none)
            found |= tables->port[v->egress[i].port].mirror_out;
    return found;
}

static bool
wants(const struct pvs_mirror *m, const struct pvs_verdict *v)
{
    return (v->drop == PVS_DROP_none || m->drops) && (m->set[v->place.vid / 64] >> v->place.vid % 64 & 1) != 0;
}

/* Add a copy in one of the place's forms, cut to the mirror's length. */
static void
add_copy(const struct pvs_frame *frame, const struct pvs_mirror *m, const struct pvs_vlan_place *place,
         enum pvs_form form, const struct pvs_port_view *out, uint32_t number, struct pvs_verdict *v)
{
    const struct pvs_edit *edit = &place->form[form];
    uint32_t slot = PVS_FORMS * number + (uint32_t)form, drop = PVS_DROP_none;
    uint32_t pushed = edit->push ? PVS_VLAN_HLEN : 0, len = frame->len - edit->cut + pushed;
    bool cut = m->snaplen != 0 && m->snaplen < len, fits = pvs_fits(frame, out, edit);

    v->mirrored[slot] = *edit;
    if (cut) { /* what is kept is one frame, whatever it would have been cut into */
        v->mirrored[slot].keep = m->snaplen;
        uint32_t l3_offset = frame->parsed.l3_offset - edit->cut + pushed;
        if (out->tunnel != NULL)
            fits = m->snaplen <= pvs_tunnel_room(out, l3_offset);
        else
            fits = out->mtu == 0 || m->snaplen <= l3_offset + out->mtu;
    }
    if (!fits)
        drop = PVS_DROP_mtu_exceeded;
    v->egress[v->n_egress++] = (struct pvs_egress){ .port = (uint16_t)pvs_ref_index(out->ref),
                                                    .form = (uint8_t)(PVS_FORMS + slot),
                                                    .drop = (uint8_t)drop };
}

static void
to_port(const struct pvs_frame *frame, const struct pvs_tables *tables, const struct pvs_mirror *m, uint32_t number,
        struct pvs_verdict *v)
{
    const struct pvs_port_view *out = &tables->port[pvs_ref_index(m->out_ref)];
    enum pvs_form form;

    if (pvs_has_link(out) && pvs_vlan_leave(out->vlan, &v->place, &form))
        add_copy(frame, m, &v->place, form, out, number, v);
}

static void
to_members(const struct pvs_frame *frame, const struct pvs_tables *tables, const struct pvs_mirror *m, uint32_t number,
           const struct pvs_vlan_place *place, const uint16_t *member, uint32_t n, struct pvs_verdict *v)
{
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(frame->in_ref)];

    for (uint32_t i = 0; i < n; i++) {
        const struct pvs_port_view *out = &tables->port[member[i]];
        enum pvs_form form;
        if (out != in && pvs_has_link(out) && pvs_vlan_leave(out->vlan, place, &form))
            add_copy(frame, m, place, form, out, number, v);
    }
}

static void
to_vlan(const struct pvs_frame *frame, const struct pvs_tables *tables, const struct pvs_mirror *m, uint32_t number,
        struct pvs_verdict *v)
{
    const struct pvs_bridge_view *bridge = &tables->bridge[v->bridge];
    struct pvs_vlan_place place;

    if (v->place.vid == m->vid || pvs_mac_is_link_local(frame->parsed.dst))
        return;
    pvs_vlan_move(&v->place, frame, m->vid, &place);
    to_members(frame, tables, m, number, &place, bridge->member, bridge->n_members, v);
    if (bridge->vlans != NULL) {
        const uint32_t *start = &bridge->vlans->start[m->vid];
        to_members(frame, tables, m, number, &place, bridge->vlans->member + start[0], start[1] - start[0], v);
    }
}

void
pvs_mirror(const struct pvs_frame *frame, const struct pvs_tables *tables, struct pvs_verdict *v)
{
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(frame->in_ref)];
    const struct pvs_mirror *mirror = tables->bridge[v->bridge].mirror;

    for (uint32_t left = selected(in, tables, v); left != 0; left &= left - 1) {
        uint32_t number = (uint32_t)__builtin_ctz(left);
        const struct pvs_mirror *m = &mirror[number];
        if (!wants(m, v))
            continue;
        if (m->out_ref != 0)
            to_port(frame, tables, m, number, v);
        else
            to_vlan(frame, tables, m, number, v);
    }
}
