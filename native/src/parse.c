/* SPDX-License-Identifier: Apache-2.0 */
/* parse.c - see parse.h. */
#include "parse.h"

bool
pvs_parse_tags(struct pvs_frame *frame)
{
    struct pvs_parsed *p = &frame->parsed;

    /* an S-tag and a C-tag at most; what lies deeper is payload */
    for (int tags = 0; tags < 2 && (p->ethertype == ETHERTYPE_8021Q || p->ethertype == ETHERTYPE_8021AD); tags++) {
        if (frame->head_len < p->l3_offset + PVS_VLAN_HLEN) {
            frame->malformed = true;
            return false;
        }
        *(tags == 0 ? &p->vid : &p->inner_vid) = pvs_load16(frame->head + p->l3_offset) & 0x0fff;
        p->ethertype = pvs_load16(frame->head + p->l3_offset + 2);
        p->l3_offset = (uint16_t)(p->l3_offset + PVS_VLAN_HLEN);
    }
    return true;
}
