/* SPDX-License-Identifier: Apache-2.0 */
/* mirror.c - see mirror.h. */
#include "mirror.h"

#include "decide.h"
#include "parse.h"

/*
 * The mirrors that want this frame because of the ports it touches, or because a flow says so; and each one's variant of it: as it
 * came, or as it leaves by the first port that the mirror watches.
 */
static uint32_t
selected(const struct pvs_port_view *in, const struct pvs_tables *tables, const struct pvs_verdict *v, uint8_t *variant)
{
    uint32_t found = in->mirror_in | v->mirrors;

    for (uint32_t i = 0; i < v->n_egress; i++) { /* of a frame that is dropped there is none */
        if (v->egress[i].drop != PVS_DROP_none)
            continue;
        uint32_t fresh = tables->port[v->egress[i].port].mirror_out & ~found;
        found |= fresh;
        for (; fresh != 0 && v->egress[i].variant != 0; fresh &= fresh - 1)
            variant[__builtin_ctz(fresh)] = v->egress[i].variant;
    }
    return found;
}

static bool
wants(const struct pvs_mirror *m, const struct pvs_vlan_place *place, const struct pvs_verdict *v)
{
    return (v->drop == PVS_DROP_none || m->drops) && (m->set[place->vid / 64] >> place->vid % 64 & 1) != 0;
}

/* Where a variant is. */
static struct pvs_vlan_place
place_of(const struct pvs_frame *frame, const struct pvs_port_view *in, uint8_t variant, const struct pvs_verdict *v)
{
    struct pvs_vlan_place place;

    if (variant == v->placed)
        return v->place;
    if (variant != 0 || !pvs_vlan_enter(in->vlan, frame, &place))
        pvs_vlan_enter_tagged(frame, &place); /* a flow sends it as its tags say */
    return place;
}

/* Add a copy in one of the place's forms, cut to the mirror's length. */
static void
add_copy(const struct pvs_frame *frame, const struct pvs_mirror *m, const struct pvs_vlan_place *place,
         enum pvs_form form, const struct pvs_port_view *out, uint32_t number, uint8_t variant, struct pvs_verdict *v)
{
    const struct pvs_edit *edit = &place->form[form];
    uint32_t slot = PVS_FORMS * number + (uint32_t)form, drop = PVS_DROP_none;
    uint32_t pushed = edit->push ? PVS_VLAN_HLEN : 0, len = frame->len - edit->cut + pushed;
    bool cut = m->snaplen != 0 && m->snaplen < len, fits = pvs_fits(frame, out, edit);

    v->edit[slot] = *edit;
    if (cut) { /* what is kept is one frame, whatever it would have been cut into */
        v->edit[slot].keep = m->snaplen;
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
                                                    .drop = (uint8_t)drop,
                                                    .variant = variant,
                                                    .toward = place->vid };
}

/* What a mirror gets, and where that is. */
struct mirrored {
    const struct pvs_frame *frame;
    struct pvs_vlan_place place;
    uint32_t number; /* the mirror's */
    uint8_t variant;
};

static void
to_port(const struct mirrored *what, const struct pvs_tables *tables, const struct pvs_mirror *m, struct pvs_verdict *v)
{
    const struct pvs_port_view *out = &tables->port[pvs_ref_index(m->out_ref)];
    enum pvs_form form;

    if (pvs_has_link(out) && pvs_vlan_leave(out->vlan, &what->place, &form))
        add_copy(what->frame, m, &what->place, form, out, what->number, what->variant, v);
}

static void
to_members(const struct mirrored *what, const struct pvs_tables *tables, const struct pvs_mirror *m,
           const struct pvs_vlan_place *place, const uint16_t *member, uint32_t n, struct pvs_verdict *v)
{
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(what->frame->in_ref)];

    for (uint32_t i = 0; i < n; i++) {
        const struct pvs_port_view *out = &tables->port[member[i]];
        enum pvs_form form;
        if (out != in && pvs_has_link(out) && pvs_vlan_leave(out->vlan, place, &form))
            add_copy(what->frame, m, place, form, out, what->number, what->variant, v);
    }
}

static void
to_vlan(const struct mirrored *what, const struct pvs_tables *tables, const struct pvs_mirror *m, struct pvs_verdict *v)
{
    const struct pvs_bridge_view *bridge = &tables->bridge[v->bridge];
    struct pvs_vlan_place place;

    if (what->place.vid == m->vid || pvs_mac_is_link_local(what->frame->parsed.dst))
        return;
    pvs_vlan_move(&what->place, what->frame, m->vid, &place);
    to_members(what, tables, m, &place, bridge->member, bridge->n_members, v);
    if (bridge->vlans != NULL) {
        const uint32_t *start = &bridge->vlans->start[m->vid];
        to_members(what, tables, m, &place, bridge->vlans->member + start[0], start[1] - start[0], v);
    }
}

void
pvs_mirror(const struct pvs_frame *frame, const struct pvs_tables *tables, struct pvs_verdict *v)
{
    const struct pvs_port_view *in = &tables->port[pvs_ref_index(frame->in_ref)];
    const struct pvs_mirror *mirror = tables->bridge[v->bridge].mirror;
    uint8_t variant[PVS_MAX_MIRRORS] = { 0 };

    for (uint32_t left = selected(in, tables, v, variant); left != 0; left &= left - 1) {
        uint32_t number = (uint32_t)__builtin_ctz(left);
        const struct pvs_mirror *m = &mirror[number];
        struct mirrored what = { .frame = pvs_verdict_frame(v, frame, variant[number]),
                                 .number = number,
                                 .variant = variant[number] };
        what.place = place_of(what.frame, in, what.variant, v);
        if ((v->mirrors >> number & 1) == 0 && !wants(m, &what.place, v))
            continue;
        if (m->out_ref != 0)
            to_port(&what, tables, m, v);
        else
            to_vlan(&what, tables, m, v);
    }
}
