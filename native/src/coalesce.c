/* SPDX-License-Identifier: Apache-2.0 */
/* coalesce.c - see coalesce.h. */
#include "coalesce.h"

#include "checksum.h"
#include "parse.h"

enum { IPV4_HLEN = 20, IPV4_LEN = 2, IPV4_ID = 4, IPV4_FRAGMENT = 6, IPV4_PROTOCOL = 9, IPV4_CSUM = 10, IPV4_SRC = 12 };
enum { IPV4_DF = 0x4000 };
enum { IPV6_HLEN = 40, IPV6_LEN = 4, IPV6_NEXT = 6, IPV6_SRC = 8 };
enum { PROTOCOL_TCP = 6, PROTOCOL_UDP = 17 };
enum {
    TCP_HLEN = 20,
    TCP_SEQ = 4,
    TCP_ACK = 8,
    TCP_DATA_OFFSET = 12,
    TCP_FLAGS = 13,
    TCP_WINDOW = 14,
    TCP_CSUM = 16,
    TCP_URGENT = 18
};
enum { TCP_FIN = 0x01, TCP_SYN = 0x02, TCP_RST = 0x04, TCP_PSH = 0x08, TCP_URG = 0x20, TCP_CWR = 0x80 };
enum { UDP_HLEN = 8, UDP_CSUM = 6 };
/* Of all of them, in the length field of IP (RFC 791, 3.1). */
enum { IP_MAX = 65535 };

static uint32_t
load16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static uint32_t
load32(const uint8_t *p)
{
    return load16(p) << 16 | load16(p + 2);
}

static void
store16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

/* Where TCP or UDP begins in a frame of IP without options, extension headers, fragments or padding; 0: it isn't one. */
static uint32_t
find_l4(const struct pvs_frame *frame, uint8_t *protocol)
{
    uint32_t l3 = frame->parsed.l3_offset, room = frame->head_len > l3 ? frame->head_len - l3 : 0;
    const uint8_t *ip = frame->head + l3;

    if (frame->parsed.ethertype == ETHERTYPE_IPV4) {
        *protocol = room >= IPV4_HLEN ? ip[IPV4_PROTOCOL] : 0;
        bool plain = room >= IPV4_HLEN && ip[0] == 0x45 && (load16(ip + IPV4_FRAGMENT) & ~(uint32_t)IPV4_DF) == 0 &&
                     load16(ip + IPV4_LEN) == frame->len - l3;
        return plain ? l3 + IPV4_HLEN : 0;
    }
    if (frame->parsed.ethertype != ETHERTYPE_IPV6 || room < IPV6_HLEN || ip[0] >> 4 != 6 ||
        load16(ip + IPV6_LEN) != frame->len - l3 - IPV6_HLEN)
        return 0;
    *protocol = ip[IPV6_NEXT];
    return l3 + IPV6_HLEN;
}

/* The sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1), for `len` bytes of L4. */
static void
sum_pseudo(struct pvs_sum *sum, const struct pvs_frame *frame, uint8_t protocol, uint32_t len)
{
    const uint8_t *ip = frame->head + frame->parsed.l3_offset;
    uint8_t rest[4] = { 0, protocol };

    store16(rest + 2, len);
    if (frame->parsed.ethertype == ETHERTYPE_IPV4)
        pvs_sum_add(sum, ip + IPV4_SRC, 8);
    else
        pvs_sum_add(sum, ip + IPV6_SRC, 32);
    pvs_sum_add(sum, rest, sizeof rest);
}

/* ---- left undone ---- */

void
pvs_unfinished(struct pvs_frame *frame, uint32_t room)
{
    uint8_t protocol = 0;
    uint32_t l4 = find_l4(frame, &protocol);
    bool tcp = protocol == PROTOCOL_TCP;
    uint16_t field, offset = tcp ? TCP_CSUM : UDP_CSUM;
    struct pvs_sum sum = { 0 };

    if (l4 == 0 || (!tcp && protocol != PROTOCOL_UDP) || l4 + (tcp ? TCP_HLEN : UDP_HLEN) > frame->head_len)
        return;
    sum_pseudo(&sum, frame, protocol, frame->len - l4);
    memcpy(&field, frame->head + l4 + offset, sizeof field);
    if (field != pvs_sum_fold(&sum))
        return;
    struct virtio_net_hdr header = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                     .csum_start = (uint16_t)l4,
                                     .csum_offset = offset };
    uint32_t headers = l4 + (tcp ? (frame->head[l4 + TCP_DATA_OFFSET] >> 4) * 4U : UDP_HLEN);
    if (tcp && frame->len > room && headers < room) {
        bool v4 = frame->parsed.ethertype == ETHERTYPE_IPV4;
        header.gso_type = v4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
        header.gso_size = (uint16_t)(room - headers);
    }
    if (!pvs_offload_check_request(frame, &header, UINT8_MAX))
        frame->request = (struct pvs_request){ 0 };
}

/* ---- segments ---- */

void
pvs_train_begin(struct pvs_train *train, struct pvs_frame *frame, uint8_t *bytes)
{
    uint8_t protocol = 0;
    uint32_t l4 = find_l4(frame, &protocol);

    train->frame = NULL;
    if (l4 == 0 || protocol != PROTOCOL_TCP || l4 + TCP_HLEN > frame->head_len || frame->request.checksum)
        return;
    const uint8_t *tcp = frame->head + l4;
    uint32_t headers = l4 + (tcp[TCP_DATA_OFFSET] >> 4) * 4U;
    uint8_t alone = TCP_SYN | TCP_RST | TCP_URG | TCP_FIN | TCP_PSH | TCP_CWR;
    if (headers < l4 + TCP_HLEN || headers > frame->head_len || headers >= frame->len || (tcp[TCP_FLAGS] & alone) != 0)
        return;
    *train = (struct pvs_train){ .frame = frame,
                                 .bytes = bytes,
                                 .len = frame->len,
                                 .n = 1,
                                 .l4 = l4,
                                 .headers = headers,
                                 .payload = frame->len - headers,
                                 .next = load32(tcp + TCP_SEQ) + frame->len - headers,
                                 .flags = tcp[TCP_FLAGS] };
}

/* Are its checksums right? The sum over all that one is of is all ones then (RFC 1071, 1). */
static bool
is_right(const struct pvs_frame *frame, uint32_t l4, const uint8_t *bytes, uint32_t len)
{
    struct pvs_sum sum = { 0 }, ip = { 0 };

    pvs_sum_add(&ip, frame->head + frame->parsed.l3_offset, IPV4_HLEN);
    if (frame->parsed.ethertype == ETHERTYPE_IPV4 && pvs_sum_fold(&ip) != 0xffff)
        return false;
    sum_pseudo(&sum, frame, PROTOCOL_TCP, len - l4);
    pvs_sum_add(&sum, bytes + l4, len - l4);
    return pvs_sum_fold(&sum) == 0xffff;
}

/* The same but for length, checksum and identification, which is the next one or doesn't matter (RFC 6864, 4.1). */
static bool
same_ip(const struct pvs_train *train, const uint8_t *a, const uint8_t *b)
{
    if (train->frame->parsed.ethertype == ETHERTYPE_IPV6)
        return memcmp(a, b, IPV6_LEN) == 0 && memcmp(a + IPV6_NEXT, b + IPV6_NEXT, IPV6_HLEN - IPV6_NEXT) == 0;
    bool atomic = (load16(a + IPV4_FRAGMENT) & IPV4_DF) != 0;
    return a[1] == b[1] && memcmp(a + IPV4_FRAGMENT, b + IPV4_FRAGMENT, 4) == 0 &&
           memcmp(a + IPV4_SRC, b + IPV4_SRC, 8) == 0 &&
           (atomic || (uint16_t)(load16(a + IPV4_ID) + train->n) == load16(b + IPV4_ID));
}

/* All that segments of one frame have in common. */
static bool
same_headers(const struct pvs_train *train, const struct pvs_frame *next)
{
    const struct pvs_frame *first = train->frame;
    uint32_t l3 = first->parsed.l3_offset;
    const uint8_t *a = first->head + train->l4, *b = next->head + train->l4;

    return next->head_len >= train->headers && memcmp(first->head, next->head, l3) == 0 &&
           same_ip(train, first->head + l3, next->head + l3) && memcmp(a, b, TCP_SEQ) == 0 && /* the ports */
           load32(b + TCP_SEQ) == train->next && memcmp(a + TCP_ACK, b + TCP_ACK, 5) == 0 &&
           ((a[TCP_FLAGS] ^ b[TCP_FLAGS]) & ~(TCP_FIN | TCP_PSH)) == 0 &&
           memcmp(a + TCP_WINDOW, b + TCP_WINDOW, 2) == 0 && memcmp(a + TCP_URGENT, b + TCP_URGENT, 2) == 0 &&
           memcmp(a + TCP_HLEN, b + TCP_HLEN, train->headers - train->l4 - TCP_HLEN) == 0;
}

bool
pvs_train_add(struct pvs_train *train, const struct pvs_frame *next, uint8_t *bytes)
{
    struct pvs_frame *frame = train->frame;
    uint8_t protocol = 0;

    if (frame == NULL || next->request.checksum || next->parsed.l3_offset != frame->parsed.l3_offset ||
        find_l4(next, &protocol) != train->l4 || next->len <= train->headers ||
        next->len - train->headers > train->payload ||
        frame->len + next->len - train->headers - frame->parsed.l3_offset > IP_MAX || !same_headers(train, next) ||
        (train->n == 1 && !is_right(frame, train->l4, train->bytes, train->len)) ||
        !is_right(next, train->l4, bytes, next->len))
        return false;
    uint32_t payload = next->len - train->headers;
    frame->seg[frame->n_seg++] = (struct pvs_seg){ .base = bytes + train->headers, .len = payload };
    frame->len += payload;
    train->n++;
    train->next += payload;
    train->flags = next->head[train->l4 + TCP_FLAGS];
    if (payload < train->payload || (train->flags & (TCP_FIN | TCP_PSH)) != 0 || train->n == PVS_MAX_PIECES)
        pvs_train_end(train); /* only the last one may be shorter, or have these */
    return true;
}

void
pvs_train_end(struct pvs_train *train)
{
    struct pvs_frame *frame = train->frame;

    train->frame = NULL;
    if (frame == NULL || train->n == 1)
        return;
    uint8_t *ip = frame->head + frame->parsed.l3_offset, *tcp = frame->head + train->l4;
    bool v4 = frame->parsed.ethertype == ETHERTYPE_IPV4;
    struct pvs_sum pseudo = { 0 }, sum = { 0 };
    uint32_t len = frame->len - train->l4;
    uint16_t field;

    if (v4) {
        store16(ip + IPV4_LEN, len + IPV4_HLEN);
        store16(ip + IPV4_CSUM, 0);
        pvs_sum_add(&sum, ip, IPV4_HLEN);
        field = (uint16_t)~pvs_sum_fold(&sum);
        memcpy(ip + IPV4_CSUM, &field, sizeof field);
    } else {
        store16(ip + IPV6_LEN, len);
    }
    tcp[TCP_FLAGS] = train->flags;
    sum_pseudo(&pseudo, frame, PROTOCOL_TCP, len);
    field = pvs_sum_fold(&pseudo);
    memcpy(tcp + TCP_CSUM, &field, sizeof field);
    frame->request = (struct pvs_request){ .checksum = true,
                                           .gso_type = v4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6,
                                           .gso_size = (uint16_t)train->payload,
                                           .csum_start = (uint16_t)train->l4,
                                           .csum_offset = TCP_CSUM,
                                           .hdr_len = (uint16_t)train->headers };
}
