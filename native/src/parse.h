/* SPDX-License-Identifier: Apache-2.0 */
/*
 * parse.h - where things are in a frame's private head (IEEE 802.3, 802.1Q).
 *
 * A pure function over at most PVS_HEAD bytes; called once for each frame, by the worker or by whoever explains a frame.
 */
#ifndef PVS_PARSE_H
#define PVS_PARSE_H

#include "frame.h"

enum { ETHERTYPE_IPV4 = 0x0800, ETHERTYPE_8021Q = 0x8100, ETHERTYPE_IPV6 = 0x86dd, ETHERTYPE_8021AD = 0x88a8 };

/* Fill frame->parsed. False (and `malformed` set) when there isn't even an Ethernet header. */
bool pvs_parse(struct pvs_frame *frame);

static inline uint64_t
pvs_mac_load(const uint8_t *p)
{
    uint64_t mac = 0;
    for (int i = 0; i < 6; i++)
        mac = mac << 8 | p[i];
    return mac;
}

static inline void
pvs_mac_store(uint8_t *p, uint64_t mac)
{
    for (int i = 5; i >= 0; i--, mac >>= 8)
        p[i] = (uint8_t)mac;
}

/* IEEE 802.3, 3.2.3: the group bit is the lowest of the first byte. */
static inline bool
pvs_mac_is_group(uint64_t mac)
{
    return (mac >> 40 & 1) != 0;
}

/* IEEE 802.1Q, table 8-1: 01-80-C2-00-00-00 to -0F, never relayed by an 802.1Q bridge. */
static inline bool
pvs_mac_is_link_local(uint64_t mac)
{
    return mac >> 4 == 0x0180c2000000 >> 4;
}

#define PVS_MAC_PAUSE     0x0180c2000001
#define PVS_MAC_BROADCAST 0xffffffffffff

#endif
