/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The IP, TCP and UDP headers of generated frames, between the addresses and the body, and whether a received frame has
 * them. See generate.h for the layout; called when a run is opened, and by generate_frame.c for each frame.
 */
#include "generate.h"

#define IP_AT       14u
#define IP_CSUM_AT  24u
#define L4_AT       34u
#define TCP_CSUM_AT 50u
#define UDP_LEN_AT  38u
#define GSO_HEADERS 54u

enum { HDR_F_NEEDS_CSUM = 1, GSO_TCPV4 = 1 };

static void
put16(uint8_t *to, uint32_t value)
{
    to[0] = (uint8_t)(value >> 8);
    to[1] = (uint8_t)value;
}

/* The Internet checksum's sum of big-endian words, not complemented. */
static uint32_t
sum16(const uint8_t *p, uint32_t n)
{
    uint32_t sum = 0;
    for (uint32_t i = 0; i < n; i += 2) {
        sum += (uint32_t)p[i] << 8 | p[i + 1];
    }
    sum = (sum & 0xffff) + (sum >> 16);
    return (sum & 0xffff) + (sum >> 16);
}

/* From 10.0.0.1 to 10.0.0.2. */
static void
head_ip(struct pvd_spec *s, uint8_t protocol)
{
    static const uint8_t ip[20] = { 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 0, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2 };
    put16(s->head + PVD_ETHERTYPE_AT, 0x0800);
    memcpy(s->head + IP_AT, ip, sizeof(ip));
    put16(s->head + IP_AT + 2, s->len - IP_AT);
    s->head[IP_AT + 9] = protocol;
    put16(s->head + IP_CSUM_AT, ~sum16(s->head + IP_AT, sizeof(ip)) & 0xffff);
}

void
pvd_head_tcp(struct pvd_spec *s, uint32_t gso_size)
{
    static const uint8_t tcp[20] = { 0x13, 0x89, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff };
    uint8_t pseudo[12] = { 10, 0, 0, 1, 10, 0, 0, 2, 0, 6 };
    head_ip(s, 6);
    memcpy(s->head + L4_AT, tcp, sizeof(tcp));
    put16(pseudo + 10, s->len - L4_AT);
    put16(s->head + TCP_CSUM_AT, sum16(pseudo, sizeof(pseudo)));
    struct pvd_net_header h = { .flags = HDR_F_NEEDS_CSUM,
                                .gso_type = GSO_TCPV4,
                                .hdr_len = GSO_HEADERS,
                                .gso_size = (uint16_t)gso_size,
                                .csum_start = L4_AT,
                                .csum_offset = TCP_CSUM_AT - L4_AT };
    memcpy(s->header, &h, sizeof(h));
}

bool
pvd_tcp_intact(const struct pvd_spec *s, const uint8_t *frame)
{
    return memcmp(frame + 16, s->head + 16, IP_CSUM_AT - 16) == 0 &&
           memcmp(frame + IP_CSUM_AT + 2, s->head + IP_CSUM_AT + 2, TCP_CSUM_AT - IP_CSUM_AT - 2) == 0;
}

void
pvd_head_udp(struct pvd_spec *s)
{
    head_ip(s, 17);
    put16(s->head + UDP_LEN_AT, s->len - L4_AT); /* and no checksum */
}

/* The headers behind the addresses, with the tuple's ports. */
void
pvd_udp_write(const struct pvd_spec *s, uint32_t tuple, uint8_t *frame)
{
    uint64_t word = pvd_udp_word(s, tuple);
    memcpy(frame + 16, s->head + 16, PVD_UDP_BODY - 16);
    memcpy(frame + PVD_UDP_WORD_AT, &word, sizeof(word));
}

bool
pvd_udp_intact(const struct pvd_spec *s, uint32_t tuple, const uint8_t *frame)
{
    uint8_t wanted[PVD_UDP_BODY];
    pvd_udp_write(s, tuple, wanted);
    return memcmp(frame + 16, wanted + 16, PVD_UDP_BODY - 16) == 0;
}
