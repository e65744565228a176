/* SPDX-License-Identifier: Apache-2.0 */
/* frame.c - see frame.h. */
#include "frame.h"

#include <stddef.h>

bool
pvs_frame_pull(struct pvs_frame *frame, uint32_t len)
{
    if (len > frame->len || len > PVS_HEAD_MAX)
        return false;
    if (len <= frame->head_len)
        return true;
    struct pvs_cursor c = { .seg = frame->seg, .n = frame->n_seg };
    pvs_cursor_read(&c, frame->head + frame->head_len, len - frame->head_len);
    frame->head_len = (uint16_t)len;
    frame->seg += frame->n_seg - c.n;
    frame->n_seg = c.n;
    if (c.n != 0) {
        frame->seg->base += c.offset;
        frame->seg->len -= c.offset;
    }
    return true;
}

void
pvs_frame_write(const struct pvs_frame *frame, struct pvs_cursor *c)
{
    pvs_cursor_write(c, frame->head, frame->head_len);
    for (uint32_t i = 0; i < frame->n_seg; i++)
        pvs_cursor_write(c, frame->seg[i].base, frame->seg[i].len);
}

/* Keep the first `len` bytes; the head stays whole up to there. */
static uint32_t
truncate_to(struct pvs_frame *frame, uint32_t len, struct pvs_seg *seg)
{
    uint32_t tail = len > frame->head_len ? len - frame->head_len : 0, n = 0;

    for (; tail != 0; n++) {
        seg[n] = frame->seg[n];
        if (seg[n].len > tail)
            seg[n].len = tail;
        tail -= seg[n].len;
    }
    frame->seg = seg;
    frame->n_seg = n;
    frame->len = len;
    if (frame->head_len > len)
        frame->head_len = (uint16_t)len;
    frame->request = (struct pvs_request){ 0 };
    return n;
}

uint32_t
pvs_frame_edit(struct pvs_frame *to, const struct pvs_frame *from, const struct pvs_edit *edit, struct pvs_seg *seg)
{
    uint32_t kept = PVS_TAG_OFFSET + edit->cut;
    uint32_t at = PVS_TAG_OFFSET + (edit->push ? PVS_VLAN_HLEN : 0);
    uint16_t longer = (uint16_t)(at - kept); /* modulo 2^16: shorter as well */

    memcpy(to, from, offsetof(struct pvs_frame, head));
    memcpy(to->head, from->head, PVS_TAG_OFFSET);
    if (edit->push) {
        uint32_t tag = __builtin_bswap32(edit->tag);
        memcpy(to->head + PVS_TAG_OFFSET, &tag, sizeof tag);
    }
    pvs_copy(to->head + at, from->head + kept, from->head_len - kept);
    to->head_len = (uint16_t)(to->head_len + longer);
    to->len = to->len + at - kept;
    to->parsed.l3_offset = (uint16_t)(to->parsed.l3_offset + longer);
    if (to->request.checksum)
        to->request.csum_start = (uint16_t)(to->request.csum_start + longer);
    if (to->request.gso_type != VIRTIO_NET_HDR_GSO_NONE)
        to->request.hdr_len = (uint16_t)(to->request.hdr_len + longer);
    return edit->keep != 0 ? truncate_to(to, edit->keep, seg) : 0;
}

void
pvs_frame_from_piece(struct pvs_frame *to, const struct pvs_frame *from, const uint8_t *head, uint32_t head_len,
                     uint32_t len)
{
    memcpy(to, from, offsetof(struct pvs_frame, head));
    to->len = len;
    to->head_len = (uint16_t)head_len;
    to->request = (struct pvs_request){ 0 };
    pvs_copy(to->head, head, head_len);
}

uint32_t
pvs_frame_segs(struct pvs_seg *seg, const struct iovec *part, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        seg[i] = (struct pvs_seg){ .base = part[i].iov_base, .len = (uint32_t)part[i].iov_len };
    return n;
}

void
pvs_frame_from_bytes(struct pvs_frame *frame, struct pvs_seg *tail, const uint8_t *bytes, uint32_t len)
{
    uint16_t head_len = (uint16_t)(len < PVS_HEAD ? len : PVS_HEAD);

    *tail = (struct pvs_seg){ .base = (uint8_t *)(uintptr_t)(bytes + head_len), .len = len - head_len };
    frame->seg = tail;
    frame->n_seg = len > head_len;
    frame->len = len;
    frame->head_len = head_len;
    frame->malformed = false;
    frame->pair = 0;
    frame->vid = PVS_UNMAPPED;
    frame->vtep = 0;
    frame->tun_id = 0;
    frame->request = (struct pvs_request){ 0 };
    memcpy(frame->head, bytes, head_len);
}
