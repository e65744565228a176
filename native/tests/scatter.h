/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scatter.h - bytes in segments as a guest would lay them out: for the tests, the fuzzer and the tool of offload.h.
 *
 * How it works: segments have the lengths of a list, over and over until all bytes have a place. Each is memory of its
 * own, so AddressSanitizer sees an access beyond any of them.
 */
#ifndef PVS_SCATTER_H
#define PVS_SCATTER_H

#include <stdlib.h>

#include "frame.h"

struct scatter {
    struct pvs_seg *seg;
    uint32_t n;
};

/* `cut` may hold zeros: empty segments; no list, or one of zeros alone: all in one segment. */
static inline struct scatter
scatter_make(uint32_t len, const uint16_t *cut, uint32_t n_cut)
{
    uint32_t round = 0, n = 0;
    for (uint32_t i = 0; i < n_cut; i++)
        round += cut[i];
    uint32_t most = round == 0 ? 1 : (len / round + 1) * n_cut;
    struct scatter s = { .seg = malloc(most * sizeof *s.seg) };
    while (len != 0) {
        uint32_t part = len;
        if (round != 0 && n_cut != 0 && cut != NULL && cut[n % n_cut] < part)
            part = cut[n % n_cut];
        s.seg[n++] = (struct pvs_seg){ .base = malloc(part), .len = part };
        len -= part;
    }
    s.n = n;
    return s;
}

static inline void
scatter_free(struct scatter *s)
{
    for (uint32_t i = 0; i < s->n; i++)
        free(s->seg[i].base);
    free(s->seg);
}

static inline void
scatter_read(const struct scatter *s, uint8_t *to)
{
    for (uint32_t i = 0; i < s->n; to += s->seg[i++].len)
        memcpy(to, s->seg[i].base, s->seg[i].len);
}

/* A frame as the switch gathers it. Its tail is `tail`, which is freed by its maker; `lent` is a copy that pull may change. */
struct scattered_frame {
    struct pvs_frame frame;
    struct scatter tail;
    struct pvs_seg *lent;
};

static inline void
scattered_frame_make(struct scattered_frame *f, const uint8_t *bytes, uint32_t len, const uint16_t *cut, uint32_t n_cut)
{
    uint32_t head_len = len < PVS_HEAD ? len : PVS_HEAD;

    f->tail = scatter_make(len - head_len, cut, n_cut);
    f->lent = malloc((f->tail.n + 1) * sizeof *f->lent);
    memcpy(f->lent, f->tail.seg, f->tail.n * sizeof *f->lent);
    memset(&f->frame, 0, sizeof f->frame);
    f->frame.seg = f->lent;
    f->frame.n_seg = f->tail.n;
    f->frame.len = len;
    f->frame.head_len = (uint16_t)head_len;
    memcpy(f->frame.head, bytes, head_len);
    for (uint32_t i = 0, at = head_len; i < f->tail.n; at += f->tail.seg[i++].len)
        memcpy(f->tail.seg[i].base, bytes + at, f->tail.seg[i].len);
}

static inline void
scattered_frame_free(struct scattered_frame *f)
{
    scatter_free(&f->tail);
    free(f->lent);
}

#endif
