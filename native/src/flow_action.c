/* SPDX-License-Identifier: Apache-2.0 */
/* flow_action.c - see flow_action.h. */
#include "flow_action.h"

#include "parse.h"

/* ---- which lists there may be ---- */

/* Is the value of an action one that its field can have? */
static bool
value_is_valid(const struct pvs_flow_action *a)
{
    switch ((enum pvs_flow_action_kind)a->kind) {
    case PVS_ACT_PUSH_VLAN:
        return a->value == ETHERTYPE_8021Q || a->value == ETHERTYPE_8021AD;
    case PVS_ACT_SET_VLAN_VID:
        return a->value < 4096;
    case PVS_ACT_SET_VLAN_PCP:
        return a->value < 8;
    case PVS_ACT_SET_DL_SRC:
    case PVS_ACT_SET_DL_DST:
        return a->value <= PVS_MAC_BROADCAST;
    case PVS_ACT_SET_NW_SRC:
    case PVS_ACT_SET_NW_DST:
    case PVS_ACT_SET_TUNNEL:
        return a->value <= UINT32_MAX;
    case PVS_ACT_SET_NW_TOS:
        return a->value <= 0xfc && (a->value & 3) == 0;
    case PVS_ACT_SET_TP_SRC:
    case PVS_ACT_SET_TP_DST:
        return a->value <= UINT16_MAX;
    case PVS_ACT_OUTPUT:
        return a->slot < PVS_MAX_PORTS;
    case PVS_ACT_METER:
        return a->slot < PVS_MAX_METERS;
    case PVS_ACT_MIRROR:
        return a->slot < PVS_MAX_MIRRORS;
    case PVS_ACT_IN_PORT:
    case PVS_ACT_ALL:
    case PVS_ACT_FLOOD:
    case PVS_ACT_NORMAL:
    case PVS_ACT_POP_VLAN:
    case PVS_ACT_DEC_TTL:
        return true;
    case PVS_ACT_KINDS:
        break;
    }
    return false;
}

/* A meter is charged when all actions were decided on: asked twice, it would let pass what it has tokens for once. */
static bool
meter_is_named_before(const struct pvs_flow_action *action, uint32_t i)
{
    for (uint32_t j = 0; j < i; j++)
        if (action[j].kind == PVS_ACT_METER && action[j].slot == action[i].slot)
            return true;
    return false;
}

bool
pvs_flow_actions_are_valid(const struct pvs_flow_action *action, uint32_t n)
{
    uint32_t variants = 0, floods = 0, normals = 0, pushes = 0;
    bool fresh = true; /* the next edit begins another variant */

    if (n > PVS_MAX_ACTIONS)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        const struct pvs_flow_action *a = &action[i];
        if (!value_is_valid(a) || (a->kind == PVS_ACT_METER && meter_is_named_before(action, i)))
            return false;
        variants += fresh && pvs_flow_action_edits(a);
        fresh = pvs_flow_action_edits(a) ? false : fresh || a->kind <= PVS_ACT_NORMAL;
        floods += a->kind == PVS_ACT_ALL || a->kind == PVS_ACT_FLOOD || a->kind == PVS_ACT_NORMAL;
        normals += a->kind == PVS_ACT_NORMAL;
        /* setting a field of the tag of an untagged frame gives it one */
        pushes += a->kind == PVS_ACT_PUSH_VLAN;
    }
    return variants <= PVS_MAX_VARIANTS && floods <= PVS_MAX_FLOODS && normals <= 1 && pushes <= PVS_MAX_PUSHES;
}

/* ---- checksums ---- */

/* RFC 1624, equation 3: HC' = ~(~HC + ~m + m'). `sum` is what the checksum's complement is. */
static uint16_t
sum_replace(uint16_t sum, uint16_t old, uint16_t new)
{
    uint32_t s = (uint32_t)sum + (uint16_t)~old + new;

    s = (s & 0xffff) + (s >> 16);
    return (uint16_t)((s & 0xffff) + (s >> 16));
}

/* A word has changed that a finished checksum covers. */
static void
finished_replace(uint8_t *checksum, uint16_t old, uint16_t new)
{
    pvs_store16(checksum, (uint16_t)~sum_replace((uint16_t)~pvs_load16(checksum), old, new));
}

enum { IPV4_CHECKSUM = 10, TCP_CHECKSUM = 16, UDP_CHECKSUM = 6, SCTP_CHECKSUM = 8 };

/* Where the checksum of TCP or UDP is; NULL: the frame has none. */
static uint8_t *
l4_checksum(struct pvs_frame *frame, const struct pvs_layers *l)
{
    uint32_t at = l->l4 + (uint32_t)(l->proto == PVS_PROTO_TCP ? TCP_CHECKSUM : UDP_CHECKSUM);

    if (l->l4 == 0 || (l->proto != PVS_PROTO_TCP && l->proto != PVS_PROTO_UDP) || at + 2 > l->end)
        return NULL;
    return frame->head + at;
}

/* A word has changed that L4's checksum covers, of the pseudo header or of L4's own. */
static void
l4_replace(struct pvs_frame *frame, const struct pvs_layers *l, bool pseudo, uint16_t old, uint16_t new)
{
    uint8_t *checksum = l4_checksum(frame, l);

    if (checksum == NULL)
        return;
    if (frame->request.checksum && frame->head + frame->request.csum_start + frame->request.csum_offset == checksum &&
        frame->request.csum_start == l->l4) { /* to be filled in: over L4, as it will be */
        if (pseudo)
            pvs_store16(checksum, sum_replace(pvs_load16(checksum), old, new));
        return;
    }
    if (l->proto == PVS_PROTO_UDP && pvs_load16(checksum) == 0)
        return; /* RFC 768: it has none */
    finished_replace(checksum, old, new);
    if (l->proto == PVS_PROTO_UDP && pvs_load16(checksum) == 0)
        pvs_store16(checksum, 0xffff);
}

/* CRC32c of the bytes so far, and of one more (RFC 9260, appendix A). Neither begun nor ended with its complement. */
static uint32_t
crc32c_byte(uint32_t crc, uint8_t byte)
{
    crc ^= byte;
    for (int i = 0; i < 8; i++)
        crc = crc >> 1 ^ (0x82f63b78 & (0 - (crc & 1)));
    return crc;
}

/* The product of two polynomials modulo the CRC's; the highest bit of each is the coefficient of x^0. */
static uint32_t
crc32c_multiply(uint32_t a, uint32_t b)
{
    uint32_t product = 0;

    for (; a != 0; a <<= 1) {
        product ^= b & (0 - (a >> 31));
        b = b >> 1 ^ (0x82f63b78 & (0 - (b & 1)));
    }
    return product;
}

/* The CRC with so many zero bytes behind: times x^(8n), by squaring, since a sender would have us run over 64 KiB of them. */
static uint32_t
crc32c_zeros(uint32_t crc, uint32_t n)
{
    for (uint32_t power = UINT32_C(1) << (31 - 8); n != 0; n >>= 1, power = crc32c_multiply(power, power))
        if ((n & 1) != 0)
            crc = crc32c_multiply(power, crc);
    return crc;
}

/* Ports of SCTP have changed: the CRC changes by that of the difference, and of as many zeros as there is packet behind it. */
static void
sctp_replace(struct pvs_frame *frame, const struct pvs_layers *l, uint32_t at, uint16_t differ)
{
    uint32_t crc, old, behind = l->l3 + l->packet - at - 2;

    crc = crc32c_byte(crc32c_byte(0, (uint8_t)(differ >> 8)), (uint8_t)differ);
    crc = crc32c_zeros(crc, behind);
    memcpy(&old, frame->head + l->l4 + SCTP_CHECKSUM, sizeof old); /* it is sent with the lowest byte first */
    crc ^= old;
    memcpy(frame->head + l->l4 + SCTP_CHECKSUM, &crc, sizeof crc);
}

/* ---- edits ---- */

/* Put a tag before what is behind the addresses. */
static void
push_tag(struct pvs_frame *frame, uint16_t tpid, uint16_t tci)
{
    memmove(frame->head + PVS_TAG_OFFSET + PVS_VLAN_HLEN, frame->head + PVS_TAG_OFFSET,
            frame->head_len - (uint32_t)PVS_TAG_OFFSET);
    pvs_store16(frame->head + PVS_TAG_OFFSET, tpid);
    pvs_store16(frame->head + PVS_TAG_OFFSET + 2, tci);
}

static void
pop_tag(struct pvs_frame *frame)
{
    memmove(frame->head + PVS_TAG_OFFSET, frame->head + PVS_TAG_OFFSET + PVS_VLAN_HLEN,
            frame->head_len - (uint32_t)PVS_TAG_OFFSET - PVS_VLAN_HLEN);
}

/*
 * The frame has become longer by this, behind its addresses: what is known of its head follows. It isn't parsed again: a third tag that
 * came with it stays payload, as in Open vSwitch, and one that was pushed is known.
 */
static void
moved(struct pvs_frame *frame, int32_t longer)
{
    struct pvs_parsed *parsed = &frame->parsed;

    frame->head_len = (uint16_t)(frame->head_len + longer);
    frame->len = (uint32_t)((int32_t)frame->len + longer);
    if (frame->request.checksum)
        frame->request.csum_start = (uint16_t)(frame->request.csum_start + longer);
    if (frame->request.gso_type != VIRTIO_NET_HDR_GSO_NONE)
        frame->request.hdr_len = (uint16_t)(frame->request.hdr_len + longer);
    parsed->l3_offset = (uint16_t)(parsed->l3_offset + longer);
    parsed->vid = pvs_tags(parsed) > 0 ? pvs_load16(frame->head + PVS_TAG_OFFSET + 2) & 0x0fff : 0;
    parsed->inner_vid = pvs_tags(parsed) > 1 ? pvs_load16(frame->head + PVS_TAG_OFFSET + 6) & 0x0fff : 0;
}

static enum pvs_drop
edit_vlan(struct pvs_frame *frame, const struct pvs_flow_action *a, bool *done)
{
    uint32_t tags = pvs_tags(&frame->parsed);
    uint16_t tci = tags != 0 ? pvs_load16(frame->head + PVS_TAG_OFFSET + 2) : 0;

    if (a->kind == PVS_ACT_POP_VLAN) {
        *done = tags != 0;
        if (tags == 0)
            return PVS_DROP_none;
        pop_tag(frame);
        moved(frame, -PVS_VLAN_HLEN);
        return PVS_DROP_none;
    }
    if (a->kind == PVS_ACT_PUSH_VLAN || tags == 0) {
        /* the port that it leaves by may push one more */
        if (frame->head_len > PVS_HEAD_MAX - PVS_VLAN_HLEN || frame->len > PVS_MAX_FRAME - PVS_VLAN_HLEN)
            return PVS_DROP_mtu_exceeded;
        tci = 0; /* as Open vSwitch does; OpenFlow would copy the one behind */
        push_tag(frame, a->kind == PVS_ACT_PUSH_VLAN ? (uint16_t)a->value : ETHERTYPE_8021Q, tci);
        moved(frame, PVS_VLAN_HLEN);
    }
    if (a->kind == PVS_ACT_SET_VLAN_VID)
        tci = (uint16_t)((tci & 0xf000) | a->value);
    else if (a->kind == PVS_ACT_SET_VLAN_PCP)
        tci = (uint16_t)((tci & 0x1fff) | a->value << 13);
    pvs_store16(frame->head + PVS_TAG_OFFSET + 2, tci);
    frame->parsed.vid = tci & 0x0fff;
    return PVS_DROP_none;
}

static bool
edit_ipv4_address(struct pvs_frame *frame, const struct pvs_layers *l, uint32_t offset, uint32_t address)
{
    uint8_t *ip = frame->head + l->l3;

    if (l->dl_type != ETHERTYPE_IPV4 || l->l3 == 0)
        return false;
    for (uint32_t i = 0; i < 2; i++) {
        uint16_t old = pvs_load16(ip + offset + 2 * i), new = (uint16_t)(address >> (16 - 16 * i));
        finished_replace(ip + IPV4_CHECKSUM, old, new);
        l4_replace(frame, l, true, old, new);
        pvs_store16(ip + offset + 2 * i, new);
    }
    return true;
}

/* A byte of the IPv4 header, at an odd or an even place. */
static void
ipv4_byte_replace(uint8_t *ip, uint32_t offset, uint8_t new)
{
    uint16_t old = pvs_load16(ip + (offset & ~1U));

    ip[offset] = new;
    finished_replace(ip + IPV4_CHECKSUM, old, pvs_load16(ip + (offset & ~1U)));
}

static bool
edit_tos(struct pvs_frame *frame, const struct pvs_layers *l, uint8_t dscp)
{
    uint8_t *ip = frame->head + l->l3;

    if (l->l3 == 0)
        return false;
    if (l->dl_type == ETHERTYPE_IPV4)
        ipv4_byte_replace(ip, 1, (uint8_t)(dscp | (ip[1] & 3)));
    else if (l->dl_type == ETHERTYPE_IPV6)
        pvs_store16(ip, (uint16_t)((pvs_load16(ip) & 0xf03f) | dscp << 4));
    else
        return false;
    return true;
}

/* *done as pvs_flow_edit. */
static enum pvs_drop
edit_ttl(struct pvs_frame *frame, const struct pvs_layers *l, bool *done)
{
    uint8_t *ip = frame->head + l->l3;

    *done = l->l3 != 0 && (l->dl_type == ETHERTYPE_IPV4 || l->dl_type == ETHERTYPE_IPV6);
    if (!*done)
        return PVS_DROP_none;
    uint8_t *ttl = ip + (l->dl_type == ETHERTYPE_IPV4 ? 8 : 7);
    if (*ttl <= 1)
        return PVS_DROP_ttl_exceeded;
    if (l->dl_type == ETHERTYPE_IPV4)
        ipv4_byte_replace(ip, 8, (uint8_t)(*ttl - 1));
    else
        (*ttl)--;
    return PVS_DROP_none;
}

static bool
edit_port(struct pvs_frame *frame, const struct pvs_layers *l, uint32_t offset, uint16_t port)
{
    bool has_ports = l->proto == PVS_PROTO_TCP || l->proto == PVS_PROTO_UDP || l->proto == PVS_PROTO_SCTP;
    uint32_t whole = l->proto == PVS_PROTO_TCP ? 20 : l->proto == PVS_PROTO_UDP ? 8 : 12, at = l->l4 + offset;

    if (l->l4 == 0 || !has_ports || l->l4 + whole > l->end)
        return false;
    uint16_t old = pvs_load16(frame->head + at);
    if (l->proto == PVS_PROTO_SCTP) {
        if ((l->frag & PVS_FRAG_ANY) == 0) /* of a fragment the CRC covers what isn't here */
            sctp_replace(frame, l, at, old ^ port);
    } else {
        l4_replace(frame, l, false, old, port);
    }
    pvs_store16(frame->head + at, port);
    return true;
}

enum pvs_drop
pvs_flow_edit(struct pvs_frame *frame, const struct pvs_flow_action *a, bool *done)
{
    struct pvs_layers l;

    *done = true;
    if (a->kind <= PVS_ACT_SET_VLAN_PCP)
        return edit_vlan(frame, a, done);
    if (a->kind == PVS_ACT_SET_DL_SRC || a->kind == PVS_ACT_SET_DL_DST) {
        bool is_src = a->kind == PVS_ACT_SET_DL_SRC;
        pvs_mac_store(frame->head + (is_src ? 6 : 0), a->value);
        *(is_src ? &frame->parsed.src : &frame->parsed.dst) = a->value;
        return PVS_DROP_none;
    }
    pvs_layers_find(frame, &l);
    if (a->kind == PVS_ACT_SET_NW_SRC || a->kind == PVS_ACT_SET_NW_DST)
        *done = edit_ipv4_address(frame, &l, a->kind == PVS_ACT_SET_NW_SRC ? 12 : 16, (uint32_t)a->value);
    else if (a->kind == PVS_ACT_SET_NW_TOS)
        *done = edit_tos(frame, &l, (uint8_t)a->value);
    else if (a->kind == PVS_ACT_DEC_TTL)
        return edit_ttl(frame, &l, done);
    else
        *done = edit_port(frame, &l, a->kind == PVS_ACT_SET_TP_SRC ? 0 : 2, (uint16_t)a->value);
    return PVS_DROP_none;
}
