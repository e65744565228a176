/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the lean path does with a frame, for both formats: inlined into each of their loops, with level and form known
 * there. Private to generate_split.c and generate_packed.c.
 *
 * The short forms keep the block of the next frame in registers, where going on to the one after is two additions.
 */
#ifndef PVD_GENERATE_LEAN_H
#define PVD_GENERATE_LEAN_H

#include "generate.h"

#define PVD_BLOCK 64u /* bytes of the block without headers behind the EtherType */

/* The block of a frame: MACs, EtherType, run and sequence number; and the pattern's first words. Of a frame with UDP its 64
 * bytes: `pattern` ends with run and sequence number. */
struct pvd_block {
    pvd_v4 head;
    pvd_v4 pattern;
    uint32_t dst; /* which MACs */
    uint32_t src;
    uint32_t tuple;
};

pvd_inline struct pvd_block
pvd_block_of_udp(const struct pvd_spec *s, const struct pvd_cursor *c)
{
    uint64_t behind;
    memcpy(&behind, s->head + PVD_UDP_WORD_AT + 8, sizeof(behind));
    return (struct pvd_block){ .head = *PVD_V4(s->head),
                               .pattern = { pvd_udp_word(s, c->tuple), behind, s->run, c->seq },
                               .tuple = c->tuple };
}

pvd_inline struct pvd_block
pvd_block_of(const struct pvd_spec *s, const struct pvd_cursor *c)
{
    if (s->form == PVD_FORM_UDP) {
        return pvd_block_of_udp(s, c);
    }
    uint64_t word = pvd_pattern(c->seq);
    uint64_t head[2];
    pvd_addresses(s, c->dst, c->src, head);
    return (struct pvd_block){ .head = { head[0], head[1], s->run, c->seq },
                               .pattern = { word, word + PVD_WORD_FACTOR, word + 2 * PVD_WORD_FACTOR,
                                            word + 3 * PVD_WORD_FACTOR },
                               .dst = c->dst,
                               .src = c->src };
}

pvd_inline void
pvd_block_next(struct pvd_block *b, const struct pvd_spec *s, const unsigned form)
{
    if ((form & PVD_FORM_UDP) != 0) {
        b->tuple = b->tuple + 1 < s->n_tuples ? b->tuple + 1 : 0;
        b->pattern[0] = pvd_udp_word(s, b->tuple);
        b->pattern[3]++;
        return;
    }
    b->head += (pvd_v4){ 0, 0, 0, 1 };
    b->pattern += (pvd_v4){ PVD_SEQ_FACTOR, PVD_SEQ_FACTOR, PVD_SEQ_FACTOR, PVD_SEQ_FACTOR };
    if ((form & PVD_FORM_ROTATED) != 0) {
        uint64_t head[2];
        b->dst = b->dst + 1 < s->n_dst ? b->dst + 1 : 0;
        b->src = b->src + 1 < s->n_src ? b->src + 1 : 0;
        pvd_addresses(s, b->dst, b->src, head);
        b->head[0] = head[0];
        b->head[1] = head[1];
    }
}

/* Go on by `n` frames that were in blocks. */
pvd_inline void
pvd_block_end(const struct pvd_block *b, struct pvd_cursor *c, uint32_t n)
{
    c->seq += n;
    c->dst = b->dst;
    c->src = b->src;
    c->tuple = b->tuple;
}

/* ---- Sending ---- */

struct pvd_writer {
    struct pvd_flow *f;
    struct pvd_block block;
};

pvd_inline struct pvd_writer
pvd_writer_begin(struct pvd_flow *f)
{
    return (struct pvd_writer){ .f = f, .block = pvd_block_of(&f->spec, &f->next) };
}

/* Net header and frame number `f->sent + i`, at the beginning of a transmit buffer. */
pvd_inline void
pvd_writer_put(struct pvd_writer *w, uint8_t *p, uint32_t i, const unsigned level, const unsigned form)
{
    struct pvd_flow *f = w->f;
    const struct pvd_spec *s = &f->spec;
    if (form == PVD_FORM_ANY) {
        memcpy(p, s->header, PVD_MAX_HDR_LEN);
        pvd_frame_write(s, &f->next, s->paced ? pvd_due(f, f->sent + i) : 0, p + PVD_MAX_HDR_LEN);
        pvd_cursor_next(s, &f->next);
        return;
    }
    memset(p, 0, PVD_MAX_HDR_LEN);
    p += PVD_MAX_HDR_LEN;
    if (level == 0) {
        return;
    }
    *PVD_V4(p) = w->block.head;
    *PVD_V4(p + 32) = w->block.pattern;
    if ((form & PVD_FORM_PACED) != 0) {
        uint64_t due = pvd_due(f, f->sent + i);
        memcpy(p + 32, &due, sizeof(due));
    }
    if (level > 1 && s->len > PVD_BLOCK) {
        s->fill(p + PVD_BLOCK, s->len - PVD_BLOCK, w->block.pattern[3] + PVD_WORD_FACTOR);
    }
    pvd_block_next(&w->block, s, form);
}

pvd_inline void
pvd_writer_end(struct pvd_writer *w, uint32_t n, const unsigned form)
{
    if (form != PVD_FORM_ANY) {
        pvd_block_end(&w->block, &w->f->next, n);
    }
    w->f->sent += n;
}

/* ---- Receiving ---- */

struct pvd_reader {
    struct pvd_receiver *r;
    struct pvd_block block;
    pvd_v4 mask;
    uint32_t good; /* frames as expected, not yet counted */
};

pvd_inline void
pvd_reader_begin(struct pvd_reader *e, struct pvd_receiver *r)
{
    e->r = r;
    e->block = pvd_block_of(&r->flow->spec, &r->next);
    e->mask = r->flow->spec.mask;
    if (r->flow->spec.form == PVD_FORM_UDP)
        memset(&e->mask, 0xff, sizeof e->mask);
    e->good = 0;
}

/* Whether the net header is the one that was sent, but for num_buffers, the last two of its bytes: 1. */
pvd_inline bool
pvd_header_seen(const struct pvd_spec *s, const uint8_t *p, const unsigned form)
{
    uint64_t first = 0, there;
    uint32_t rest = 0, rest_there;
    if (form == PVD_FORM_ANY) {
        memcpy(&first, s->header, 8);
        memcpy(&rest, s->header + 8, 4);
    }
    memcpy(&there, p, 8);
    memcpy(&rest_there, p + 8, 4);
    return there == first && rest_there == (rest | 1u << 16);
}

/* Whether a receive buffer holds net header and frame that are expected next, all in one. */
pvd_inline bool
pvd_reader_sees(struct pvd_reader *e, const uint8_t *p, const unsigned level, const unsigned form)
{
    const struct pvd_spec *s = &e->r->flow->spec;
    if (!pvd_header_seen(s, p, form)) {
        return false;
    }
    p += PVD_MAX_HDR_LEN;
    if (form == PVD_FORM_ANY) {
        return pvd_frame_accept(e->r, p);
    }
    if (level == 0) {
        uint64_t run;
        memcpy(&run, p + PVD_PLAIN_BODY, sizeof(run));
        return run == e->block.head[2];
    }
    pvd_v4 wrong = *PVD_V4(p) ^ e->block.head;
    wrong |= (*PVD_V4(p + 32) ^ e->block.pattern) & e->mask;
    if (((wrong[0] | wrong[2]) | (wrong[1] | wrong[3])) != 0) {
        return false;
    }
    if (level > 1 && s->len > PVD_BLOCK &&
        !s->intact(p + PVD_BLOCK, s->len - PVD_BLOCK, e->block.pattern[3] + PVD_WORD_FACTOR)) {
        return false;
    }
    if ((form & PVD_FORM_PACED) != 0) {
        uint64_t due;
        memcpy(&due, p + 32, sizeof(due));
        pvd_frame_latency(e->r, due);
    }
    pvd_block_next(&e->block, s, form);
    return true;
}

/* Count what was seen; the reader must begin anew then. */
pvd_inline void
pvd_reader_end(struct pvd_reader *e, const unsigned form)
{
    struct pvd_receiver *r = e->r;
    r->q->counters.frames += e->good;
    r->q->counters.bytes += (uint64_t)e->good * r->flow->spec.len;
    if (form != PVD_FORM_ANY) {
        r->received += e->good;
        pvd_block_end(&e->block, &r->next, e->good);
    }
}

/* The clock, where frames tell when they were due. */
pvd_inline void
pvd_reader_time(const struct pvd_receiver *r, const unsigned form)
{
    if ((form & (PVD_FORM_PACED | PVD_FORM_ANY)) != 0 && r->flow->spec.paced) {
        r->flow->gen->now = pvd_gen_now();
    }
}

/* A form of a format's send and receive. */
#define PVD_FORM(name, level, form, attributes)                            \
    attributes static uint32_t send_##name(struct pvd_flow *f, uint32_t n) \
    {                                                                      \
        return send(f, n, level, form);                                    \
    }                                                                      \
    attributes static bool receive_##name(struct pvd_receiver *r)          \
    {                                                                      \
        return receive(r, level, form);                                    \
    }

/* All of them; those that live on wide registers a second time for AVX2. */
#define PVD_SHORT_FORMS(suffix, attributes)                    \
    PVD_FORM(l1##suffix, 1, 0, attributes)                     \
    PVD_FORM(l2##suffix, 2, 0, attributes)                     \
    PVD_FORM(rotated##suffix, 1, PVD_FORM_ROTATED, attributes) \
    PVD_FORM(paced##suffix, 1, PVD_FORM_PACED, attributes)     \
    PVD_FORM(udp##suffix, 1, PVD_FORM_UDP, attributes)

#if defined(__x86_64__)
#define PVD_WIDE     __attribute__((target("avx2")))
#define PVD_HAS_WIDE __builtin_cpu_supports("avx2")
#else
#define PVD_WIDE
#define PVD_HAS_WIDE 0
#endif

#define PVD_FORMS                    \
    PVD_FORM(l0, 0, 0, )             \
    PVD_FORM(any, 2, PVD_FORM_ANY, ) \
    PVD_SHORT_FORMS(, )              \
    PVD_SHORT_FORMS(_wide, PVD_WIDE)

#define PVD_SHORT_FORM(function, suffix, spec)                     \
    ((spec)->form == PVD_FORM_ROTATED ? function##_rotated##suffix \
     : (spec)->form == PVD_FORM_PACED ? function##_paced##suffix   \
     : (spec)->form == PVD_FORM_UDP   ? function##_udp##suffix     \
     : (spec)->level == 1             ? function##_l1##suffix      \
                                      : function##_l2##suffix)

/* The form that a flow needs. */
#define PVD_CHOOSE(function, spec)                                        \
    ((spec)->form == PVD_FORM_ANY ? function##_any                        \
     : (spec)->level == 0         ? function##_l0                         \
     : PVD_HAS_WIDE               ? PVD_SHORT_FORM(function, _wide, spec) \
                                  : PVD_SHORT_FORM(function, , spec))

#endif
