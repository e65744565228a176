/* SPDX-License-Identifier: Apache-2.0 */
/* frame.c - see frame.h. */
#include "frame.h"

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
    frame->request = (struct pvs_request){ 0 };
    memcpy(frame->head, bytes, head_len);
}
