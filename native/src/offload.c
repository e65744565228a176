/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offload.c - see offload.h. First the check at ingress, at the end the pieces at egress.
 *
 * The checksum field of a request holds the sum of the pseudo header. Segments take that sum and exchange only the length
 * in it, as Linux does: with a routing header or a home address (RFC 8200, 8.1; RFC 6275, 11.3.1) only the sender knows
 * which addresses it summed. Lengths in L3 and L4 headers are not believed: segments get theirs from the bytes there are.
 */
#include "offload.h"

#include "checksum.h"
#include "copy.h"
#include "parse.h"

enum { IPV4_HLEN = 20, IPV4_LEN = 2, IPV4_ID = 4, IPV4_FRAGMENT = 6, IPV4_PROTOCOL = 9, IPV4_CSUM = 10 };
enum { IPV4_MORE_AND_OFFSET = 0x3fff }; /* the bit "more fragments" and the offset (RFC 791, 3.1) */
enum { IPV6_HLEN = 40, IPV6_LEN = 4, IPV6_NEXT = 6 };
enum { IPV6_HOP_BY_HOP = 0, IPV6_ROUTING = 43, IPV6_DESTINATION = 60 };
enum { PROTOCOL_TCP = 6, PROTOCOL_UDP = 17 };
enum { TCP_HLEN = 20, TCP_SEQ = 4, TCP_DATA_OFFSET = 12, TCP_FLAGS = 13, TCP_CSUM = 16 };
enum { TCP_FIN = 0x01, TCP_PSH = 0x08, TCP_CWR = 0x80 };
enum { UDP_HLEN = 8, UDP_LEN = 4, UDP_CSUM = 6 };
enum { IP_MAX = 65535, CSUM_LEN = 2 };

_Static_assert(PVS_MAX_FRAME - PVS_ETH_HLEN - IPV6_HLEN <= IP_MAX, "only IPv4 can be too long for its length field");

static uint16_t
load16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static void
store16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

uint8_t
pvs_offloads_sent(uint64_t features)
{
    uint32_t bits = 0;

    bits |= features >> VIRTIO_NET_F_CSUM & 1 ? PVS_OFFLOAD_CSUM : 0;
    bits |= features >> VIRTIO_NET_F_HOST_TSO4 & 1 ? PVS_OFFLOAD_TSO4 : 0;
    bits |= features >> VIRTIO_NET_F_HOST_TSO6 & 1 ? PVS_OFFLOAD_TSO6 : 0;
    bits |= features >> VIRTIO_NET_F_HOST_ECN & 1 ? PVS_OFFLOAD_ECN : 0;
    bits |= features >> VIRTIO_NET_F_HOST_USO & 1 ? PVS_OFFLOAD_USO4 | PVS_OFFLOAD_USO6 : 0;
    return (uint8_t)bits;
}

uint8_t
pvs_offloads_taken(uint64_t features)
{
    uint32_t bits = 0;

    bits |= features >> VIRTIO_NET_F_GUEST_CSUM & 1 ? PVS_OFFLOAD_CSUM : 0;
    bits |= features >> VIRTIO_NET_F_GUEST_TSO4 & 1 ? PVS_OFFLOAD_TSO4 : 0;
    bits |= features >> VIRTIO_NET_F_GUEST_TSO6 & 1 ? PVS_OFFLOAD_TSO6 : 0;
    bits |= features >> VIRTIO_NET_F_GUEST_ECN & 1 ? PVS_OFFLOAD_ECN : 0;
    bits |= features >> VIRTIO_NET_F_GUEST_USO4 & 1 ? PVS_OFFLOAD_USO4 : 0;
    bits |= features >> VIRTIO_NET_F_GUEST_USO6 & 1 ? PVS_OFFLOAD_USO6 : 0;
    return (uint8_t)bits;
}

/* All of what must have been negotiated for a frame with NEEDS_CSUM and this type; 0: there is no such type. */
static uint8_t
needed(uint8_t gso_type, uint16_t ethertype)
{
    uint8_t type = gso_type & (uint8_t)~VIRTIO_NET_HDR_GSO_ECN, ecn = type != gso_type ? PVS_OFFLOAD_ECN : 0;

    if (gso_type == VIRTIO_NET_HDR_GSO_NONE)
        return PVS_OFFLOAD_CSUM;
    if (type == VIRTIO_NET_HDR_GSO_TCPV4 && ethertype == ETHERTYPE_IPV4)
        return PVS_OFFLOAD_CSUM | PVS_OFFLOAD_TSO4 | ecn;
    if (type == VIRTIO_NET_HDR_GSO_TCPV6 && ethertype == ETHERTYPE_IPV6)
        return PVS_OFFLOAD_CSUM | PVS_OFFLOAD_TSO6 | ecn;
    if (gso_type == VIRTIO_NET_HDR_GSO_UDP_L4 && ethertype == ETHERTYPE_IPV4)
        return PVS_OFFLOAD_CSUM | PVS_OFFLOAD_USO4;
    if (gso_type == VIRTIO_NET_HDR_GSO_UDP_L4 && ethertype == ETHERTYPE_IPV6)
        return PVS_OFFLOAD_CSUM | PVS_OFFLOAD_USO6;
    return 0;
}

/* ---- the check at ingress ---- */

/* Each returns where the header of `protocol` begins, or 0 when it isn't there. */
static uint32_t
find_l4_behind_ipv4(struct pvs_frame *frame, uint8_t protocol)
{
    uint32_t l3 = frame->parsed.l3_offset;
    const uint8_t *ip = frame->head + l3;

    if (!pvs_frame_pull(frame, l3 + IPV4_HLEN) || frame->len - l3 > IP_MAX)
        return 0;
    uint32_t header_len = (ip[0] & 0xfU) * 4;
    if (ip[0] >> 4 != 4 || header_len < IPV4_HLEN || ip[IPV4_PROTOCOL] != protocol)
        return 0;
    if ((load16(ip + IPV4_FRAGMENT) & IPV4_MORE_AND_OFFSET) != 0)
        return 0;
    return l3 + header_len;
}

static uint32_t
find_l4_behind_ipv6(struct pvs_frame *frame, uint8_t protocol)
{
    uint32_t l3 = frame->parsed.l3_offset, at = l3 + IPV6_HLEN;

    if (!pvs_frame_pull(frame, at) || frame->head[l3] >> 4 != 6)
        return 0;
    uint8_t next = frame->head[l3 + IPV6_NEXT];
    while (next == IPV6_HOP_BY_HOP || next == IPV6_ROUTING || next == IPV6_DESTINATION) {
        /* RFC 8200, 4: which header follows, then the length in units of 8 bytes beyond the first 8 */
        if (!pvs_frame_pull(frame, at + 8))
            return 0;
        next = frame->head[at];
        at += (frame->head[at + 1] + 1U) * 8;
    }
    return next == protocol ? at : 0;
}

/* A frame that is to be cut: its headers are what the request says, and fill in how long they are. */
static bool
check_gso(struct pvs_frame *frame)
{
    struct pvs_request *r = &frame->request;
    bool udp = r->gso_type == VIRTIO_NET_HDR_GSO_UDP_L4;
    uint8_t protocol = udp ? PROTOCOL_UDP : PROTOCOL_TCP;
    uint32_t l4 = frame->parsed.ethertype == ETHERTYPE_IPV4 ? find_l4_behind_ipv4(frame, protocol)
                                                            : find_l4_behind_ipv6(frame, protocol);

    if (l4 == 0 || r->csum_start != l4 || r->csum_offset != (udp ? UDP_CSUM : TCP_CSUM) || r->gso_size == 0)
        return false;
    /* the head reaches to the checksum field by now, which lies behind the data offset */
    uint32_t header_len = udp ? UDP_HLEN : (frame->head[l4 + TCP_DATA_OFFSET] >> 4) * 4U;
    if (header_len < (udp ? UDP_HLEN : TCP_HLEN) || !pvs_frame_pull(frame, l4 + header_len))
        return false;
    r->hdr_len = (uint16_t)(l4 + header_len);
    if (frame->len - r->hdr_len <= r->gso_size) {
        r->gso_type = VIRTIO_NET_HDR_GSO_NONE;
        r->gso_size = r->hdr_len = 0;
        return true;
    }
    return pvs_frame_segments(frame) <= PVS_MAX_PIECES;
}

bool
pvs_offload_check_request(struct pvs_frame *frame, const struct virtio_net_hdr *header, uint8_t allowed)
{
    struct pvs_request *r = &frame->request;
    uint8_t needs = needed(header->gso_type, frame->parsed.ethertype);
    if (needs == 0 || (allowed & needs) != needs || header->csum_start < frame->parsed.l3_offset)
        return false;
    if (!pvs_frame_pull(frame, (uint32_t)header->csum_start + header->csum_offset + CSUM_LEN))
        return false;
    r->checksum = true;
    r->csum_start = header->csum_start;
    r->csum_offset = header->csum_offset;
    if (header->gso_type == VIRTIO_NET_HDR_GSO_NONE)
        return true;
    r->gso_type = header->gso_type;
    r->gso_size = header->gso_size;
    return check_gso(frame);
}

/* ---- moving along segment lists ---- */

/* Within the segment at hand; the next one, if that was all of it. */
static void
advance(struct pvs_cursor *c, uint32_t part)
{
    c->offset += part;
    if (c->offset == c->seg->len) {
        c->seg++;
        c->n--;
        c->offset = 0;
    }
}

static void
skip(struct pvs_cursor *c, uint32_t len)
{
    while (len != 0) {
        uint32_t room = c->seg->len - c->offset, part = room < len ? room : len;
        advance(c, part);
        len -= part;
    }
}

/* Both cursors move behind what was copied. `sum` may be NULL. */
static void
copy(struct pvs_cursor *to, struct pvs_cursor *from, uint32_t len, struct pvs_sum *sum)
{
    while (len != 0) {
        uint32_t part = from->seg->len - from->offset, room = to->seg->len - to->offset;
        part = part < room ? part : room;
        part = part < len ? part : len;
        if (sum != NULL)
            pvs_sum_copy(sum, to->seg->base + to->offset, from->seg->base + from->offset, part);
        else
            pvs_copy(to->seg->base + to->offset, from->seg->base + from->offset, part);
        advance(from, part);
        advance(to, part);
        len -= part;
    }
}

/* ---- the pieces at egress ---- */

/* Exchange the L4 length in the pseudo header's sum (RFC 1624, eqn. 3): both are of 16 bits, see IP_MAX. */
static void
patch_pseudo_sum(uint8_t *field, uint32_t old_len, uint32_t new_len)
{
    uint8_t lengths[4];
    struct pvs_sum sum = { 0 };
    uint16_t folded;

    store16(lengths, ~old_len);
    store16(lengths + 2, new_len);
    pvs_sum_add(&sum, field, CSUM_LEN);
    pvs_sum_add(&sum, lengths, sizeof lengths);
    folded = pvs_sum_fold(&sum);
    memcpy(field, &folded, sizeof folded);
}

static void
patch_l3(const struct pvs_pieces *pieces, uint8_t *ip)
{
    const struct pvs_frame *frame = pieces->frame;
    uint32_t len = pieces->len - frame->parsed.l3_offset;

    if (frame->parsed.ethertype == ETHERTYPE_IPV6) {
        store16(ip + IPV6_LEN, len - IPV6_HLEN);
        return;
    }
    store16(ip + IPV4_LEN, len);
    store16(ip + IPV4_ID, load16(ip + IPV4_ID) + pieces->next);
    store16(ip + IPV4_CSUM, 0);
    struct pvs_sum sum = { 0 };
    pvs_sum_add(&sum, ip, (ip[0] & 0xfU) * 4);
    uint16_t checksum = (uint16_t)~pvs_sum_fold(&sum);
    memcpy(ip + IPV4_CSUM, &checksum, sizeof checksum);
}

static void
patch_tcp(const struct pvs_pieces *pieces, uint8_t *tcp)
{
    uint32_t seq = (uint32_t)load16(tcp + TCP_SEQ) << 16 | load16(tcp + TCP_SEQ + 2);

    seq += pieces->next * pieces->gso_size;
    store16(tcp + TCP_SEQ, seq >> 16);
    store16(tcp + TCP_SEQ + 2, seq);
    if (pieces->next != 0)
        tcp[TCP_FLAGS] &= (uint8_t)~TCP_CWR; /* RFC 3168, 6.1.2: once for each reduction of the window */
    if (pieces->next + 1 != pieces->n)
        tcp[TCP_FLAGS] &= (uint8_t) ~(TCP_FIN | TCP_PSH);
}

/* Make segment number `next` the piece at hand; its payload outside the head begins at `source`. */
static void
make_segment(struct pvs_pieces *pieces)
{
    const struct pvs_frame *frame = pieces->frame;
    const struct pvs_request *r = &frame->request;
    uint32_t before = pieces->next * pieces->gso_size, left = frame->len - r->hdr_len - before;
    uint32_t payload = left < pieces->gso_size ? left : pieces->gso_size, in_head = 0;

    memcpy(pieces->scratch, frame->head, r->hdr_len);
    if (r->hdr_len + before < frame->head_len) {
        in_head = frame->head_len - r->hdr_len - before;
        if (in_head > payload)
            in_head = payload;
        memcpy(pieces->scratch + r->hdr_len, frame->head + r->hdr_len + before, in_head);
    }
    pieces->len = r->hdr_len + payload;
    pieces->head_len = r->hdr_len + in_head;

    uint8_t *l4 = pieces->scratch + r->csum_start;
    patch_l3(pieces, pieces->scratch + frame->parsed.l3_offset);
    if (r->csum_offset == TCP_CSUM)
        patch_tcp(pieces, l4);
    else
        store16(l4 + UDP_LEN, pieces->len - r->csum_start);
    patch_pseudo_sum(l4 + r->csum_offset, frame->len - r->csum_start, pieces->len - r->csum_start);
}

static bool
begin_segments(struct pvs_pieces *pieces)
{
    const struct pvs_frame *frame = pieces->frame;
    const struct pvs_request *r = &frame->request;

    pieces->n = (frame->len - r->hdr_len + pieces->gso_size - 1U) / pieces->gso_size;
    if (pieces->next >= pieces->n)
        return false;
    uint32_t before = r->hdr_len + pieces->next * pieces->gso_size;
    if (before > frame->head_len)
        skip(&pieces->source, before - frame->head_len);
    pieces->head = pieces->scratch;
    make_segment(pieces);
    return true;
}

bool
pvs_request_taken(const struct pvs_frame *frame, uint8_t taken)
{
    uint8_t needs = needed(frame->request.gso_type, frame->parsed.ethertype);

    return (taken & needs) == needs;
}

bool
pvs_pieces_begin(struct pvs_pieces *pieces, const struct pvs_frame *frame, uint8_t taken, uint32_t first)
{
    const struct pvs_request *r = &frame->request;

    pieces->frame = frame;
    pieces->n = 1;
    pieces->next = first;
    pieces->header = (struct virtio_net_hdr){ 0 };
    pieces->len = frame->len;
    pieces->head = frame->head;
    pieces->head_len = frame->head_len;
    pieces->sum = r->checksum && (taken & PVS_OFFLOAD_CSUM) == 0;
    pieces->source = (struct pvs_cursor){ .seg = frame->seg, .n = frame->n_seg };
    if (r->checksum && !pieces->sum) {
        pieces->header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        pieces->header.csum_start = r->csum_start;
        pieces->header.csum_offset = r->csum_offset;
    }
    if (r->gso_type != VIRTIO_NET_HDR_GSO_NONE) {
        uint8_t needs = needed(r->gso_type, frame->parsed.ethertype);
        pieces->gso_size = r->gso_size;
        if ((taken & needs) != needs)
            return begin_segments(pieces);
        pieces->header.gso_type = r->gso_type;
        pieces->header.gso_size = r->gso_size;
        pieces->header.hdr_len = r->hdr_len;
    } else if (pieces->sum) {
        memcpy(pieces->scratch, frame->head, frame->head_len);
        pieces->head = pieces->scratch;
    }
    return first == 0;
}

/* The bytes of one segment of a GSO frame, at most. */
static uint32_t
segment_len(const struct pvs_request *r)
{
    return (uint32_t)r->hdr_len + r->gso_size;
}

static bool
is_tcp(const struct pvs_request *r)
{
    return r->gso_type != VIRTIO_NET_HDR_GSO_NONE && r->csum_offset == TCP_CSUM;
}

void
pvs_pieces_begin_within(struct pvs_pieces *pieces, const struct pvs_frame *frame, uint32_t room)
{
    const struct pvs_request *r = &frame->request;

    pvs_pieces_begin(pieces, frame, 0, 0);
    /* one that has waited may fit no more, since the path has shrunk: the kernel refuses what is made of it */
    if (is_tcp(r) && segment_len(r) > room && r->hdr_len < room) {
        pieces->gso_size = (uint16_t)(room - r->hdr_len);
        begin_segments(pieces);
    }
}

bool
pvs_pieces_fit(const struct pvs_frame *frame, int32_t longer, uint32_t room)
{
    const struct pvs_request *r = &frame->request;
    uint32_t len = r->gso_type != VIRTIO_NET_HDR_GSO_NONE ? segment_len(r) : frame->len;
    uint32_t headers = (uint32_t)(r->hdr_len + longer);

    if (len + (uint32_t)longer <= room)
        return true;
    return is_tcp(r) && headers < room && (frame->len - r->hdr_len) / (room - headers) < PVS_MAX_PIECES;
}

/* Turn the pseudo header's sum in the head into the checksum of all of it. `payload`: the sum of what isn't in the head. */
static void
fill_checksum(struct pvs_pieces *pieces, const struct pvs_sum *payload)
{
    const struct pvs_request *r = &pieces->frame->request;
    struct pvs_sum sum = { 0 };

    pvs_sum_add(&sum, pieces->scratch + r->csum_start, pieces->head_len - r->csum_start);
    sum.words += payload->words;
    uint16_t checksum = (uint16_t)~pvs_sum_fold(&sum);
    if (checksum == 0 && r->csum_offset == UDP_CSUM)
        checksum = 0xffff; /* RFC 768: 0 would say that there is none */
    memcpy(pieces->scratch + r->csum_start + r->csum_offset, &checksum, sizeof checksum);
}

uint32_t
pvs_piece_parts(struct pvs_pieces *pieces, struct iovec *part, uint32_t cap)
{
    struct pvs_cursor c = pieces->source;
    uint32_t n = 0;

    for (uint32_t left = pieces->len - pieces->head_len; left != 0;) {
        uint32_t room = c.seg->len - c.offset, len = room < left ? room : left;
        if (n == cap)
            return cap + 1;
        part[n++] = (struct iovec){ .iov_base = c.seg->base + c.offset, .iov_len = len };
        advance(&c, len);
        left -= len;
    }
    pieces->source = c;
    if (pieces->sum) {
        struct pvs_sum sum = { .odd = ((pieces->head_len - pieces->frame->request.csum_start) & 1) != 0 };
        for (uint32_t i = 0; i < n; i++)
            pvs_sum_add(&sum, part[i].iov_base, (uint32_t)part[i].iov_len);
        fill_checksum(pieces, &sum);
    }
    return n;
}

bool
pvs_pieces_next(struct pvs_pieces *pieces)
{
    if (++pieces->next >= pieces->n)
        return false;
    make_segment(pieces);
    return true;
}

void
pvs_piece_write(struct pvs_pieces *pieces, struct pvs_cursor *to, uint32_t header_len)
{
    uint32_t head_len = pieces->head_len;
    struct pvs_cursor front = *to;

    if (pieces->sum) { /* the payload comes first: its sum belongs into the head */
        struct pvs_sum sum = { .odd = ((head_len - pieces->frame->request.csum_start) & 1) != 0 };
        skip(to, header_len + head_len);
        copy(to, &pieces->source, pieces->len - head_len, &sum);
        fill_checksum(pieces, &sum);
        to = &front;
    }
    pvs_cursor_write(to, (const uint8_t *)&pieces->header, header_len);
    pvs_cursor_write(to, pieces->head, head_len);
    if (!pieces->sum)
        copy(to, &pieces->source, pieces->len - head_len, NULL);
}
