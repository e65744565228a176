/* SPDX-License-Identifier: Apache-2.0 */
/*
 * parse.h - where things are in a frame's private head (IEEE 802.3, 802.1Q).
 *
 * A pure function over at most PVS_HEAD bytes; called once for each frame, by the worker or by whoever explains a frame.
 */
#ifndef PVS_PARSE_H
#define PVS_PARSE_H

#include <stddef.h>

#include "frame.h"

enum { ETHERTYPE_IPV4 = 0x0800, ETHERTYPE_8021Q = 0x8100, ETHERTYPE_IPV6 = 0x86dd, ETHERTYPE_8021AD = 0x88a8 };

#define PVS_MAC_PAUSE     0x0180c2000001
#define PVS_MAC_BROADCAST 0xffffffffffff

/* Numbers as headers have them. */
static inline uint16_t
pvs_load16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return __builtin_bswap16(v);
}

static inline uint32_t
pvs_load32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return __builtin_bswap32(v);
}

static inline uint64_t
pvs_load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return __builtin_bswap64(v);
}

static inline void
pvs_store16(uint8_t *p, uint16_t v)
{
    v = __builtin_bswap16(v);
    memcpy(p, &v, sizeof v);
}

static inline uint64_t
pvs_mac_load(const uint8_t *p)
{
    uint32_t high;
    uint16_t low;
    memcpy(&high, p, sizeof high);
    memcpy(&low, p + sizeof high, sizeof low);
    return (uint64_t)__builtin_bswap32(high) << 16 | __builtin_bswap16(low);
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

/* An address in a VLAN, as one number. */
static inline uint64_t
pvs_key(uint64_t mac, uint16_t vid)
{
    return mac | (uint64_t)vid << 48;
}

/* The rest of pvs_parse: there is a tag. False (and `malformed` set) when one is cut short. */
bool pvs_parse_tags(struct pvs_frame *frame);

/* Fill frame->parsed. False (and `malformed` set) when there isn't even an Ethernet header. */
static inline bool
pvs_parse(struct pvs_frame *frame)
{
    struct pvs_parsed *p = &frame->parsed;
    uint64_t first, second;
    uint16_t type;

    if (frame->len < PVS_ETH_HLEN || frame->len > PVS_MAX_FRAME) {
        frame->malformed = true;
        return false;
    }
    /* both addresses in two loads of eight bytes */
    memcpy(&first, frame->head, sizeof first);
    memcpy(&second, frame->head + 4, sizeof second);
    memcpy(&type, frame->head + 12, sizeof type);
    p->dst = __builtin_bswap64(first) >> 16;
    p->src = __builtin_bswap64(second) & PVS_MAC_BROADCAST;
    type = __builtin_bswap16(type);
    /* in one store: ethertype, l3_offset, no VIDs */
    uint64_t rest = type | (uint64_t)PVS_ETH_HLEN << 16;
    _Static_assert(sizeof *p - offsetof(struct pvs_parsed, ethertype) == sizeof rest, "and nothing else");
    memcpy(&p->ethertype, &rest, sizeof rest);
    if (type == ETHERTYPE_8021Q || type == ETHERTYPE_8021AD)
        return pvs_parse_tags(frame);
    return true;
}

#endif
