/* SPDX-License-Identifier: Apache-2.0 */
/* parse.c - see parse.h. */
#include "parse.h"

static uint16_t
be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

bool
pvs_parse(struct pvs_frame *frame)
{
    struct pvs_parsed *p = &frame->parsed;
    uint16_t at = PVS_ETH_HLEN;

    if (frame->len < PVS_ETH_HLEN || frame->len > PVS_MAX_FRAME) {
        frame->malformed = true;
        return false;
    }
    p->dst = pvs_mac_load(frame->head);
    p->src = pvs_mac_load(frame->head + 6);
    p->ethertype = be16(frame->head + 12);
    /* an S-tag and a C-tag at most; what lies deeper is payload */
    for (int tags = 0; tags < 2 && (p->ethertype == ETHERTYPE_8021Q || p->ethertype == ETHERTYPE_8021AD); tags++) {
        if (frame->head_len < at + PVS_VLAN_HLEN)
            break;
        p->ethertype = be16(frame->head + at + 2);
        at = (uint16_t)(at + PVS_VLAN_HLEN);
    }
    p->l3_offset = at;
    return true;
}
