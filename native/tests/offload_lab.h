/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offload_lab.h - frames for the tests of offload.h, from a recipe.
 *
 * How it works: a recipe says what a frame is made of; the payload is a fixed stream of bytes, of which a frame has the part
 * from `at` on. What a segment must look like is thus a recipe too: the same with less payload, cooked with its checksum.
 */
#ifndef PVS_OFFLOAD_LAB_H
#define PVS_OFFLOAD_LAB_H

#include "offload.h"
#include "parse.h"
#include "scatter.h"
#include "test.h"

enum { ALL = 63, FIN = 1, SYN = 2, PSH = 8, ACK = 16, ECE = 64, CWR = 128 };
enum { HOP_BY_HOP = 0, ROUTING = 43, FRAGMENT = 44, AUTHENTICATION = 51, DESTINATION = 60 };

enum field { PSEUDO, FINISHED }; /* what the checksum field holds */

struct recipe {
    bool v6, udp;
    uint8_t tags;
    uint8_t n_extension, extension[3]; /* IPv6: types */
    uint16_t extension_len[3];         /* in bytes, a multiple of 8 */
    uint8_t ip_options, tcp_options;   /* bytes, a multiple of 4 */
    uint8_t flags;
    uint16_t id;
    uint32_t seq, at, payload;
};

struct cooked {
    uint8_t bytes[PVS_MAX_FRAME];
    uint32_t len, l3, l4, hdr_len, csum_offset;
};

static inline void
put16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

/* RFC 1071, continued from `sum`; not complemented. */
static inline uint32_t
simple_sum(uint32_t sum, const uint8_t *bytes, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++) {
        sum += i % 2 == 0 ? (uint32_t)bytes[i] << 8 : bytes[i];
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

static inline void
cook_l2(const struct recipe *r, struct cooked *c)
{
    static const uint8_t addresses[] = { 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1 };

    memcpy(c->bytes, addresses, sizeof addresses);
    for (c->l3 = 12; c->l3 < 12 + 4U * r->tags; c->l3 += 4) {
        put16(c->bytes + c->l3, r->tags == 2 && c->l3 == 12 ? ETHERTYPE_8021AD : ETHERTYPE_8021Q);
        put16(c->bytes + c->l3 + 2, 7);
    }
    put16(c->bytes + c->l3, r->v6 ? 0x86dd : 0x0800);
    c->l3 += 2;
}

static inline void
cook_ipv4(const struct recipe *r, struct cooked *c)
{
    static const uint8_t fixed[20] = { [6] = 0x40, [8] = 64, [12] = 10, [15] = 1, [16] = 10, [19] = 2 };
    uint8_t *ip = c->bytes + c->l3;
    uint32_t len = 20U + r->ip_options;

    memcpy(ip, fixed, sizeof fixed);
    memset(ip + 20, 1, r->ip_options); /* no-operation */
    ip[0] = (uint8_t)(0x40 | len / 4);
    ip[9] = r->udp ? 17 : 6;
    put16(ip + 2, c->len - c->l3);
    put16(ip + 4, r->id);
    put16(ip + 10, 0xffff & ~simple_sum(0, ip, len));
}

static inline void
cook_ipv6(const struct recipe *r, struct cooked *c)
{
    uint8_t *ip = c->bytes + c->l3, *next = ip + 6, *at = ip + 40;

    memset(ip, 0, 40);
    ip[0] = 0x60;
    put16(ip + 4, c->len - c->l3 - 40);
    ip[7] = 64;
    ip[8] = ip[24] = 0xfd;
    ip[23] = 1;
    ip[39] = 2;
    for (uint32_t i = 0; i < r->n_extension; i++) {
        *next = r->extension[i];
        memset(at, 0, r->extension_len[i]);
        at[1] = (uint8_t)(r->extension_len[i] / 8 - 1);
        next = at;
        at += r->extension_len[i];
    }
    *next = r->udp ? 17 : 6;
}

static inline uint32_t
pseudo_sum(const struct recipe *r, const struct cooked *c)
{
    const uint8_t *ip = c->bytes + c->l3;
    uint8_t rest[4] = { 0, r->udp ? 17 : 6 };

    put16(rest + 2, c->len - c->l4);
    return simple_sum(r->v6 ? simple_sum(0, ip + 8, 32) : simple_sum(0, ip + 12, 8), rest, 4);
}

static inline void
cook_l4(const struct recipe *r, struct cooked *c)
{
    uint8_t *l4 = c->bytes + c->l4;

    memset(l4, 0, c->hdr_len - c->l4);
    put16(l4, 1111);
    put16(l4 + 2, 2222);
    if (r->udp) {
        put16(l4 + 4, c->len - c->l4);
        return;
    }
    put16(l4 + 4, r->seq >> 16);
    put16(l4 + 6, r->seq);
    put16(l4 + 8, 0x1234);
    l4[12] = (uint8_t)((20 + r->tcp_options) / 4 << 4);
    l4[13] = r->flags;
    put16(l4 + 14, 512);
    memset(l4 + 20, 1, r->tcp_options);
}

static inline void
cook(const struct recipe *r, enum field field, struct cooked *c)
{
    cook_l2(r, c);
    c->l4 = c->l3 + (r->v6 ? 40U : 20U + r->ip_options);
    for (uint32_t i = 0; i < r->n_extension; i++)
        c->l4 += r->extension_len[i];
    c->hdr_len = c->l4 + (r->udp ? 8U : 20U + r->tcp_options);
    c->csum_offset = r->udp ? 6 : 16;
    c->len = c->hdr_len + r->payload;
    CHECK(c->len <= PVS_MAX_FRAME);
    if (r->v6)
        cook_ipv6(r, c);
    else
        cook_ipv4(r, c);
    cook_l4(r, c);
    for (uint32_t i = 0; i < r->payload; i++)
        c->bytes[c->hdr_len + i] = (uint8_t)((r->at + i) * 2654435761U >> 13);
    uint32_t sum = pseudo_sum(r, c);
    if (field == FINISHED) {
        sum = 0xffff & ~simple_sum(sum, c->bytes + c->l4, c->len - c->l4);
        if (sum == 0 && r->udp)
            sum = 0xffff;
    }
    put16(c->bytes + c->l4 + c->csum_offset, sum);
}

/* Segment `i` of `n`: what Linux makes of it (tcp_gso_segment, __udp_gso_segment). */
static inline struct recipe
segment_recipe(const struct recipe *r, uint32_t gso_size, uint32_t i, uint32_t n)
{
    struct recipe s = *r;

    s.at += i * gso_size;
    s.payload = i + 1 < n ? gso_size : r->payload - i * gso_size;
    s.seq += i * gso_size;
    s.id = (uint16_t)(r->id + i);
    if (i != 0)
        s.flags &= (uint8_t)~CWR;
    if (i + 1 != n)
        s.flags &= (uint8_t) ~(FIN | PSH);
    return s;
}

static inline uint8_t
gso_type_of(const struct recipe *r)
{
    return r->udp ? VIRTIO_NET_HDR_GSO_UDP_L4 : r->v6 ? VIRTIO_NET_HDR_GSO_TCPV6 : VIRTIO_NET_HDR_GSO_TCPV4;
}

/* The header of a right request; gso_size 0: the checksum alone. */
static inline struct virtio_net_hdr
header_for(const struct recipe *r, const struct cooked *c, uint16_t gso_size)
{
    return (struct virtio_net_hdr){ .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                    .gso_type = gso_size != 0 ? gso_type_of(r) : VIRTIO_NET_HDR_GSO_NONE,
                                    .gso_size = gso_size,
                                    .csum_start = (uint16_t)c->l4,
                                    .csum_offset = (uint16_t)c->csum_offset };
}

/* Parse and check a frame of these bytes, its tail cut as given. */
static inline bool
admit(struct scattered_frame *f, const struct cooked *c, const struct virtio_net_hdr *header, uint8_t allowed,
      const uint16_t *cut, uint32_t n_cut)
{
    scattered_frame_make(f, c->bytes, c->len, cut, n_cut);
    return pvs_parse(&f->frame) && pvs_offload_check(&f->frame, header, allowed);
}

#endif
