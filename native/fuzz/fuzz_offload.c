/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_offload.c - libFuzzer target: arbitrary bytes as virtio-net header and frame, into the check and into every way to
 * finish what it lets through.
 *
 * Input: the header (12 bytes), what the sender may ask for, what the receiver takes, how the tail and the destinations are
 * cut, where to resume; then the frame. Nothing may crash; pieces are as long as they say and carry the payload in order;
 * every length and checksum in them is right by a sum that shares no code with the engine.
 */
#include <stdlib.h>

#include "offload.h"
#include "parse.h"
#include "tests/scatter.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    struct virtio_net_hdr header;
    uint8_t allowed, taken, cut_in[2], cut_out[2], resume, legacy;
};

static uint8_t written[sizeof(struct virtio_net_hdr) + PVS_MAX_FRAME], resumed[sizeof written];

static void
require(bool truth)
{
    if (!truth)
        abort();
}

static uint32_t
be16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

/* RFC 1071 to the letter, but without a complement; never 0 unless all is. */
static uint32_t
simple_sum(const uint8_t *bytes, uint32_t len)
{
    uint32_t sum = 0;
    for (uint32_t i = 0; i < len; i++) {
        sum += i % 2 == 0 ? (uint32_t)bytes[i] << 8 : bytes[i];
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

/* The checksum field of a piece: made of the pseudo header with its own length, and finished or not. */
static void
check_checksum(const struct pvs_frame *frame, const uint8_t *original, uint8_t *piece, uint32_t len, bool cut,
               bool finished)
{
    const struct pvs_request *r = &frame->request;
    uint32_t at = r->csum_start + r->csum_offset, found = be16(piece + at), field = be16(original + at);

    if (cut) {
        field = (field + 2 * 65535 - (frame->len - r->csum_start) + (len - r->csum_start)) % 65535;
        if (field == 0)
            field = 65535;
    }
    if (finished) {
        piece[at] = (uint8_t)(field >> 8);
        piece[at + 1] = (uint8_t)field;
        field = 0xffff & ~simple_sum(piece + r->csum_start, len - r->csum_start);
        if (field == 0 && r->csum_offset == 6)
            field = 0xffff;
    }
    require(found == field);
}

static void
check_lengths(const struct pvs_frame *frame, const uint8_t *original, const uint8_t *piece, uint32_t len,
              uint32_t index)
{
    const struct pvs_request *r = &frame->request;
    const uint8_t *ip = piece + frame->parsed.l3_offset;
    uint32_t l3_len = len - frame->parsed.l3_offset;

    if (frame->parsed.ethertype == 0x86dd) {
        require(be16(ip + 4) == l3_len - 40);
    } else {
        require(be16(ip + 2) == l3_len);
        require(be16(ip + 4) == ((be16(original + frame->parsed.l3_offset + 4) + index) & 0xffff));
        require(simple_sum(ip, (ip[0] & 0xfU) * 4) == 0xffff);
    }
    if (r->gso_type == VIRTIO_NET_HDR_GSO_UDP_L4)
        require(be16(piece + r->csum_start + 4) == len - r->csum_start);
}

static void
check_request(const struct pvs_frame *frame)
{
    const struct pvs_request *r = &frame->request;

    require(frame->head_len <= PVS_HEAD_MAX && frame->head_len <= frame->len);
    require(r->checksum || r->gso_type == VIRTIO_NET_HDR_GSO_NONE);
    if (r->checksum)
        require(r->csum_start >= PVS_ETH_HLEN && r->csum_start + r->csum_offset + 2 <= frame->head_len);
    if (r->gso_type == VIRTIO_NET_HDR_GSO_NONE)
        require(r->gso_size == 0 && r->hdr_len == 0);
    else
        require(r->gso_size != 0 && r->hdr_len > r->csum_start && r->hdr_len <= frame->head_len &&
                frame->len - r->hdr_len > r->gso_size);
}

static uint32_t
write_piece(struct pvs_pieces *pieces, const struct input *in, uint8_t *to)
{
    uint32_t header_len = in->legacy & 1 ? VIRTIO_NET_HDR_LEGACY : sizeof in->header, len = header_len + pieces->len;
    const uint16_t cut[] = { in->cut_out[0], in->cut_out[1] };
    struct scatter room = scatter_make(len, cut, 2);
    struct pvs_cursor c = { .seg = room.seg, .n = room.n };

    pvs_piece_write(pieces, &c, header_len);
    require(c.n == 0 && c.offset == 0);
    scatter_read(&room, to);
    scatter_free(&room);
    require(memcmp(to, &pieces->header, header_len) == 0);
    return header_len;
}

static void
check_pieces(const struct pvs_frame *frame, const struct input *in, const uint8_t *original)
{
    struct pvs_pieces pieces, again;
    const struct pvs_request *r = &frame->request;

    require(pvs_pieces_begin(&pieces, frame, in->taken, 0));
    uint32_t n = pieces.n, i = 0, resume = in->resume % n, headers = n > 1 ? r->hdr_len : frame->len;
    require(n == 1 || n == (frame->len - headers + r->gso_size - 1) / r->gso_size);
    require(n <= PVS_MAX_PIECES);
    do {
        require(pieces.next == i);
        uint8_t *piece = written + write_piece(&pieces, in, written);
        if (i == resume) {
            require(pvs_pieces_begin(&again, frame, in->taken, i) && again.len == pieces.len && again.n == n);
            uint8_t *twin = resumed + write_piece(&again, in, resumed);
            require(memcmp(written, resumed, (size_t)(piece - written) + pieces.len) == 0 &&
                    twin - resumed == piece - written);
        }
        require(n == 1 || memcmp(piece + headers, original + headers + i * r->gso_size, pieces.len - headers) == 0);
        require(pieces.len == (i + 1 < n ? headers + r->gso_size : n == 1 ? frame->len : frame->len - i * r->gso_size));
        if (n > 1)
            check_lengths(frame, original, piece, pieces.len, i);
        bool finished = (pieces.header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0;
        require(finished == (!r->checksum || (in->taken & PVS_OFFLOAD_CSUM) == 0));
        if (r->checksum)
            check_checksum(frame, original, piece, pieces.len, n > 1, finished);
        if (n == 1 && r->checksum) /* the field has been looked at */
            memcpy(piece + r->csum_start + r->csum_offset, original + r->csum_start + r->csum_offset, 2);
        require(n > 1 || memcmp(piece, original, frame->len) == 0);
        i++;
    } while (pvs_pieces_next(&pieces));
    require(i == n && !pvs_pieces_begin(&pieces, frame, in->taken, n));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct scattered_frame f;
    struct input in;

    if (size < sizeof in || size - sizeof in > PVS_MAX_FRAME)
        return 0;
    memcpy(&in, data, sizeof in);
    data += sizeof in;
    const uint16_t cut[] = { in.cut_in[0], in.cut_in[1] };
    scattered_frame_make(&f, data, (uint32_t)(size - sizeof in), cut, 2);
    if (pvs_parse(&f.frame) && pvs_offload_check(&f.frame, &in.header, in.allowed)) {
        check_request(&f.frame);
        check_pieces(&f.frame, &in, data);
    }
    scattered_frame_free(&f);
    return 0;
}
