/* SPDX-License-Identifier: Apache-2.0 */
/*
 * too_big.c - who sends what doesn't fit a tunnel is told, as a router before the tunnel would do it (RFC 1191, 4; RFC 4443, 3.2).
 *
 * How it works: a frame of ICMP is made in the worker's own memory and delivered to the port that the other one came by, with its tags. It comes from
 * the address that was to be reached, since the switch has none. What RFC 1122, 3.2.2 and RFC 4443, 2.4 exclude is not answered: errors of ICMP,
 * fragments but the first, what went to or came from many. Of IPv4 only what must not be fragmented is.
 * Called by forward.c.
 */
#include "checksum.h"
#include "worker.h"

enum { IPV4_HLEN = 20, IPV4_FRAGMENT = 6, IPV4_DF = 0x4000, IPV4_OFFSET = 0x1fff, IPV4_PROTOCOL = 9 };
enum { IPV4_SRC = 12, IPV4_DST = 16, PROTOCOL_ICMP = 1, UNREACHABLE = 3, FRAGMENTATION_NEEDED = 4, TTL = 64 };
enum { IPV6_HLEN = 40, IPV6_NEXT = 6, IPV6_SRC = 8, IPV6_DST = 24, PROTOCOL_ICMPV6 = 58, PACKET_TOO_BIG = 2 };
enum { ICMP_HLEN = 8, ICMPV6_INFORMATION = 128 };
/* The message's own L3 bytes, at most (RFC 1812, 4.3.2.3; RFC 4443, 2.4 (c)). */
enum { IPV4_MESSAGE = 576, IPV6_MESSAGE = 1280 };
_Static_assert(IPV6_MESSAGE + PVS_ETH_HLEN + 2 * PVS_VLAN_HLEN <= PVS_ANSWER_MAX, "with all tags");

static uint32_t
load16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static void
store16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static void
store_sum(uint8_t *field, const struct pvs_sum *sum)
{
    uint16_t checksum = (uint16_t)~pvs_sum_fold(sum);

    memcpy(field, &checksum, sizeof checksum);
}

/* A unicast address of a host: not 0/8, 127/8, 224/4 or above. */
static bool
is_host(const uint8_t *address)
{
    return address[0] != 0 && address[0] != 127 && address[0] < 224;
}

/* RFC 792: echo and the other questions, and their answers. All else is an error. */
static bool
is_icmp_error(uint8_t type)
{
    return type != 0 && type != 8 && (type < 13 || type > 18);
}

static bool
answers_ipv4(const uint8_t *ip, uint32_t room)
{
    if (room < IPV4_HLEN || ip[0] >> 4 != 4)
        return false;
    uint32_t header = (ip[0] & 0xfU) * 4, fragment = load16(ip + IPV4_FRAGMENT);
    return header >= IPV4_HLEN && header + ICMP_HLEN <= room && (fragment & IPV4_DF) != 0 &&
           (fragment & IPV4_OFFSET) == 0 && is_host(ip + IPV4_SRC) && is_host(ip + IPV4_DST) &&
           !(ip[IPV4_PROTOCOL] == PROTOCOL_ICMP && is_icmp_error(ip[header]));
}

static bool
answers_ipv6(const uint8_t *ip, uint32_t room)
{
    static const uint8_t unspecified[16];

    if (room < IPV6_HLEN + ICMP_HLEN || ip[0] >> 4 != 6)
        return false;
    bool error = ip[IPV6_NEXT] == PROTOCOL_ICMPV6 && ip[IPV6_HLEN] < ICMPV6_INFORMATION;
    return !error && ip[IPV6_SRC] != 0xff && ip[IPV6_DST] != 0xff &&
           memcmp(ip + IPV6_SRC, unspecified, sizeof unspecified) != 0;
}

/* The headers behind the tags, before what is quoted; how long they are. */
static uint32_t
write_ipv4(uint8_t *to, const uint8_t *ip, uint32_t mtu, uint32_t quoted)
{
    static const uint8_t start[IPV4_HLEN] = { [0] = 0x45, [1] = 0xc0, [8] = TTL, [IPV4_PROTOCOL] = PROTOCOL_ICMP };
    uint8_t *icmp = to + IPV4_HLEN;
    struct pvs_sum header = { 0 }, sum = { 0 };

    memcpy(to, start, sizeof start);
    store16(to + 2, IPV4_HLEN + ICMP_HLEN + quoted);
    memcpy(to + IPV4_SRC, ip + IPV4_DST, 4);
    memcpy(to + IPV4_DST, ip + IPV4_SRC, 4);
    pvs_sum_add(&header, to, IPV4_HLEN);
    store_sum(to + 10, &header);
    memset(icmp, 0, ICMP_HLEN);
    icmp[0] = UNREACHABLE;
    icmp[1] = FRAGMENTATION_NEEDED;
    store16(icmp + 6, mtu);
    pvs_sum_add(&sum, icmp, ICMP_HLEN + quoted);
    store_sum(icmp + 2, &sum);
    return IPV4_HLEN + ICMP_HLEN;
}

static uint32_t
write_ipv6(uint8_t *to, const uint8_t *ip, uint32_t mtu, uint32_t quoted)
{
    static const uint8_t start[8] = { [0] = 0x60, [IPV6_NEXT] = PROTOCOL_ICMPV6, [7] = TTL };
    uint8_t *icmp = to + IPV6_HLEN, pseudo[4] = { [3] = PROTOCOL_ICMPV6 };
    struct pvs_sum sum = { 0 };

    memcpy(to, start, sizeof start);
    store16(to + 4, ICMP_HLEN + quoted);
    memcpy(to + IPV6_SRC, ip + IPV6_DST, 16);
    memcpy(to + IPV6_DST, ip + IPV6_SRC, 16);
    memset(icmp, 0, ICMP_HLEN);
    icmp[0] = PACKET_TOO_BIG;
    store16(icmp + 6, mtu); /* of 32 bits, of which these are the lower ones */
    pvs_sum_add(&sum, to + IPV6_SRC, 32);
    pvs_sum_add(&sum, to + 4, 2); /* RFC 8200, 8.1: length and protocol */
    pvs_sum_add(&sum, pseudo, sizeof pseudo);
    pvs_sum_add(&sum, icmp, ICMP_HLEN + quoted);
    store_sum(icmp + 2, &sum);
    return IPV6_HLEN + ICMP_HLEN;
}

/* As much of the packet as there is room for. */
static uint32_t
quote(const struct pvs_frame *frame, uint8_t *to, uint32_t room)
{
    uint32_t l3 = frame->parsed.l3_offset, len = frame->len - l3 < room ? frame->len - l3 : room;
    uint32_t in_head = frame->head_len - l3 < len ? frame->head_len - l3 : len;
    struct pvs_cursor c = { .seg = frame->seg, .n = frame->n_seg };

    memcpy(to, frame->head + l3, in_head);
    pvs_cursor_read(&c, to + in_head, len - in_head);
    return len;
}

void
pvs_tell_too_big(struct pvs_worker *w, const struct pvs_frame *frame, uint32_t mtu)
{
    const struct pvs_port_view *in = &w->tables->port[pvs_ref_index(frame->in_ref)];
    uint32_t l3 = frame->parsed.l3_offset, room = frame->head_len > l3 ? frame->head_len - l3 : 0;
    const uint8_t *ip = frame->head + l3;
    bool v4 = frame->parsed.ethertype == ETHERTYPE_IPV4, v6 = frame->parsed.ethertype == ETHERTYPE_IPV6;
    struct pvs_frame *answer = &w->answer;

    if (pvs_mac_is_group(frame->parsed.dst) || pvs_mac_is_group(frame->parsed.src) || frame->injected ||
        !((v4 && answers_ipv4(ip, room)) || (v6 && answers_ipv6(ip, room))) ||
        !pvs_allow(&w->too_big_answers, w->now_s, PVS_TOO_BIG_ANSWERS))
        return;
    uint8_t *bytes = w->answer_bytes, *to = bytes + l3;
    memcpy(bytes, frame->head, l3);
    memcpy(bytes, frame->head + 6, 6);
    memcpy(bytes + 6, frame->head, 6);
    uint32_t headers = (v4 ? IPV4_HLEN : IPV6_HLEN) + ICMP_HLEN;
    uint32_t quoted = quote(frame, to + headers, (v4 ? IPV4_MESSAGE : IPV6_MESSAGE) - headers);
    headers = v4 ? write_ipv4(to, ip, mtu, quoted) : write_ipv6(to, ip, mtu, quoted);
    pvs_frame_from_bytes(answer, &w->answer_tail, bytes, l3 + headers + quoted);
    answer->in_ref = frame->in_ref;
    answer->injected = true;
    pvs_parse(answer);
    pvs_deliver(w, in, answer, (struct pvs_toward){ .vid = w->verdict.place.vid, .vtep = frame->vtep }, NULL);
    pvs_worker_send(w); /* the next answer has the same place */
}
