/* SPDX-License-Identifier: Apache-2.0 */
/* encap.c - see encap.h. */
#include "encap.h"

#include "checksum.h"
#include "parse.h"

enum { ETHERTYPE_TEB = 0x6558 }; /* Transparent Ethernet Bridging */
enum { VXLAN_HLEN = 8, VXLAN_I = 0x08, VXLAN_VNI = 4 };
enum { GENEVE_HLEN = 8, GENEVE_VERSION = 0xc0, GENEVE_OPTIONS = 0x3f, GENEVE_CONTROL = 0x80, GENEVE_CRITICAL = 0x40 };
enum { GENEVE_TYPE = 2, GENEVE_VNI = 4 };
enum { GRE_HLEN = 4, GRE_TYPE = 2, GRE_CHECKSUM = 0x8000, GRE_KEY = 0x2000, GRE_SEQUENCE = 0x1000 };
/* RFC 2784, 2.3: a receiver discards what has bits 1 to 5 set, K and S of RFC 2890 aside, or another version */
enum { GRE_REFUSED = 0x4000 | 0x0c00 | 0x0007 };
enum { ECN = 3, NOT_ECT = 0, ECT_1 = 1, CE = 3 };
enum { IPV4_HLEN = 20, IPV4_TOS = 1, IPV4_CSUM = 10, IPV6_HLEN = 40 };

static uint32_t
load16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static uint32_t
load24(const uint8_t *p)
{
    return load16(p) << 8 | p[2];
}

static void
store32(uint8_t *p, uint32_t value)
{
    value = __builtin_bswap32(value);
    memcpy(p, &value, sizeof value);
}

/* ---- headers ---- */

/* RFC 7348, 5: I must be set; all other bits are ignored on receipt. */
static bool
vxlan_read(const uint8_t *p, uint32_t len, struct pvs_outer *outer)
{
    if (len < VXLAN_HLEN || (p[0] & VXLAN_I) == 0)
        return false;
    *outer = (struct pvs_outer){ .vni = load24(p + VXLAN_VNI), .len = VXLAN_HLEN };
    return true;
}

/* RFC 8926, 3.4: no option is known here, so those that aren't critical are skipped; control packets are for endpoints that have asked. */
static bool
geneve_read(const uint8_t *p, uint32_t len, struct pvs_outer *outer)
{
    if (len < GENEVE_HLEN || (p[0] & GENEVE_VERSION) != 0 || (p[1] & (GENEVE_CONTROL | GENEVE_CRITICAL)) != 0 ||
        load16(p + GENEVE_TYPE) != ETHERTYPE_TEB)
        return false;
    *outer = (struct pvs_outer){ .vni = load24(p + GENEVE_VNI), .len = GENEVE_HLEN + (p[0] & GENEVE_OPTIONS) * 4U };
    return outer->len <= len;
}

static bool
gre_sum_is_right(const uint8_t *p, uint32_t len)
{
    struct pvs_sum sum = { 0 };

    pvs_sum_add(&sum, p, len);
    return pvs_sum_fold(&sum) == 0xffff;
}

/* RFC 2784, 2; RFC 2890, 2. What is behind the first four bytes comes in this order: checksum, key, sequence number. */
static bool
gre_read(const uint8_t *p, uint32_t len, struct pvs_outer *outer)
{
    uint32_t flags = len < GRE_HLEN ? GRE_REFUSED : load16(p);
    uint32_t at = GRE_HLEN + ((flags & GRE_CHECKSUM) != 0 ? 4 : 0);
    uint32_t end = at + ((flags & GRE_KEY) != 0 ? 4 : 0) + ((flags & GRE_SEQUENCE) != 0 ? 4 : 0);

    if ((flags & GRE_REFUSED) != 0 || len < end || load16(p + GRE_TYPE) != ETHERTYPE_TEB ||
        ((flags & GRE_CHECKSUM) != 0 && !gre_sum_is_right(p, len)))
        return false;
    *outer = (struct pvs_outer){ .vni = PVS_NO_KEY, .len = end };
    if ((flags & GRE_KEY) != 0)
        outer->vni = load16(p + at) << 16 | load16(p + at + 2);
    return true;
}

bool
pvs_outer_read(enum pvs_tunnel_kind kind, const uint8_t *p, uint32_t len, struct pvs_outer *outer)
{
    switch (kind) {
    case PVS_VXLAN:
        return vxlan_read(p, len, outer);
    case PVS_GENEVE:
        return geneve_read(p, len, outer);
    case PVS_GRE:
        return gre_read(p, len, outer);
    }
    return false;
}

uint32_t
pvs_outer_write(enum pvs_tunnel_kind kind, uint64_t vni, uint8_t *p)
{
    switch (kind) {
    case PVS_VXLAN:
        store32(p, (uint32_t)VXLAN_I << 24);
        store32(p + VXLAN_VNI, (uint32_t)vni << 8);
        return VXLAN_HLEN;
    case PVS_GENEVE:
        store32(p, ETHERTYPE_TEB);
        store32(p + GENEVE_VNI, (uint32_t)vni << 8);
        return GENEVE_HLEN;
    case PVS_GRE:
        store32(p, (vni == PVS_NO_KEY ? 0 : (uint32_t)GRE_KEY << 16) | ETHERTYPE_TEB);
        if (vni == PVS_NO_KEY)
            return GRE_HLEN;
        store32(p + GRE_HLEN, (uint32_t)vni);
        return GRE_HLEN + 4;
    }
    return 0;
}

/* ---- DSCP and ECN ---- */

static bool
is_ip(const struct pvs_frame *frame, uint16_t ethertype, uint32_t header_len)
{
    return frame->parsed.ethertype == ethertype && frame->head_len >= frame->parsed.l3_offset + header_len;
}

/* The traffic class of IPv6 lies across two bytes (RFC 8200, 3). */
static uint8_t
traffic_class(const uint8_t *ip)
{
    return (uint8_t)(ip[0] << 4 | ip[1] >> 4);
}

uint8_t
pvs_outer_tos(const struct pvs_frame *frame, int32_t tos)
{
    const uint8_t *ip = frame->head + frame->parsed.l3_offset;
    uint8_t inner = 0;

    if (is_ip(frame, ETHERTYPE_IPV4, IPV4_HLEN))
        inner = ip[IPV4_TOS];
    else if (is_ip(frame, ETHERTYPE_IPV6, IPV6_HLEN))
        inner = traffic_class(ip);
    return tos < 0 ? inner : (uint8_t)((tos & ~ECN) | (inner & ECN));
}

/* A byte of the IPv4 header at an odd place changes: its checksum with it (RFC 1624, eqn. 3). */
static void
ipv4_set_tos(uint8_t *ip, uint8_t tos)
{
    uint32_t sum = (~load16(ip + IPV4_CSUM) & 0xffff) + (~(uint32_t)ip[IPV4_TOS] & 0xffff) + tos;

    sum = (sum & 0xffff) + (sum >> 16);
    sum = ~((sum & 0xffff) + (sum >> 16));
    ip[IPV4_TOS] = tos;
    ip[IPV4_CSUM] = (uint8_t)(sum >> 8);
    ip[IPV4_CSUM + 1] = (uint8_t)sum;
}

bool
pvs_ecn_inherit(struct pvs_frame *frame, uint8_t outer_tos)
{
    uint8_t *ip = frame->head + frame->parsed.l3_offset, outer = outer_tos & ECN;
    bool v4 = is_ip(frame, ETHERTYPE_IPV4, IPV4_HLEN), v6 = is_ip(frame, ETHERTYPE_IPV6, IPV6_HLEN);

    if (outer != CE && outer != ECT_1)
        return true;
    if (!v4 && !v6)
        return true; /* who can't be told of congestion loses nothing: there is no IP header to judge by */
    uint8_t tos = v4 ? ip[IPV4_TOS] : traffic_class(ip), inner = tos & ECN;
    if (inner == NOT_ECT)
        return outer != CE;
    uint8_t marked = outer == CE || inner == CE ? CE : ECT_1; /* RFC 6040, figure 4 */
    if (marked == inner)
        return true;
    if (v4)
        ipv4_set_tos(ip, (uint8_t)((tos & ~ECN) | marked));
    else
        ip[1] = (uint8_t)((ip[1] & 0xcf) | marked << 4);
    return true;
}
