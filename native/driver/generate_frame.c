/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a generated frame holds, and whether a received one holds it. See generate.h for the layout.
 */
#include "generate.h"

#include <errno.h>

#define DEFAULT_GSO_SIZE 1448u
#define MAX_TUPLES       1000000u

/* ---- Patterns ---- */

pvd_inline void
fill(uint8_t *to, uint32_t n, uint64_t word)
{
    const uint64_t f = PVD_WORD_FACTOR;
    pvd_v4 v = { word, word + f, word + 2 * f, word + 3 * f };
    const pvd_v4 step = { 4 * f, 4 * f, 4 * f, 4 * f };
    for (; n >= 32; n -= 32, to += 32) {
        *PVD_V4(to) = v;
        v += step;
    }
    word = v[0];
    for (; n >= 8; n -= 8, to += 8, word += f) {
        memcpy(to, &word, 8);
    }
    memcpy(to, &word, n);
}

pvd_inline bool
intact(const uint8_t *from, uint32_t n, uint64_t word)
{
    const uint64_t f = PVD_WORD_FACTOR;
    pvd_v4 v = { word, word + f, word + 2 * f, word + 3 * f };
    const pvd_v4 step = { 4 * f, 4 * f, 4 * f, 4 * f };
    pvd_v4 wrong = { 0 };
    for (; n >= 32; n -= 32, from += 32) {
        wrong |= *PVD_V4(from) ^ v;
        v += step;
    }
    uint64_t differs = wrong[0] | wrong[1] | wrong[2] | wrong[3];
    word = v[0];
    for (; n >= 8; n -= 8, from += 8, word += f) {
        uint64_t there;
        memcpy(&there, from, 8);
        differs |= there ^ word;
    }
    return differs == 0 && memcmp(from, &word, n) == 0;
}

static void
fill_any(uint8_t *to, uint32_t n, uint64_t word)
{
    fill(to, n, word);
}

static bool
intact_any(const uint8_t *from, uint32_t n, uint64_t word)
{
    return intact(from, n, word);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void
fill_avx2(uint8_t *to, uint32_t n, uint64_t word)
{
    fill(to, n, word);
}

__attribute__((target("avx2"))) static bool
intact_avx2(const uint8_t *from, uint32_t n, uint64_t word)
{
    return intact(from, n, word);
}
#endif

static void
choose_patterns(struct pvd_spec *s)
{
    s->fill = fill_any;
    s->intact = intact_any;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        s->fill = fill_avx2;
        s->intact = intact_avx2;
    }
#endif
}

/* Whether a piece that begins `at` bytes behind the pattern's beginning is intact. */
static bool
piece_intact(const struct pvd_spec *s, const uint8_t *piece, uint32_t n, uint32_t at, uint64_t first)
{
    uint64_t word = first + at / 8 * PVD_WORD_FACTOR;
    uint32_t skip = at % 8;
    if (skip > 0) {
        uint32_t part = 8 - skip < n ? 8 - skip : n;
        if (memcmp(piece, (const uint8_t *)&word + skip, part) != 0) {
            return false;
        }
        piece += part;
        n -= part;
        word += PVD_WORD_FACTOR;
    }
    return s->intact(piece, n, word);
}

/* ---- Headers ---- */

/* Which of the 32 bytes from `at` on there are, as bits. */
static void
make_mask(pvd_v4 *mask, uint32_t len, uint32_t at)
{
    uint8_t bytes[sizeof(*mask)] = { 0 };
    for (uint32_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = at + i < len ? 0xff : 0;
    }
    memcpy(mask, bytes, sizeof(bytes));
}

static bool
may_receive_gso(const struct pvd_way *way)
{
    const unsigned csum = 0, tso4 = 11; /* what a sender needs; receivers the features of the same names */
    bool may = pvd_has(way->tx, csum) && pvd_has(way->tx, tso4);
    for (uint32_t i = 0; i < way->n_rx; i++) {
        may = may && pvd_has(way->rx[i], PVD_F_GUEST_CSUM) && pvd_has(way->rx[i], PVD_F_GUEST_TSO4);
    }
    return may;
}

static int
spec_check(const struct pvd_spec *s, const struct pvd_gen_conf *conf, const struct pvd_way *way)
{
    bool flood = (conf->flags & PVD_GEN_FLOOD) != 0;
    uint32_t stamp_end = s->body + PVD_PATTERN_AT + 8;
    if (s->len < PVD_GEN_MIN_LEN || s->level > 2 || (!flood && s->n_dst % way->n_rx != 0)) {
        return -EINVAL;
    }
    if (s->paced && (s->level == 0 || s->len < stamp_end)) {
        return -EINVAL;
    }
    if (s->udp && (s->gso || s->n_tuples > MAX_TUPLES || s->len < s->body + PVD_PATTERN_AT || s->len > UINT16_MAX)) {
        return -EINVAL;
    }
    if (s->gso && (s->len < PVD_BLOCK_MAX || s->len > UINT16_MAX + PVD_ETHERTYPE_AT + 2 || !may_receive_gso(way))) {
        return -EINVAL;
    }
    return 0;
}

static void
read_mac(const uint8_t *mac, uint64_t *high, uint32_t *low)
{
    *high = 0;
    memcpy(high, mac, 2);
    memcpy(low, mac + 2, 4);
    *low = __builtin_bswap32(*low);
}

static void
choose_form(struct pvd_spec *s)
{
    bool rotated = s->n_dst > 1 || s->n_src > 1;
    s->form = rotated * PVD_FORM_ROTATED | s->paced * PVD_FORM_PACED | s->udp * PVD_FORM_UDP;
    bool udp_alone = s->form == PVD_FORM_UDP && s->len == PVD_UDP_BODY + PVD_PATTERN_AT;
    if (s->gso || (s->udp && !udp_alone) || s->streams > 1 || (rotated && s->paced) ||
        (s->form != 0 && s->level != 1)) {
        s->form = PVD_FORM_ANY;
    }
}

int
pvd_spec_init(struct pvd_spec *s, const struct pvd_gen_conf *conf, const struct pvd_way *way, uint64_t run)
{
    bool flood = (conf->flags & PVD_GEN_FLOOD) != 0;
    bool gso = (conf->flags & PVD_GEN_GSO) != 0, udp = conf->n_tuples != 0;
    *s = (struct pvd_spec){ .len = conf->len,
                            .level = conf->level,
                            .body = gso   ? PVD_GSO_BODY
                                    : udp ? PVD_UDP_BODY
                                          : PVD_PLAIN_BODY,
                            .streams = flood ? 1 : way->n_rx,
                            .gso = gso,
                            .udp = udp,
                            .paced = conf->rate_pps != 0,
                            .run = run,
                            .n_dst = conf->n_dst != 0 ? conf->n_dst : 1,
                            .n_src = conf->n_src != 0 ? conf->n_src : 1,
                            .n_tuples = udp ? conf->n_tuples : 1 };
    int rc = spec_check(s, conf, way);
    if (rc != 0) {
        return rc;
    }
    choose_form(s);
    read_mac(way->dst, &s->dst_high, &s->dst_low);
    read_mac(way->src, &s->src_high, &s->src_low);
    memcpy(s->head, way->dst, 6);
    memcpy(s->head + 6, way->src, 6);
    s->head[PVD_ETHERTYPE_AT] = 0x88;
    s->head[PVD_ETHERTYPE_AT + 1] = 0xb5;
    make_mask(&s->mask, s->len, s->body + PVD_PATTERN_AT);
    if (s->paced) {
        s->mask[0] = 0;
    }
    if (gso) {
        pvd_head_tcp(s, conf->gso_size != 0 ? conf->gso_size : DEFAULT_GSO_SIZE);
    }
    if (udp) {
        pvd_head_udp(s);
    }
    choose_patterns(s);
    return 0;
}

/* ---- Which frame ---- */

void
pvd_cursor_set(const struct pvd_spec *s, struct pvd_cursor *c, uint32_t stream, uint64_t seq)
{
    uint64_t i = seq * s->streams + stream;
    *c = (struct pvd_cursor){ .seq = seq,
                              .stream = stream,
                              .dst = (uint32_t)(i % s->n_dst),
                              .src = (uint32_t)(i % s->n_src),
                              .tuple = (uint32_t)(i % s->n_tuples) };
}

void
pvd_cursor_next(const struct pvd_spec *s, struct pvd_cursor *c)
{
    c->dst = c->dst + 1 < s->n_dst ? c->dst + 1 : 0;
    c->src = c->src + 1 < s->n_src ? c->src + 1 : 0;
    c->tuple = c->tuple + 1 < s->n_tuples ? c->tuple + 1 : 0;
    if (++c->stream == s->streams) {
        c->stream = 0;
        c->seq++;
    }
}

void
pvd_cursor_next_in_stream(const struct pvd_spec *s, struct pvd_cursor *c)
{
    if (s->streams > 1) {
        pvd_cursor_set(s, c, c->stream, c->seq + 1);
    } else {
        pvd_cursor_next(s, c);
    }
}

/* ---- Writing ---- */

/* The pattern's first four words. */
static void
make_pattern(const struct pvd_spec *s, uint64_t seq, uint64_t stamp, uint64_t words[4])
{
    uint64_t word = pvd_pattern(seq);
    for (uint64_t k = 0; k < 4; k++) {
        words[k] = word + k * PVD_WORD_FACTOR;
    }
    words[0] = s->paced ? stamp : word;
}

void
pvd_frame_template(const struct pvd_spec *s, uint8_t *frame)
{
    uint32_t n = s->body < s->len ? s->body : s->len;
    memset(frame, 0, s->len);
    memcpy(frame, s->head, n);
    memcpy(frame + s->body, &s->run, sizeof(s->run));
}

void
pvd_frame_write(const struct pvd_spec *s, const struct pvd_cursor *c, uint64_t stamp, uint8_t *frame)
{
    const uint32_t block = s->body + PVD_BODY_BLOCK;
    uint8_t *body = frame + s->body;
    uint64_t words[4];
    if (s->level > 0 || s->n_dst > 1 || s->n_src > 1) {
        pvd_addresses(s, c->dst, c->src, words);
        memcpy(frame, words, 16);
    }
    if (s->udp) {
        pvd_udp_write(s, c->tuple, frame);
    }
    if (s->level == 0) {
        return;
    }
    if (s->gso) {
        memcpy(frame + 16, s->head + 16, PVD_GSO_BODY - 16);
    }
    memcpy(body, &s->run, 8);
    memcpy(body + 8, &c->seq, 8);
    make_pattern(s, c->seq, stamp, words);
    memcpy(body + PVD_PATTERN_AT, words, sizeof(words));
    if (s->level > 1 && s->len > block) {
        s->fill(frame + block, s->len - block, pvd_pattern(c->seq) + 4 * PVD_WORD_FACTOR);
    }
}

/* ---- Checking ---- */

static uint64_t
word_at(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof(word));
    return word;
}

/* Whether the block is that of this frame of the run. `frame` has room for a whole one. */
static bool
block_intact(const struct pvd_spec *s, const struct pvd_cursor *c, const uint8_t *frame)
{
    const uint8_t *body = frame + s->body;
    const uint8_t *pattern = body + PVD_PATTERN_AT;
    uint64_t words[4];
    pvd_addresses(s, c->dst, c->src, words);
    uint64_t differs = (word_at(frame) ^ words[0]) | (word_at(frame + 8) ^ words[1]);
    differs |= (word_at(body) ^ s->run) | (word_at(body + 8) ^ c->seq);
    make_pattern(s, c->seq, 0, words);
    for (uint32_t k = 0; k < 4; k++) {
        differs |= (word_at(pattern + 8ul * k) ^ words[k]) & s->mask[k];
    }
    return differs == 0 && (!s->gso || pvd_tcp_intact(s, frame)) && (!s->udp || pvd_udp_intact(s, c->tuple, frame));
}

void
pvd_frame_latency(const struct pvd_receiver *r, uint64_t stamp)
{
    const struct pvd_gen *g = r->flow->gen;
    if (stamp >= g->warm) {
        pvd_latency_add(g->result, g->now > stamp ? g->now - stamp : 0);
    }
}

bool
pvd_frame_accept(struct pvd_receiver *r, const uint8_t *frame)
{
    const struct pvd_spec *s = &r->flow->spec;
    uint32_t block = s->body + PVD_BODY_BLOCK;
    if (s->level == 0) {
        if (word_at(frame + s->body) != s->run) {
            return false;
        }
        r->received++;
        return true;
    }
    if (!block_intact(s, &r->next, frame)) {
        return false;
    }
    if (s->level > 1 && s->len > block &&
        !s->intact(frame + block, s->len - block, pvd_pattern(r->next.seq) + 4 * PVD_WORD_FACTOR)) {
        return false;
    }
    if (s->paced) {
        pvd_frame_latency(r, word_at(frame + s->body + PVD_PATTERN_AT));
    }
    r->received++;
    pvd_cursor_next_in_stream(s, &r->next);
    return true;
}

static void
account_sequence(struct pvd_receiver *r, const struct pvd_cursor *c)
{
    if (c->seq < r->next.seq) {
        r->flow->gen->result->reordered++;
        r->given_up -= r->given_up > 0;
        return;
    }
    r->given_up += c->seq - r->next.seq;
    r->next = *c;
    pvd_cursor_next_in_stream(&r->flow->spec, &r->next);
}

/* The frame's first `need` bytes in one piece: where they lie, or copied together. */
static const uint8_t *
whole(const struct pvd_receiver *r, const struct pvd_piece_ref *pieces, uint32_t n_pieces, uint32_t need)
{
    if (n_pieces > 0 && pieces[0].len >= need) {
        return pieces[0].ptr;
    }
    uint8_t *scratch = r->flow->gen->scratch;
    uint32_t at = 0;
    for (uint32_t i = 0; i < n_pieces && at < need; i++) {
        uint32_t n = pieces[i].len < need - at ? pieces[i].len : need - at;
        memcpy(scratch + at, pieces[i].ptr, n);
        at += n;
    }
    return scratch;
}

/* Whether all bytes behind the block are the pattern. */
static bool
rest_intact(const struct pvd_spec *s, uint64_t seq, const struct pvd_piece_ref *pieces, uint32_t n_pieces)
{
    uint32_t skip = s->body + PVD_BODY_BLOCK;
    uint32_t at = 4 * 8;
    bool good = true;
    for (uint32_t i = 0; i < n_pieces; i++) {
        if (pieces[i].len <= skip) {
            skip -= pieces[i].len;
            continue;
        }
        uint32_t n = pieces[i].len - skip;
        good = good && piece_intact(s, pieces[i].ptr + skip, n, at, pvd_pattern(seq));
        at += n;
        skip = 0;
    }
    return good;
}

void
pvd_frame_judge(struct pvd_receiver *r, const struct pvd_piece_ref *pieces, uint32_t n_pieces, uint32_t len)
{
    const struct pvd_spec *s = &r->flow->spec;
    struct pvd_gen_result *result = r->flow->gen->result;
    uint32_t block = s->body + PVD_BODY_BLOCK;
    const uint8_t *frame = whole(r, pieces, n_pieces, block);
    struct pvd_cursor c;
    uint64_t seq = word_at(frame + s->body + 8);
    if (len < s->body + PVD_PATTERN_AT || word_at(frame + s->body) != s->run ||
        memcmp(frame + PVD_ETHERTYPE_AT, s->head + PVD_ETHERTYPE_AT, 2) != 0) {
        result->foreign++;
        return;
    }
    r->received++;
    if (s->level == 0) {
        result->corrupted += len != s->len;
        return;
    }
    pvd_cursor_set(s, &c, r->next.stream, seq);
    bool good = len == s->len && block_intact(s, &c, frame);
    if (good && s->level > 1 && len > block) {
        good = rest_intact(s, seq, pieces, n_pieces);
    }
    result->corrupted += !good;
    account_sequence(r, &c);
    if (good && s->paced) {
        pvd_frame_latency(r, word_at(frame + s->body + PVD_PATTERN_AT));
    }
}
