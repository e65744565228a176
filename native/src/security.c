/* SPDX-License-Identifier: Apache-2.0 */
/* security.c - see security.h. */
#include "security.h"

#include "parse.h"

enum { ETHERTYPE_ARP = 0x0806 };
enum { IPPROTO_UDP_NUMBER = 17, IPPROTO_ICMPV6_NUMBER = 58 };
enum { IPV4_HLEN = 20, IPV6_HLEN = 40, ARP_LEN = 28, DHCP_CLIENT = 68, DHCP_SERVER = 67 };
/* RFC 8200, 4; RFC 4302; RFC 7045, 4 */
enum { HOP_BY_HOP = 0, ROUTING = 43, FRAGMENT = 44, AUTHENTICATION = 51, DESTINATION = 60 };
enum { MOBILITY = 135, HOST_IDENTITY = 139, SHIM6 = 140, EXPERIMENT_1 = 253, EXPERIMENT_2 = 254 };
/* RFC 4443, RFC 4861, RFC 3810 */
enum { MLD1_REPORT = 131, MLD1_DONE = 132, ND_RS = 133, ND_RA, ND_NS, ND_NA, ND_REDIRECT, MLD2_REPORT = 143 };
enum { ND_SOURCE_MAC = 1, ND_TARGET_MAC = 2 };

static const uint8_t MAPPED[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff };

static bool
all_zero(const uint8_t *p, uint32_t len)
{
    uint8_t any = 0;

    for (uint32_t i = 0; i < len; i++)
        any |= p[i];
    return any == 0;
}

/* A network of all IPv6 has no IPv4 in it, nor have IPv4's an IPv6 address that is written as one of them. */
static bool
in_network(const struct pvs_network *n, const uint8_t *address, bool v4)
{
    uint32_t whole = n->bits / 8, rest = n->bits % 8;

    if (v4 != (n->bits >= 8 * sizeof MAPPED && memcmp(n->address, MAPPED, sizeof MAPPED) == 0))
        return false;

    return memcmp(n->address, address, whole) == 0 &&
           (rest == 0 || ((n->address[whole] ^ address[whole]) & (0xff00 >> rest & 0xff)) == 0);
}

static bool
listed_in(const struct pvs_security *rules, const uint8_t *address, bool v4)
{
    for (uint32_t i = 0; i < rules->n_networks; i++)
        if (in_network(&rules->network[i], address, v4))
            return true;
    return false;
}

static bool
listed(const struct pvs_security *rules, const uint8_t *address)
{
    return listed_in(rules, address, false);
}

static bool
listed_v4(const struct pvs_security *rules, const uint8_t *address)
{
    uint8_t mapped[16];

    memcpy(mapped, MAPPED, sizeof MAPPED);
    memcpy(mapped + sizeof MAPPED, address, 4);
    return listed_in(rules, mapped, true);
}

static bool
mac_listed(const struct pvs_security *rules, uint64_t mac)
{
    uint32_t low = 0, high = rules->n_macs;

    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (rules->mac[middle] < mac)
            low = middle + 1;
        else
            high = middle;
    }
    return low < rules->n_macs && rules->mac[low] == mac;
}

/* Where in the L3 part a checksum will be written that the sender left to be filled in; behind all of it, if it left none. */
static uint32_t
sum_at(const struct pvs_frame *frame)
{
    const struct pvs_request *r = &frame->request;

    return r->checksum ? (uint32_t)r->csum_start + r->csum_offset - frame->parsed.l3_offset : UINT32_MAX;
}

/* ---- IPv4 and ARP ---- */

/* A client without an address asks a DHCP server. */
static bool
is_dhcp_request(const uint8_t *ip, uint32_t room, const struct pvs_frame *frame)
{
    uint32_t len = (uint32_t)(ip[0] & 0xf) * 4;

    return ip[9] == IPPROTO_UDP_NUMBER && (pvs_load16(ip + 6) & 0x3fff) == 0 && len >= IPV4_HLEN && room >= len + 8 &&
           pvs_load16(ip + len) == DHCP_CLIENT && pvs_load16(ip + len + 2) == DHCP_SERVER && sum_at(frame) >= len + 4;
}

static bool
ipv4_allowed(const struct pvs_security *rules, const uint8_t *ip, uint32_t room, const struct pvs_frame *frame)
{
    if (room < IPV4_HLEN || ip[0] >> 4 != 4 || sum_at(frame) < IPV4_HLEN)
        return false;
    return listed_v4(rules, ip + 12) || (all_zero(ip + 12, 4) && is_dhcp_request(ip, room, frame));
}

/* RFC 826: Ethernet and IPv4 only, in requests and replies. Who probes for another's address denies it to its owner. */
static bool
arp_allowed(const struct pvs_security *rules, const uint8_t *arp, uint32_t room, const struct pvs_frame *frame)
{
    static const uint8_t kind[] = { 0, 1, 8, 0, 6, 4, 0 };

    if (room < ARP_LEN || memcmp(arp, kind, sizeof kind) != 0 || (arp[7] != 1 && arp[7] != 2) ||
        memcmp(arp + 8, frame->head + 6, 6) != 0 || sum_at(frame) < ARP_LEN)
        return false;
    bool probe = arp[7] == 1 && all_zero(arp + 14, 4);
    return listed_v4(rules, arp + (probe ? 24 : 14));
}

/* ---- IPv6 and neighbour discovery ---- */

/*
 * Where the upper layer begins; its number in *next, and in *fragment whether there is a fragment header. 0: it can't be
 * located, within what the header says to be its payload: what lies behind that is not looked at by the receiver. Of later
 * fragments nothing is to be seen: without a first one, which has all headers (RFC 8200, 4.5), they are never put together.
 */
static uint32_t
upper_layer(const uint8_t *ip, uint32_t room, uint8_t *next, bool *fragment)
{
    uint32_t at = IPV6_HLEN, end = IPV6_HLEN + pvs_load16(ip + 4);

    if (room > end)
        room = end;
    *next = ip[6];
    *fragment = false;
    for (int headers = 0; headers < 8; headers++) {
        uint32_t len;
        switch (*next) {
        case HOP_BY_HOP:
        case ROUTING:
        case DESTINATION:
        case MOBILITY:
        case HOST_IDENTITY:
        case SHIM6:
            if (room < at + 8)
                return 0;
            len = 8 * (uint32_t)ip[at + 1] + 8;
            break;
        case AUTHENTICATION:
            if (room < at + 8)
                return 0;
            len = 4 * (uint32_t)ip[at + 1] + 8;
            break;
        case FRAGMENT:
            if (room < at + 8)
                return 0;
            if ((pvs_load16(ip + at + 2) & 0xfff8) != 0)
                return at + 8; /* a later one: *next says no more than that */
            *fragment = true;
            len = 8;
            break;
        case EXPERIMENT_1:
        case EXPERIMENT_2:
            return 0;
        default:
            return at;
        }
        *next = ip[at];
        at += len;
        if (room < at)
            return 0;
    }
    return 0;
}

/* Every option that tells a MAC address tells the frame's own. `from` is where options begin, `end` where the message does. */
static bool
options_honest(const uint8_t *from, const uint8_t *end, const uint8_t *source)
{
    while (from < end) {
        if (end - from < 8 || from[1] == 0 || end - from < 8 * from[1])
            return false;
        if ((from[0] == ND_SOURCE_MAC || from[0] == ND_TARGET_MAC) &&
            (from[1] != 1 || memcmp(from + 2, source, 6) != 0))
            return false;
        from += 8 * from[1];
    }
    return true;
}

/* The message is whole and within the head, `len` bytes from `icmp` on. */
static bool
icmpv6_allowed(const struct pvs_security *rules, const uint8_t *icmp, uint32_t len, bool nobody, const uint8_t *source)
{
    switch (icmp[0]) {
    case ND_RS:
        return len >= 8 && options_honest(icmp + 8, icmp + len, source);
    case ND_NS:
        /* from :: it asks whether anybody has the address that it wants */
        return len >= 24 && (!nobody || listed(rules, icmp + 8)) && options_honest(icmp + 24, icmp + len, source);
    case ND_NA:
        return len >= 24 && listed(rules, icmp + 8) && options_honest(icmp + 24, icmp + len, source);
    case ND_RA:
    case ND_REDIRECT:
        return false;
    case MLD1_REPORT:
    case MLD1_DONE:
    case MLD2_REPORT:
        return true;
    default:
        return !nobody;
    }
}

static bool
ipv6_allowed(const struct pvs_security *rules, const uint8_t *ip, uint32_t room, const struct pvs_frame *frame)
{
    uint8_t next;
    bool fragment;

    if (room < IPV6_HLEN || ip[0] >> 4 != 6)
        return false;
    bool nobody = all_zero(ip + 8, 16);
    if (!nobody && !listed(rules, ip + 8))
        return false;
    uint32_t at = upper_layer(ip, room, &next, &fragment);
    if (at == 0)
        return false;
    if (next != IPPROTO_ICMPV6_NUMBER)
        return !nobody && sum_at(frame) >= at;
    uint32_t end = IPV6_HLEN + pvs_load16(ip + 4);
    if (end <= at + 4 || room < at + 4 || (sum_at(frame) < end && sum_at(frame) != at + 2))
        return false;
    bool discovery = ip[at] >= ND_RS && ip[at] <= ND_REDIRECT;
    if (discovery && (fragment || room < end)) /* RFC 6980, 5; an option may lie beyond the head */
        return false;
    return icmpv6_allowed(rules, ip + at, end - at, nobody, frame->head + 6);
}

bool
pvs_security_allows(const struct pvs_security *rules, const struct pvs_frame *frame)
{
    const struct pvs_parsed *p = &frame->parsed;

    if (p->src == 0 || pvs_mac_is_group(p->src) || (rules->n_macs != 0 && !mac_listed(rules, p->src)))
        return false;
    if (rules->n_networks == 0)
        return true;
    const uint8_t *l3 = frame->head + p->l3_offset;
    uint32_t room = frame->head_len - p->l3_offset;
    switch (p->ethertype) {
    case ETHERTYPE_IPV4:
        return ipv4_allowed(rules, l3, room, frame);
    case ETHERTYPE_ARP:
        return arp_allowed(rules, l3, room, frame);
    case ETHERTYPE_IPV6:
        return ipv6_allowed(rules, l3, room, frame);
    default:
        return false;
    }
}
