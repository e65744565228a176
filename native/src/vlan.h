/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vlan.h - which VLAN a frame is in, which ports are its members, and what tags a copy carries (IEEE 802.1Q-2022, with the port
 * modes of Open vSwitch: `vlan_mode` in ovs-vswitchd.conf.db(5)).
 *
 * How it works: a frame that enters is in one VLAN. Seen from inside the bridge it carries that VLAN's tag outermost, its
 * *inner* form is what lies behind that tag. A copy leaves in one of the two forms, by the port's mode; each form is an edit of the
 * frame as it came: so many bytes cut out behind the MAC addresses, and a tag put there, or neither. The payload is not touched.
 * Ports without rules (NULL) are trunks of all VLANs: their frames leave as they came.
 *
 * More than two tags: what lies behind the second is payload. A port that takes the tag off (access, native-untagged) doesn't hand out
 * what is tagged behind it: its guest would take that for a frame of a VLAN which the port may have nothing to do with.
 *
 * Pure functions; called by pvs_decide, and by control when it builds the tables.
 */
#ifndef PVS_VLAN_H
#define PVS_VLAN_H

#include "frame.h"
#include "pvs_api.h"

enum { PVS_VIDS = 4096 };

/* A port's rules. `set`: the VLANs it carries; of a tunnel: the customer VLANs it takes. */
struct pvs_vlan {
    uint8_t mode; /* enum pvs_vlan_mode */
    uint16_t tag; /* of access, native and tunnel ports */
    uint64_t set[PVS_VIDS / 64];
};

enum pvs_form { PVS_FORM_TAGGED, PVS_FORM_INNER, PVS_FORMS };

/* A frame as seen from inside the bridge. */
struct pvs_vlan_place {
    uint16_t vid;       /* 0: in no VLAN, it came untagged to a trunk */
    uint16_t inner_vid; /* of a tag behind that one; 0: there is none, or a priority tag */
    bool inner_tag;     /* there is one */
    struct pvs_edit form[PVS_FORMS];
};

static inline bool
pvs_vlan_carries(const struct pvs_vlan *rules, uint16_t vid)
{
    return (rules->set[vid / 64] >> vid % 64 & 1) != 0;
}

/* The same two as below, for a port with rules. */
bool pvs_vlan_enter_by(const struct pvs_vlan *rules, const struct pvs_frame *frame, struct pvs_vlan_place *place);
bool pvs_vlan_leave_by(const struct pvs_vlan *rules, const struct pvs_vlan_place *place, enum pvs_form *form);

/* The same frame in another VLAN: its outermost tag, which it gets if it has none, names that one. */
void pvs_vlan_move(const struct pvs_vlan_place *from, const struct pvs_frame *frame, uint16_t vid,
                   struct pvs_vlan_place *to);

/* Is a port with rules a member of the VLAN, whatever lies behind the tag? */
bool pvs_vlan_member(const struct pvs_vlan *rules, uint16_t vid);

/* The VLAN that a frame comes into, if it is let in. */
static inline uint16_t
pvs_vlan_of(const struct pvs_vlan *rules, const struct pvs_parsed *parsed)
{
    if (rules == NULL || rules->mode == PVS_VLAN_TRUNK)
        return parsed->vid;
    /* of a mapped port it is the frame's network that counts; what is asked for here needn't be found */
    bool own = rules->mode == PVS_VLAN_ACCESS || rules->mode == PVS_VLAN_DOT1Q_TUNNEL || parsed->vid == 0;
    return own ? rules->tag : parsed->vid;
}

/* The frame is in the VLAN that its outermost tag names. */
static inline void
pvs_vlan_enter_tagged(const struct pvs_frame *frame, struct pvs_vlan_place *place)
{
    const struct pvs_parsed *p = &frame->parsed;

    *place = (struct pvs_vlan_place){
        .vid = p->vid,
        .inner_vid = p->inner_vid,
        .inner_tag = pvs_tags(p) >= 2,
        .form[PVS_FORM_INNER].cut = pvs_tags(p) != 0 ? PVS_VLAN_HLEN : 0,
    };
}

/* Where a frame is that came by a port with `rules` (NULL: a trunk of all). False: the port takes no such frame. */
static inline bool
pvs_vlan_enter(const struct pvs_vlan *rules, const struct pvs_frame *frame, struct pvs_vlan_place *place)
{
    if (rules != NULL)
        return pvs_vlan_enter_by(rules, frame, place);
    pvs_vlan_enter_tagged(frame, place);
    return true;
}

/* May a copy leave by a port with `rules` (NULL: a trunk of all), and in which form? */
static inline bool
pvs_vlan_leave(const struct pvs_vlan *rules, const struct pvs_vlan_place *place, enum pvs_form *form)
{
    *form = PVS_FORM_TAGGED;
    return rules == NULL || pvs_vlan_leave_by(rules, place, form);
}

#endif
