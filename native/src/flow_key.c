/* SPDX-License-Identifier: Apache-2.0 */
/* flow_key.c - see flow_key.h. */
#include "flow_key.h"

#include "parse.h"

/* What is pulled for flows: it leaves room for the tags that they may push. */
enum { FLOW_HEAD = PVS_HEAD_MAX - 3 * PVS_VLAN_HLEN };
enum { IPV4_HLEN = 20, IPV6_HLEN = 40, ARP_LEN = 28, LLC_SNAP = 8 };
/* Without options, and with TCP's header. */
enum { USUAL_IPV4 = IPV4_HLEN + 20, USUAL_IPV6 = IPV6_HLEN + 20 };

/*
 * How long an IP packet is that says so of itself; 0 when the frame is shorter. A frame that is to be cut isn't believed: its segments
 * are as long as they are (offload.c), so what flows look at is in them whatever it says.
 */
static uint32_t
packet_len(const struct pvs_frame *frame, uint32_t l3, uint32_t said)
{
    uint32_t there = frame->len - l3;

    if (frame->request.gso_type != VIRTIO_NET_HDR_GSO_NONE)
        return there;
    return said > there ? 0 : said;
}

/* What a packet's length leaves of the head. */
static uint16_t
packet_end(const struct pvs_frame *frame, uint32_t l3, uint32_t packet)
{
    return (uint16_t)(l3 + packet < frame->head_len ? l3 + packet : frame->head_len);
}

static void
find_ipv4(const struct pvs_frame *frame, struct pvs_layers *l, uint32_t at)
{
    const uint8_t *ip = frame->head + at;

    if (at + IPV4_HLEN > frame->head_len)
        return;
    uint32_t header = (ip[0] & 15U) * 4, packet = packet_len(frame, at, pvs_load16(ip + 2)),
             fragment = pvs_load16(ip + 6);
    uint16_t end = packet_end(frame, at, packet);
    if (header < IPV4_HLEN || header > packet || at + header > end)
        return;
    l->l3 = (uint16_t)at;
    l->packet = packet;
    l->end = end;
    l->tos = ip[1];
    l->ttl = ip[8];
    l->proto = ip[9];
    if ((fragment & 0x1fff) != 0)
        l->frag = PVS_FRAG_ANY | PVS_FRAG_LATER;
    else if ((fragment & 0x2000) != 0)
        l->frag = PVS_FRAG_ANY;
    if ((l->frag & PVS_FRAG_LATER) == 0)
        l->l4 = (uint16_t)(at + header);
}

static bool
is_extension(uint8_t proto)
{
    return proto == PVS_PROTO_HOPOPTS || proto == PVS_PROTO_ROUTING || proto == PVS_PROTO_DSTOPTS ||
           proto == PVS_PROTO_AH || proto == PVS_PROTO_FRAGMENT;
}

/* Skip the extension headers, each at least eight bytes: false when one is cut short. A later fragment ends them. */
static bool
skip_extensions(const struct pvs_frame *frame, struct pvs_layers *l, uint32_t *at)
{
    while (is_extension(l->proto)) {
        const uint8_t *p = frame->head + *at;
        if (*at + 8 > l->end)
            return false;
        uint32_t len = l->proto == PVS_PROTO_FRAGMENT ? 8
                       : l->proto == PVS_PROTO_AH     ? (p[1] + 2U) * 4
                                                      : (p[1] + 1U) * 8;
        uint32_t fragment = l->proto == PVS_PROTO_FRAGMENT ? pvs_load16(p + 2) & 0xfff9U : 0;
        if (*at + len > l->end)
            return false;
        if (fragment != 0)
            l->frag = PVS_FRAG_ANY;
        if ((fragment & 0xfff8) != 0) {
            l->frag |= PVS_FRAG_LATER;
            l->proto = PVS_PROTO_FRAGMENT;
            return true;
        }
        l->proto = p[0];
        *at += len;
    }
    return true;
}

static void
find_ipv6(const struct pvs_frame *frame, struct pvs_layers *l, uint32_t at)
{
    const uint8_t *ip = frame->head + at;

    if (at + IPV6_HLEN > frame->head_len)
        return;
    uint32_t said = pvs_load16(ip + 4);
    /* without a length Linux takes all there is, if only a hop-by-hop header follows: it might have a jumbogram's (RFC 2675) */
    bool jumbo = said == 0 && ip[6] == PVS_PROTO_HOPOPTS;
    uint32_t packet = packet_len(frame, at, jumbo ? frame->len - at : said + IPV6_HLEN);
    if (packet == 0)
        return;
    l->l3 = (uint16_t)at;
    l->packet = packet;
    l->end = packet_end(frame, at, packet);
    l->proto = ip[6];
    uint32_t l4 = at + IPV6_HLEN;
    if (!skip_extensions(frame, l, &l4)) {
        l->proto = l->frag = 0;
        return;
    }
    l->tos = (uint8_t)(pvs_load16(ip) >> 4);
    l->ttl = ip[7];
    if ((l->frag & PVS_FRAG_LATER) == 0)
        l->l4 = (uint16_t)l4;
}

/* The ethertype, which a frame of IEEE 802.2 with SNAP has behind that; `at` moves on to what it names. */
static uint16_t
type_of(const struct pvs_frame *frame, uint32_t *at)
{
    static const uint8_t snap[6] = { 0xaa, 0xaa, 0x03, 0, 0, 0 };
    const uint8_t *p = frame->head + *at;

    if (frame->parsed.ethertype >= 0x0600)
        return frame->parsed.ethertype;
    if (*at + LLC_SNAP > frame->head_len || memcmp(p, snap, sizeof snap) != 0)
        return PVS_DL_TYPE_NONE;
    *at += LLC_SNAP;
    uint16_t type = pvs_load16(p + sizeof snap);
    return type >= 0x0600 ? type : PVS_DL_TYPE_NONE;
}

/* ARP of Ethernet and IPv4 (RFC 826). */
static void
find_arp(const struct pvs_frame *frame, struct pvs_layers *l, uint32_t at)
{
    static const uint8_t kind[6] = { 0, 1, 8, 0, 6, 4 };
    const uint8_t *p = frame->head + at;

    if (at + ARP_LEN > frame->head_len || memcmp(p, kind, sizeof kind) != 0)
        return;
    l->l3 = (uint16_t)at;
    l->end = (uint16_t)(at + ARP_LEN);
    l->proto = p[6] == 0 ? p[7] : 0;
}

void
pvs_layers_find(const struct pvs_frame *frame, struct pvs_layers *layers)
{
    uint32_t at = frame->parsed.l3_offset;

    *layers = (struct pvs_layers){ 0 };
    layers->dl_type = type_of(frame, &at);
    if (layers->dl_type == ETHERTYPE_IPV4)
        find_ipv4(frame, layers, at);
    else if (layers->dl_type == ETHERTYPE_IPV6)
        find_ipv6(frame, layers, at);
    else if (layers->dl_type == PVS_ETHERTYPE_ARP || layers->dl_type == PVS_ETHERTYPE_RARP)
        find_arp(frame, layers, at);
}

/* The fields of L4: two of 16 bits in the lowest bits of word 3, and those of TCP and of neighbour discovery (RFC 4861). */
static void
key_l4(const struct pvs_frame *frame, const struct pvs_layers *l, uint64_t *key)
{
    const uint8_t *p = frame->head + l->l4;
    uint32_t room = (uint32_t)(l->end - l->l4);
    bool icmp = l->dl_type == ETHERTYPE_IPV4 && l->proto == PVS_PROTO_ICMP;
    bool icmpv6 = l->dl_type == ETHERTYPE_IPV6 && l->proto == PVS_PROTO_ICMPV6;

    if (l->proto == PVS_PROTO_TCP && room >= 20) {
        key[PVS_WORD_L4] |= pvs_load32(p);
        key[PVS_WORD_SHA] = pvs_load16(p + 12) & 0x0fff;
    } else if ((l->proto == PVS_PROTO_UDP && room >= 8) || (l->proto == PVS_PROTO_SCTP && room >= 12)) {
        key[PVS_WORD_L4] |= pvs_load32(p);
    } else if ((icmp || icmpv6) && room >= 8) {
        key[PVS_WORD_L4] |= (uint64_t)p[0] << 16 | p[1];
        if (icmpv6 && (p[0] == 135 || p[0] == 136) && p[1] == 0 && room >= 24) {
            key[PVS_WORD_TARGET] = pvs_load64(p + 8);
            key[PVS_WORD_TARGET + 1] = pvs_load64(p + 16);
        }
    }
}

static void
key_l3(const struct pvs_frame *frame, const struct pvs_layers *l, uint64_t *key)
{
    const uint8_t *p = frame->head + l->l3;

    if (l->l3 == 0)
        return;
    key[PVS_WORD_L4] =
        (uint64_t)l->proto << 56 | (uint64_t)l->tos << 48 | (uint64_t)l->ttl << 40 | (uint64_t)l->frag << 32;
    if (l->dl_type == ETHERTYPE_IPV4) {
        key[PVS_WORD_SRC] = pvs_load32(p + 12);
        key[PVS_WORD_DST] = pvs_load32(p + 16);
    } else if (l->dl_type == ETHERTYPE_IPV6) {
        key[PVS_WORD_SRC - 1] = pvs_load64(p + 8);
        key[PVS_WORD_SRC] = pvs_load64(p + 16);
        key[PVS_WORD_DST - 1] = pvs_load64(p + 24);
        key[PVS_WORD_DST] = pvs_load64(p + 32);
    } else {
        key[PVS_WORD_SRC] = pvs_load32(p + 14);
        key[PVS_WORD_DST] = pvs_load32(p + 24);
        key[PVS_WORD_SHA] = pvs_mac_load(p + 8) << 16;
        key[PVS_WORD_THA] = pvs_mac_load(p + 18) << 16;
    }
    if (l->l4 != 0)
        key_l4(frame, l, key);
}

/* Is it what most frames are: a whole IPv4 packet of TCP or UDP without options? */
static inline bool
is_usual_ipv4(const struct pvs_frame *frame)
{
    uint32_t at = frame->parsed.l3_offset;
    const uint8_t *p = frame->head + at;

    if (frame->parsed.ethertype != ETHERTYPE_IPV4 || at + USUAL_IPV4 > frame->head_len || p[0] != 0x45)
        return false;
    uint32_t packet = pvs_load16(p + 2);
    return packet >= USUAL_IPV4 && packet <= frame->len - at && (pvs_load16(p + 6) & 0x3fff) == 0 &&
           (p[9] == PVS_PROTO_TCP || p[9] == PVS_PROTO_UDP);
}

/* Or such a one of IPv6, without extension headers? */
static inline bool
is_usual_ipv6(const struct pvs_frame *frame)
{
    uint32_t at = frame->parsed.l3_offset;
    const uint8_t *p = frame->head + at;

    if (frame->parsed.ethertype != ETHERTYPE_IPV6 || at + USUAL_IPV6 > frame->head_len)
        return false;
    uint32_t packet = pvs_load16(p + 4) + (uint32_t)IPV6_HLEN;
    return packet >= USUAL_IPV6 && packet <= frame->len - at && (p[6] == PVS_PROTO_TCP || p[6] == PVS_PROTO_UDP);
}

/* The key of such a frame, in a few loads. False: it is another one. */
static inline bool
key_usual(const struct pvs_frame *frame, uint64_t *key)
{
    const uint8_t *p = frame->head + frame->parsed.l3_offset, *l4;
    uint8_t proto;

    if (is_usual_ipv4(frame)) {
        l4 = p + IPV4_HLEN;
        proto = p[9];
        key[PVS_WORD_L4] = (uint64_t)p[1] << 48 | (uint64_t)p[8] << 40;
        key[PVS_WORD_SRC - 1] = key[PVS_WORD_DST - 1] = 0;
        key[PVS_WORD_SRC] = pvs_load32(p + 12);
        key[PVS_WORD_DST] = pvs_load32(p + 16);
    } else if (is_usual_ipv6(frame)) {
        l4 = p + IPV6_HLEN;
        proto = p[6];
        key[PVS_WORD_L4] = (uint64_t)(pvs_load16(p) >> 4 & 0xff) << 48 | (uint64_t)p[7] << 40;
        key[PVS_WORD_SRC - 1] = pvs_load64(p + 8);
        key[PVS_WORD_SRC] = pvs_load64(p + 16);
        key[PVS_WORD_DST - 1] = pvs_load64(p + 24);
        key[PVS_WORD_DST] = pvs_load64(p + 32);
    } else {
        return false;
    }
    key[PVS_WORD_L4] |= (uint64_t)proto << 56 | pvs_load32(l4);
    key[PVS_WORD_SHA] = proto == PVS_PROTO_TCP ? pvs_load16(l4 + 12) & 0x0fff : 0;
    key[PVS_WORD_THA] = key[PVS_WORD_TARGET] = key[PVS_WORD_TARGET + 1] = 0;
    return true;
}

void
pvs_flow_key(const struct pvs_frame *frame, uint32_t slot, uint32_t tun_id, enum pvs_flow_depth depth,
             uint64_t key[PVS_FLOW_WORDS])
{
    const struct pvs_parsed *parsed = &frame->parsed;
    uint16_t type = parsed->ethertype, tci = 0;

    if (pvs_tags(parsed) != 0)
        tci = pvs_load16(frame->head + PVS_TAG_OFFSET + 2) | PVS_TCI_PRESENT;
    if (depth == PVS_DEPTH_L2 || !key_usual(frame, key))
        memset(key + 3, 0, (PVS_FLOW_WORDS - 3) * sizeof key[0]);
    else
        depth = PVS_DEPTH_L2; /* the rest is known */
    if (depth != PVS_DEPTH_L2) {
        struct pvs_layers layers;
        pvs_layers_find(frame, &layers);
        type = layers.dl_type;
        key_l3(frame, &layers, key);
    } else if (type < 0x0600) {
        uint32_t at = parsed->l3_offset;
        type = type_of(frame, &at);
    }
    key[0] = (uint64_t)slot << 32 | tun_id;
    key[1] = parsed->dst << 16 | type;
    key[2] = parsed->src << 16 | tci;
}

/* Of two usual packets all but lengths, ID and checksum; of TCP the flags. */
static inline bool
same_ipv4(const uint8_t *p, const uint8_t *q)
{
    uint64_t differ = (pvs_load64(p) ^ pvs_load64(q)) & 0xffff00000000ffff;

    differ |= (pvs_load64(p + 8) ^ pvs_load64(q + 8)) & 0xffff0000ffffffff;
    differ |= pvs_load64(p + 16) ^ pvs_load64(q + 16);
    if (p[9] == PVS_PROTO_TCP)
        differ |= (pvs_load64(p + 28) ^ pvs_load64(q + 28)) & 0x0fff0000;
    return differ == 0;
}

/* All but flow label and length; of TCP the flags. */
static inline bool
same_ipv6(const uint8_t *p, const uint8_t *q)
{
    uint64_t differ = (pvs_load64(p) ^ pvs_load64(q)) & 0xfff000000000ffff;

    for (uint32_t at = 8; at < IPV6_HLEN; at += 8)
        differ |= pvs_load64(p + at) ^ pvs_load64(q + at);
    differ |= pvs_load32(p + 40) ^ pvs_load32(q + 40);
    if (p[6] == PVS_PROTO_TCP)
        differ |= (pvs_load64(p + 48) ^ pvs_load64(q + 48)) & 0x0fff0000;
    return differ == 0;
}

bool
pvs_flow_same_key(const struct pvs_frame *one, const struct pvs_frame *other, enum pvs_flow_depth depth)
{
    const uint8_t *p = one->head + one->parsed.l3_offset, *q = other->head + other->parsed.l3_offset;

    /* of IPv4 the receiver and the ports: mostly it is these that differ. Behind the end of a short frame it is no matter what they are. */
    if (depth != PVS_DEPTH_L2 && pvs_load64(p + 16) != pvs_load64(q + 16))
        return false;
    if (memcmp(&one->parsed, &other->parsed, sizeof one->parsed) != 0 ||
        (pvs_tags(&one->parsed) != 0 &&
         pvs_load16(one->head + PVS_TAG_OFFSET + 2) != pvs_load16(other->head + PVS_TAG_OFFSET + 2)))
        return false;
    if (depth == PVS_DEPTH_L2)
        return one->parsed.ethertype >= 0x0600;
    return one->parsed.ethertype == ETHERTYPE_IPV6 ? is_usual_ipv6(one) && is_usual_ipv6(other) && same_ipv6(p, q)
                                                   : is_usual_ipv4(one) && is_usual_ipv4(other) && same_ipv4(p, q);
}

/* How much of an L4 header flows look at. */
static uint32_t
looked_at(const struct pvs_layers *l)
{
    switch (l->proto) {
    case PVS_PROTO_TCP:
        return 20;
    case PVS_PROTO_UDP:
    case PVS_PROTO_ICMP:
        return 8;
    case PVS_PROTO_SCTP:
        return 12;
    case PVS_PROTO_ICMPV6:
        return 24;
    default:
        return 0;
    }
}

/* Where in its header L4 has its checksum; where it has none that is to be filled in, behind what flows look at. */
static uint32_t
checksum_of(const struct pvs_layers *l)
{
    switch (l->proto) {
    case PVS_PROTO_TCP:
        return 16;
    case PVS_PROTO_UDP:
        return 6;
    case PVS_PROTO_ICMP:
    case PVS_PROTO_ICMPV6:
        return 2;
    default:
        return looked_at(l);
    }
}

/* Is a checksum that the sender left to be filled in written where it changes nothing that flows look at? */
static bool
sum_is_apart(const struct pvs_frame *frame, const struct pvs_layers *l)
{
    uint32_t at = (uint32_t)frame->request.csum_start + frame->request.csum_offset, l3 = frame->parsed.l3_offset;

    /* a third tag may become the second one; or, where two are taken off, the first, and then there may be one behind it */
    if (l->dl_type == ETHERTYPE_8021Q || l->dl_type == ETHERTYPE_8021AD)
        return at >= l3 + 2 * PVS_VLAN_HLEN;
    if (frame->parsed.ethertype < 0x0600 && at < l3 + LLC_SNAP)
        return false;
    if (l->dl_type == PVS_ETHERTYPE_ARP || l->dl_type == PVS_ETHERTYPE_RARP)
        return l->l3 != 0 && at >= l->end;
    if (l->dl_type != ETHERTYPE_IPV4 && l->dl_type != ETHERTYPE_IPV6)
        return true;
    return l->l4 != 0 && (at == l->l4 + checksum_of(l) || at >= l->l4 + looked_at(l));
}

/* Only IPv6 has headers that may go beyond what every frame has in its head. */
void
pvs_flow_pull(struct pvs_frame *frame)
{
    _Static_assert(PVS_HEAD >= PVS_ETH_HLEN + 3 * PVS_VLAN_HLEN + LLC_SNAP + 60 + 20, "IPv4 and TCP fit");
    struct pvs_layers l;

    bool short_enough = frame->len <= frame->head_len || frame->parsed.ethertype == ETHERTYPE_IPV4;
    if (short_enough && !frame->request.checksum)
        return;
    pvs_layers_find(frame, &l);
    for (bool pulled = false; l.dl_type == ETHERTYPE_IPV6 && l.l3 != 0; pulled = true) {
        bool found = l.l4 != 0 ? l.l4 + looked_at(&l) <= frame->head_len : (l.frag & PVS_FRAG_LATER) != 0;
        if (found || l.l3 + l.packet <= frame->head_len)
            break;
        if (pulled || !pvs_frame_pull(frame, frame->len < FLOW_HEAD ? frame->len : FLOW_HEAD)) {
            frame->malformed = true; /* as RFC 8883 says that a node may */
            return;
        }
        pvs_layers_find(frame, &l);
    }
    if (frame->request.checksum && !sum_is_apart(frame, &l))
        frame->malformed = true;
}
