/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flow_lab.h - lists of flows, and frames for them to match: for the tests of flows, and their fuzzer.
 *
 * How it works: a list is filled flow by flow: flow_begin, then what it matches, then what it does. Frames are made of what the
 * parser of flows knows (tags, SNAP, IPv4 with options, IPv6 with extension headers, ARP, L4), from few values, so that random flows match
 * them; their checksums are right, and flow_sums_right computes them anew, the plain way, over all of a frame's bytes.
 */
#ifndef PVS_FLOW_LAB_H
#define PVS_FLOW_LAB_H

#include <stdbool.h>
#include <string.h>

#include "pvs_api.h"

enum { FLOW_LAB_FLOWS = 2048, FLOW_LAB_ACTIONS = 8192 };

struct flow_list {
    uint32_t n_flows, n_actions;
    struct pvs_flow_conf flow[FLOW_LAB_FLOWS];
    struct pvs_flow_action action[FLOW_LAB_ACTIONS];
};

static inline struct pvs_flow_conf *
flow_begin(struct flow_list *l, uint32_t priority, uint32_t counter)
{
    struct pvs_flow_conf *f = &l->flow[l->n_flows++];

    *f = (struct pvs_flow_conf){ .priority = priority, .counter = counter, .first = l->n_actions };
    return f;
}

/* The last flow looks at a field of `bits` bits. */
static inline void
flow_match(struct flow_list *l, uint32_t word, uint32_t shift, uint32_t bits, uint64_t value)
{
    struct pvs_flow_conf *f = &l->flow[l->n_flows - 1];

    f->mask[word] |= (bits == 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1) << shift;
    f->key[word] |= value << shift;
}

/* ... and does this, behind what it did already. */
static inline void
flow_act(struct flow_list *l, uint32_t kind, uint32_t slot, uint64_t value)
{
    l->action[l->n_actions++] = (struct pvs_flow_action){ .kind = kind, .slot = slot, .value = value };
    l->flow[l->n_flows - 1].n_actions++;
}

static inline uint32_t
flow_random(uint64_t *state, uint32_t below)
{
    *state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(*state >> 33) % below;
}

/* ---- checksums, the plain way ---- */

static inline uint32_t
flow_get16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static inline void
flow_put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline uint32_t
flow_sum(uint32_t sum, const uint8_t *p, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++) {
        sum += i % 2 == 0 ? (uint32_t)p[i] << 8 : p[i];
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

/* RFC 9260, appendix A: with the field's own bytes as 0. */
static inline uint32_t
flow_crc32c(const uint8_t *p, uint32_t len)
{
    uint32_t crc = UINT32_MAX;

    for (uint32_t i = 0; i < len; i++) {
        crc ^= i >= 8 && i < 12 ? 0 : p[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc & 1) != 0 ? crc >> 1 ^ 0x82f63b78 : crc >> 1;
    }
    return ~crc;
}

/* Where things are in a frame, as its receiver finds them; 0: there is no such thing. */
struct flow_layout {
    uint32_t l3, l4, end; /* of the IP packet */
    bool v6, fragment, later;
    uint8_t proto;
};

/* Behind so many tags. */
static inline struct flow_layout
flow_layout_behind(const uint8_t *p, uint32_t len, uint32_t tags)
{
    struct flow_layout o = { 0 };
    uint32_t at = 12 + 4 * tags;

    if (at + 2 > len)
        return o;
    uint32_t type = flow_get16(p + at);
    at += 2;
    if (type < 0x600 && at + 8 <= len && memcmp(p + at, "\xaa\xaa\x03\0\0\0", 6) == 0) {
        type = flow_get16(p + at + 6);
        at += 8;
    }
    if (type == 0x0800 && at + 20 <= len) {
        uint32_t header = (p[at] & 15U) * 4, total = flow_get16(p + at + 2), fragment = flow_get16(p + at + 6);
        if (header < 20 || total < header || at + total > len)
            return o;
        o = (struct flow_layout){
            .l3 = at, .end = at + total, .proto = p[at + 9], .fragment = (fragment & 0x3fff) != 0
        };
        o.later = (fragment & 0x1fff) != 0;
        o.l4 = o.later ? 0 : at + header;
    } else if (type == 0x86dd && at + 40 <= len) {
        uint32_t end = at + 40 + flow_get16(p + at + 4);
        if (end == at + 40 && p[at + 6] == 0)
            end = len;
        if (end > len)
            return o;
        o = (struct flow_layout){ .l3 = at, .end = end, .proto = p[at + 6], .v6 = true };
        uint32_t l4 = at + 40;
        while (o.proto == 0 || o.proto == 43 || o.proto == 44 || o.proto == 51 || o.proto == 60) {
            if (l4 + 8 > end)
                return o;
            uint32_t size = o.proto == 44 ? 8 : o.proto == 51 ? (p[l4 + 1] + 2U) * 4 : (p[l4 + 1] + 1U) * 8;
            if (l4 + size > end)
                return o;
            if (o.proto == 44) {
                o.fragment |= (flow_get16(p + l4 + 2) & 0xfff9) != 0;
                o.later = (flow_get16(p + l4 + 2) & 0xfff8) != 0;
            }
            if (o.later)
                return o;
            o.proto = p[l4];
            l4 += size;
        }
        o.l4 = l4;
    }
    return o;
}

/* How many tags are looked at: no more than two. */
static inline uint32_t
flow_tags(const uint8_t *p, uint32_t len)
{
    uint32_t n = 0;

    while (n < 2 && 12 + 4 * n + 6 <= len &&
           (flow_get16(p + 12 + 4 * n) == 0x8100 || flow_get16(p + 12 + 4 * n) == 0x88a8))
        n++;
    return n;
}

static inline struct flow_layout
flow_layout_of(const uint8_t *p, uint32_t len)
{
    return flow_layout_behind(p, len, flow_tags(p, len));
}

/* The sum of the pseudo header, RFC 9293 and RFC 8200, 8.1. */
static inline uint32_t
flow_pseudo(const uint8_t *p, const struct flow_layout *o)
{
    uint8_t rest[4] = { 0, o->proto };

    flow_put16(rest + 2, o->end - o->l4);
    return flow_sum(o->v6 ? flow_sum(0, p + o->l3 + 8, 32) : flow_sum(0, p + o->l3 + 12, 8), rest, 4);
}

/* Write, or (`check`) compare, the checksum of L4. Whether it is right, or there is none. */
static inline bool
flow_l4_sum(uint8_t *p, const struct flow_layout *o, bool check)
{
    uint32_t room = o->l4 == 0 ? 0 : o->end - o->l4, at = 0, need = 0, sum = 0;
    uint8_t *l4 = p + o->l4, was[4];

    if (o->proto == 132 && room >= 12 && !o->fragment) {
        uint32_t crc = flow_crc32c(l4, room),
                 field = l4[8] | (uint32_t)l4[9] << 8 | (uint32_t)l4[10] << 16 | (uint32_t)l4[11] << 24;
        for (int i = 0; i < 4 && !check; i++)
            l4[8 + i] = (uint8_t)(crc >> 8 * i);
        return !check || field == crc;
    }
    if (o->proto == 6 && room >= 20)
        at = 16;
    else if (o->proto == 17 && room >= 8)
        at = 6;
    else if ((o->proto == 1 && !o->v6 && room >= 8) || (o->proto == 58 && o->v6 && room >= 8))
        at = 2;
    if (at == 0 || o->fragment || (check && o->proto == 17 && flow_get16(l4 + at) == 0))
        return true;
    need = o->proto == 1 ? 0 : flow_pseudo(p, o);
    memcpy(was, l4 + at, 2);
    flow_put16(l4 + at, 0);
    sum = 0xffff & ~flow_sum(need, l4, room);
    if (sum == 0 && o->proto == 17)
        sum = 0xffff;
    flow_put16(l4 + at, sum);
    bool right = memcmp(was, l4 + at, 2) == 0;
    if (check)
        memcpy(l4 + at, was, 2);
    return right;
}

/* Are all checksums of a finished frame right, bit for bit as its sender would have written them? */
static inline bool
flow_sums_right(uint8_t *p, uint32_t len)
{
    struct flow_layout o = flow_layout_of(p, len);

    if (o.l3 == 0)
        return true;
    uint32_t header = o.v6 ? 0 : (p[o.l3] & 15U) * 4;
    return (o.v6 || flow_sum(0, p + o.l3, header) == 0xffff) && flow_l4_sum(p, &o, true);
}

/* Write them all, of what is laid out so. */
static inline void
flow_sums_write_at(uint8_t *p, const struct flow_layout *o)
{
    if (o->l3 != 0 && !o->v6) {
        flow_put16(p + o->l3 + 10, 0);
        flow_put16(p + o->l3 + 10, 0xffff & ~flow_sum(0, p + o->l3, (p[o->l3] & 15U) * 4));
    }
    if (o->l3 != 0)
        flow_l4_sum(p, o, false);
}

static inline void
flow_sums_write(uint8_t *p, uint32_t len)
{
    struct flow_layout o = flow_layout_of(p, len);

    flow_sums_write_at(p, &o);
}

/* ---- frames ---- */

/* What a frame is to be; what isn't said is random. */
struct flow_recipe {
    int tags, proto; /* -1: any */
    int type;        /* 0: IPv4, 1: IPv6, 2: ARP, 3: RARP, 4: SNAP with IPv4, 5: 802.2, 6: something else; -1: any */
    bool whole;      /* no fragment, */
    bool plain;      /* nor options and extension headers */
    uint32_t payload;
};

static const struct flow_recipe FLOW_ANY = { .tags = -1, .proto = -1, .type = -1 };

static inline uint32_t
flow_frame_ipv6(uint64_t *state, const struct flow_recipe *r, uint8_t *p, uint8_t proto)
{
    static const uint8_t kinds[] = { 0, 43, 44, 51, 60 };
    uint32_t n = !r->plain && flow_random(state, 4) == 0 ? flow_random(state, 4) : 0, at = 40;
    uint8_t *next = p + 6;

    memset(p, 0, 40);
    p[0] = 0x60 | (uint8_t)flow_random(state, 16);
    p[1] = (uint8_t)flow_random(state, 256);
    p[7] = (uint8_t)flow_random(state, 4) == 0 ? 1 : 64;
    p[8] = p[24] = 0xfd;
    p[23] = (uint8_t)flow_random(state, 3);
    p[39] = (uint8_t)flow_random(state, 3);
    for (uint32_t i = 0; i < n; i++) {
        uint8_t kind = kinds[flow_random(state, sizeof kinds)];
        if (kind == 44 && r->whole)
            continue;
        uint32_t units = flow_random(state, 3), size = kind == 44 ? 8 : kind == 51 ? (units + 2) * 4 : (units + 1) * 8;
        memset(p + at, 0, size);
        *next = kind;
        next = p + at;
        if (kind != 44)
            p[at + 1] = (uint8_t)units;
        else
            flow_put16(p + at + 2, flow_random(state, 3) == 0 ? 0x0088 : flow_random(state, 2));
        at += size;
    }
    *next = proto;
    return at;
}

static inline uint32_t
flow_frame_ipv4(uint64_t *state, const struct flow_recipe *r, uint8_t *p, uint8_t proto)
{
    uint32_t options = !r->plain && flow_random(state, 4) == 0 ? 4 * flow_random(state, 11) : 0;

    memset(p, 0, 20);
    memset(p + 20, 1, options);
    p[0] = (uint8_t)(0x45 + options / 4);
    p[1] = (uint8_t)flow_random(state, 256);
    p[5] = (uint8_t)flow_random(state, 256);
    if (!r->whole && flow_random(state, 6) == 0)
        flow_put16(p + 6, flow_random(state, 2) == 0 ? 0x2000 : 0x2000 + flow_random(state, 100));
    p[8] = (uint8_t)(flow_random(state, 4) == 0 ? flow_random(state, 3) : 64);
    p[9] = proto;
    p[12] = p[16] = 10;
    p[15] = (uint8_t)flow_random(state, 3);
    p[19] = (uint8_t)flow_random(state, 3);
    return 20 + options;
}

static inline uint32_t
flow_frame_l4(uint64_t *state, uint8_t *p, uint8_t proto, uint32_t payload)
{
    uint32_t header = proto == 6 ? 20 : proto == 132 ? 12 : 8;

    memset(p, 0, header);
    for (uint32_t i = 0; i < payload; i++)
        p[header + i] = (uint8_t)flow_random(state, 256);
    if (proto == 1 || proto == 58) {
        static const uint8_t types[] = { 8, 0, 128, 135, 136 };
        p[0] = types[flow_random(state, sizeof types)];
        return header + payload;
    }
    flow_put16(p, 1 + flow_random(state, 3));
    flow_put16(p + 2, 1 + flow_random(state, 3));
    if (proto == 6) {
        p[12] = 0x50;
        p[13] = (uint8_t)flow_random(state, 256);
    } else if (proto == 17) {
        flow_put16(p + 4, header + payload);
    }
    return header + payload;
}

/* A frame at `p`, with right checksums; its length. With room for 200 bytes and the payload. */
static inline uint32_t
flow_frame(uint64_t *state, const struct flow_recipe *r, uint8_t *p)
{
    static const uint8_t protos[] = { 1, 6, 17, 58, 132, 47 };
    uint32_t tags = r->tags >= 0 ? (uint32_t)r->tags : flow_random(state, 4) % 3;
    uint32_t type = r->type >= 0                 ? (uint32_t)r->type
                    : flow_random(state, 12) < 6 ? flow_random(state, 2)
                                                 : flow_random(state, 7);
    uint8_t proto = (uint8_t)(r->proto >= 0 ? r->proto : protos[flow_random(state, sizeof protos)]);
    static const uint16_t types[] = { 0x0800, 0x86dd, 0x0806, 0x8035, 60, 70, 0x88b5 };
    uint32_t at = 12, payload = r->payload != 0 ? r->payload : flow_random(state, 60);

    memset(p, 0, 12);
    p[0] = p[6] = 2;
    p[5] = (uint8_t)flow_random(state, 4);
    p[11] = (uint8_t)flow_random(state, 4);
    for (uint32_t i = 0; i < tags; i++, at += 4) {
        flow_put16(p + at, i + 1 < tags ? 0x88a8 : 0x8100);
        flow_put16(p + at + 2, flow_random(state, 8) << 13 | flow_random(state, 3));
    }
    flow_put16(p + at, types[type]);
    at += 2;
    if (type == 4) {
        memcpy(p + at, "\xaa\xaa\x03\0\0\0\x08\0", 8);
        at += 8;
    }
    if (type == 2 || type == 3) {
        memset(p + at, 0, 28);
        memcpy(p + at, "\0\1\x8\0\6\4\0", 7);
        p[at + 7] = (uint8_t)flow_random(state, 4);
        p[at + 13] = (uint8_t)flow_random(state, 3);
        p[at + 14] = p[at + 24] = 10;
        p[at + 17] = (uint8_t)flow_random(state, 3);
        p[at + 27] = (uint8_t)flow_random(state, 3);
        return at + 28 + payload % 20;
    }
    if (type == 5 || type == 6) {
        memset(p + at, 0x42, payload);
        return at + payload;
    }
    uint32_t l3 = at;
    at += type == 1 ? flow_frame_ipv6(state, r, p + at, proto) : flow_frame_ipv4(state, r, p + at, proto);
    at += flow_frame_l4(state, p + at, proto, payload);
    flow_put16(p + l3 + (type == 1 ? 4 : 2), type == 1 ? at - l3 - 40 : at - l3);
    flow_sums_write(p, at);
    if (proto == 17 && type != 1 && flow_random(state, 4) == 0) {
        struct flow_layout o = flow_layout_of(p, at);
        if (o.l4 != 0)
            flow_put16(p + o.l4 + 6, 0); /* UDP may have none */
    }
    return at;
}

#endif
