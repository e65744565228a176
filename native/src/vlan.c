/* SPDX-License-Identifier: Apache-2.0 */
/* vlan.c - see vlan.h. */
#include "vlan.h"

#include "parse.h"

enum { VID_MASK = 0x0fff };

/* The outermost tag that the frame came with, which it has. */
static uint32_t
outer_tag(const struct pvs_frame *frame)
{
    uint32_t tag;

    memcpy(&tag, frame->head + PVS_TAG_OFFSET, sizeof tag);
    return __builtin_bswap32(tag);
}

/* The frame belongs to the port's own VLAN: untagged, or with a priority tag, whose PCP, DEI and TPID are kept. */
static void
enter_own(uint16_t vid, const struct pvs_frame *frame, struct pvs_vlan_place *place)
{
    uint8_t cut = pvs_tags(&frame->parsed) != 0 ? PVS_VLAN_HLEN : 0;
    uint32_t tag = cut != 0 ? outer_tag(frame) & ~(uint32_t)VID_MASK : (uint32_t)ETHERTYPE_8021Q << 16;

    pvs_vlan_enter_tagged(frame, place);
    place->vid = vid;
    place->form[PVS_FORM_TAGGED] = (struct pvs_edit){ .cut = cut, .push = true, .tag = tag | vid };
}

/* It is a customer's, tagged or not, and gets the port's S-tag. */
static void
enter_tunnel(uint16_t vid, const struct pvs_frame *frame, struct pvs_vlan_place *place)
{
    *place = (struct pvs_vlan_place){
        .vid = vid,
        .inner_vid = frame->parsed.vid,
        .inner_tag = pvs_tags(&frame->parsed) != 0,
        .form[PVS_FORM_TAGGED] = { .push = true, .tag = (uint32_t)ETHERTYPE_8021AD << 16 | vid },
    };
}

bool
pvs_vlan_enter_by(const struct pvs_vlan *rules, const struct pvs_frame *frame, struct pvs_vlan_place *place)
{
    const struct pvs_parsed *p = &frame->parsed;

    switch ((enum pvs_vlan_mode)rules->mode) {
    case PVS_VLAN_ACCESS:
        enter_own(rules->tag, frame, place);
        return p->vid == 0 && pvs_tags(p) < 2;
    case PVS_VLAN_NATIVE_TAGGED:
    case PVS_VLAN_NATIVE_UNTAGGED:
        if (p->vid == 0) {
            enter_own(rules->tag, frame, place);
            return true;
        }
        break;
    case PVS_VLAN_DOT1Q_TUNNEL:
        enter_tunnel(rules->tag, frame, place);
        return pvs_vlan_carries(rules, p->vid);
    case PVS_VLAN_MAPPED:
        enter_own(frame->vid, frame, place);
        return p->vid == 0 && pvs_tags(p) < 2 && frame->vid < PVS_VIDS && pvs_vlan_carries(rules, frame->vid);
    case PVS_VLAN_TRUNK:
        break;
    }
    pvs_vlan_enter_tagged(frame, place);
    return pvs_vlan_carries(rules, p->vid);
}

void
pvs_vlan_move(const struct pvs_vlan_place *from, const struct pvs_frame *frame, uint16_t vid, struct pvs_vlan_place *to)
{
    struct pvs_edit *tagged = &to->form[PVS_FORM_TAGGED];

    *to = *from;
    to->vid = vid;
    if (!tagged->push) { /* it leaves with the tag it came with, or without any */
        tagged->cut = to->form[PVS_FORM_INNER].cut;
        tagged->push = true;
        tagged->tag = tagged->cut != 0 ? outer_tag(frame) : (uint32_t)ETHERTYPE_8021Q << 16;
    }
    tagged->tag = (tagged->tag & ~(uint32_t)VID_MASK) | vid;
}

bool
pvs_vlan_member(const struct pvs_vlan *rules, uint16_t vid)
{
    if (rules->mode == PVS_VLAN_ACCESS || rules->mode == PVS_VLAN_DOT1Q_TUNNEL)
        return vid == rules->tag;
    return pvs_vlan_carries(rules, vid);
}

bool
pvs_vlan_leave_by(const struct pvs_vlan *rules, const struct pvs_vlan_place *place, enum pvs_form *form)
{
    bool own = place->vid == rules->tag;

    *form = PVS_FORM_TAGGED;
    if (!pvs_vlan_member(rules, place->vid))
        return false;
    if (rules->mode == PVS_VLAN_DOT1Q_TUNNEL) {
        *form = PVS_FORM_INNER;
        return pvs_vlan_carries(rules, place->inner_vid);
    }
    if (rules->mode == PVS_VLAN_ACCESS || rules->mode == PVS_VLAN_MAPPED ||
        (rules->mode == PVS_VLAN_NATIVE_UNTAGGED && own)) {
        *form = PVS_FORM_INNER;
        return !place->inner_tag;
    }
    return true;
}
