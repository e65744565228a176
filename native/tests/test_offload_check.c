/* SPDX-License-Identifier: Apache-2.0 */
/* test_offload_check.c - what pvs_offload_check lets through, what it refuses, and what it makes of it (offload.h). */
#include "offload_lab.h"

static struct cooked frame;
static struct scattered_frame f;

static const struct recipe TCP4 = { .payload = 3000, .flags = ACK },
                           TCP6 = { .v6 = true, .payload = 3000, .flags = ACK },
                           UDP4 = { .udp = true, .payload = 3000 }, UDP6 = { .v6 = true, .udp = true, .payload = 3000 };

/* Whether `header` is let through on the frame that was cooked last. */
static bool
let(const struct virtio_net_hdr *header, uint8_t allowed)
{
    bool good = admit(&f, &frame, header, allowed, NULL, 0);
    scattered_frame_free(&f);
    return good;
}

static struct virtio_net_hdr
cooked_header(const struct recipe *r, uint16_t gso_size)
{
    cook(r, PSEUDO, &frame);
    return header_for(r, &frame, gso_size);
}

TEST(offload_features_become_bits)
{
    CHECK_EQ(pvs_offloads_sent(0), 0);
    CHECK_EQ(pvs_offloads_taken(0), 0);
    CHECK_EQ(pvs_offloads_sent(1), PVS_OFFLOAD_CSUM);
    CHECK_EQ(pvs_offloads_sent(1ULL << 11 | 1ULL << 12 | 1ULL << 13),
             PVS_OFFLOAD_TSO4 | PVS_OFFLOAD_TSO6 | PVS_OFFLOAD_ECN);
    CHECK_EQ(pvs_offloads_sent(1ULL << 56), PVS_OFFLOAD_USO4 | PVS_OFFLOAD_USO6);
    CHECK_EQ(pvs_offloads_taken(1ULL << 1), PVS_OFFLOAD_CSUM);
    CHECK_EQ(pvs_offloads_taken(1ULL << 7 | 1ULL << 8 | 1ULL << 9),
             PVS_OFFLOAD_TSO4 | PVS_OFFLOAD_TSO6 | PVS_OFFLOAD_ECN);
    CHECK_EQ(pvs_offloads_taken(1ULL << 54), PVS_OFFLOAD_USO4);
    CHECK_EQ(pvs_offloads_taken(1ULL << 55), PVS_OFFLOAD_USO6);
    /* the other side's bits, UFO and all the rest say nothing */
    CHECK_EQ(pvs_offloads_taken(~(1ULL << 1 | 7ULL << 7 | 3ULL << 54)), 0);
    CHECK_EQ(pvs_offloads_sent(~(1ULL << 0 | 7ULL << 11 | 1ULL << 56)), 0);
}

TEST(offload_plain_frame_asks_for_nothing)
{
    struct virtio_net_hdr header = { .flags = (uint8_t)~VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                     .hdr_len = 0xffff,
                                     .gso_size = 77,
                                     .csum_start = 0xffff,
                                     .csum_offset = 0xffff };
    cook(&TCP4, FINISHED, &frame);
    CHECK(admit(&f, &frame, &header, 0, NULL, 0));
    CHECK(!f.frame.request.checksum);
    CHECK_EQ(f.frame.request.gso_type, VIRTIO_NET_HDR_GSO_NONE);
    CHECK_EQ(f.frame.head_len, PVS_HEAD);
    scattered_frame_free(&f);
    /* a frame of Ethernet alone */
    frame.len = PVS_ETH_HLEN;
    CHECK(let(&header, ALL));
}

TEST(offload_request_is_what_was_asked_for)
{
    struct virtio_net_hdr header = cooked_header(&TCP4, 1000);
    header.hdr_len = 9999; /* a hint, and wrong */
    header.flags |= 0xfe;
    header.num_buffers = 3;
    CHECK(admit(&f, &frame, &header, ALL, NULL, 0));
    const struct pvs_request *r = &f.frame.request;
    CHECK(r->checksum);
    CHECK_EQ(r->gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
    CHECK_EQ(r->gso_size, 1000);
    CHECK_EQ(r->csum_start, 34);
    CHECK_EQ(r->csum_offset, 16);
    CHECK_EQ(r->hdr_len, 54);
    scattered_frame_free(&f);
}

TEST(offload_check_forgets_an_earlier_request)
{
    struct virtio_net_hdr header = cooked_header(&TCP4, 1000), plain = { 0 };
    CHECK(admit(&f, &frame, &header, ALL, NULL, 0));
    CHECK(pvs_offload_check(&f.frame, &plain, ALL));
    CHECK(!f.frame.request.checksum && f.frame.request.gso_type == VIRTIO_NET_HDR_GSO_NONE);
    scattered_frame_free(&f);
}

TEST(offload_checksum_needs_its_feature)
{
    struct virtio_net_hdr header = cooked_header(&UDP4, 0);
    CHECK(let(&header, PVS_OFFLOAD_CSUM));
    CHECK(!let(&header, ALL & ~PVS_OFFLOAD_CSUM));
}

TEST(offload_checksum_of_anything_within_bounds)
{
    static const uint32_t pairs[][3] = {
        /* csum_start, csum_offset, good */
        { 14, 0, 1 },     { 13, 0, 0 },    { 0, 0, 0 },      { 14, 492, 1 },    { 14, 493, 0 },
        { 506, 0, 1 },    { 507, 0, 0 },   { 0xffff, 0, 0 }, { 14, 0xffff, 0 }, { 0xffff, 0xffff, 0 },
        { 0xfffe, 2, 0 }, { 100, 408, 0 }, { 100, 406, 1 },
    };
    struct virtio_net_hdr header = cooked_header(&UDP4, 0);
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        header.csum_start = (uint16_t)pairs[i][0];
        header.csum_offset = (uint16_t)pairs[i][1];
        CHECK_EQ(let(&header, ALL), pairs[i][2]);
    }
    /* a short frame ends before the head does */
    frame.len = 60;
    header.csum_start = 34;
    header.csum_offset = 24;
    CHECK(let(&header, ALL));
    header.csum_offset = 25;
    CHECK(!let(&header, ALL));
}

TEST(offload_checksum_can_not_begin_within_tags)
{
    struct recipe r = UDP4;
    r.tags = 2;
    struct virtio_net_hdr header = cooked_header(&r, 0);
    header.csum_start = 22;
    CHECK(let(&header, ALL));
    header.csum_start = 21;
    CHECK(!let(&header, ALL));
}

TEST(offload_gso_needs_its_feature)
{
    static const struct {
        const struct recipe *recipe;
        uint8_t bit;
    } cases[] = { { &TCP4, PVS_OFFLOAD_TSO4 },
                  { &TCP6, PVS_OFFLOAD_TSO6 },
                  { &UDP4, PVS_OFFLOAD_USO4 },
                  { &UDP6, PVS_OFFLOAD_USO6 } };
    for (int i = 0; i < 4; i++) {
        struct virtio_net_hdr header = cooked_header(cases[i].recipe, 1000);
        CHECK(let(&header, PVS_OFFLOAD_CSUM | cases[i].bit));
        CHECK(!let(&header, (uint8_t)(ALL & ~cases[i].bit)));
        CHECK(!let(&header, ALL & ~PVS_OFFLOAD_CSUM));
    }
}

TEST(offload_gso_needs_the_checksum_flag)
{
    struct virtio_net_hdr header = cooked_header(&TCP4, 1000);
    header.flags = 0;
    CHECK(!let(&header, ALL));
    header.gso_type = VIRTIO_NET_HDR_GSO_ECN;
    CHECK(!let(&header, ALL));
}

TEST(offload_gso_ecn_is_a_bit_beside_tcp)
{
    struct virtio_net_hdr header = cooked_header(&TCP4, 1000);
    header.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
    CHECK(let(&header, PVS_OFFLOAD_CSUM | PVS_OFFLOAD_TSO4 | PVS_OFFLOAD_ECN));
    CHECK(!let(&header, ALL & ~PVS_OFFLOAD_ECN));
    header = cooked_header(&UDP4, 1000);
    header.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
    CHECK(!let(&header, ALL));
    header = cooked_header(&TCP4, 0);
    header.gso_type = VIRTIO_NET_HDR_GSO_ECN;
    CHECK(!let(&header, ALL));
}

TEST(offload_gso_of_unknown_type_or_other_protocol_is_refused)
{
    static const struct recipe *const recipes[] = { &TCP4, &TCP6, &UDP4, &UDP6 };
    for (int i = 0; i < 4; i++) {
        struct virtio_net_hdr header = cooked_header(recipes[i], 1000);
        uint8_t right = header.gso_type;
        for (uint32_t type = 1; type < 256; type++) {
            header.gso_type = (uint8_t)type;
            CHECK_EQ(let(&header, ALL), type == right || (type == (right | 0x80U) && !recipes[i]->udp));
        }
    }
}

TEST(offload_gso_numbers_must_fit_the_headers)
{
    struct virtio_net_hdr good = cooked_header(&TCP4, 1000), header = good;
    header.gso_size = 0;
    CHECK(!let(&header, ALL));
    header = good;
    header.csum_start++;
    CHECK(!let(&header, ALL));
    header.csum_start -= 2;
    CHECK(!let(&header, ALL));
    header = good;
    header.csum_offset = 6;
    CHECK(!let(&header, ALL));
    good = header = cooked_header(&UDP4, 1000);
    header.csum_offset = 16;
    CHECK(!let(&header, ALL));
}

/* One byte of the frame is changed: how the answer changes. */
static void
with_byte(const struct recipe *r, uint32_t at, uint8_t value, bool good)
{
    struct virtio_net_hdr header = cooked_header(r, 1000);
    frame.bytes[at] = value;
    CHECK_EQ(let(&header, ALL), good);
}

TEST(offload_gso_ipv4_header_must_be_right)
{
    with_byte(&TCP4, 14, 0x55, false); /* version */
    with_byte(&TCP4, 14, 0x44, false); /* header too short */
    with_byte(&TCP4, 14, 0x46, false); /* L4 would begin elsewhere */
    with_byte(&TCP4, 20, 0x20, false); /* more fragments */
    with_byte(&TCP4, 20, 0x40, true);  /* don't fragment */
    with_byte(&TCP4, 20, 0x80, true);  /* the reserved bit is nothing of ours */
    with_byte(&TCP4, 21, 1, false);    /* offset */
    with_byte(&TCP4, 20, 0x10, false); /* offset, its highest bit */
    with_byte(&TCP4, 23, 17, false);   /* protocol */
    with_byte(&TCP4, 17, 99, true);    /* total length: segments get their own */
    with_byte(&TCP4, 46, 0x40, false); /* TCP header too short */
    with_byte(&TCP4, 46, 0x60, true);  /* one word of options, whatever it is */
    with_byte(&UDP4, 23, 6, false);    /* protocol */
    with_byte(&UDP4, 38, 0xff, true);  /* UDP length: segments get their own */
}

TEST(offload_gso_ipv6_header_must_be_right)
{
    with_byte(&TCP6, 14, 0x40, false); /* version */
    with_byte(&TCP6, 20, 17, false);   /* next header */
    with_byte(&TCP6, 20, FRAGMENT, false);
    with_byte(&TCP6, 20, AUTHENTICATION, false);
    with_byte(&TCP6, 20, 50, false); /* ESP */
    with_byte(&TCP6, 20, 59, false); /* none */
    with_byte(&TCP6, 20, DESTINATION, false);
    with_byte(&TCP6, 14 + 40 + 12, 0x40, false); /* TCP header too short */
}

TEST(offload_gso_ipv6_extension_headers)
{
    static const uint8_t types[] = { HOP_BY_HOP, ROUTING, DESTINATION, FRAGMENT, AUTHENTICATION };
    for (int i = 0; i < 5; i++) {
        struct recipe r = TCP6;
        r.n_extension = 2;
        r.extension[0] = DESTINATION;
        r.extension[1] = types[i];
        r.extension_len[0] = r.extension_len[1] = 24;
        struct virtio_net_hdr header = cooked_header(&r, 1000);
        CHECK_EQ(let(&header, ALL), i < 3);
    }
}

TEST(offload_gso_headers_may_take_all_of_the_longest_head_but_not_more)
{
    static const uint16_t cut[] = { 1, 0, 30, 500 };
    for (uint16_t last = 320; last <= 336; last += 8) { /* 14 + 8 + 40 + 72 + last + 60: from 514 down */
        struct recipe r = TCP6;
        r.tags = 2;
        r.n_extension = 2;
        r.extension[0] = HOP_BY_HOP;
        r.extension[1] = DESTINATION;
        r.extension_len[0] = 72;
        r.extension_len[1] = last;
        r.tcp_options = 36;
        struct virtio_net_hdr header = cooked_header(&r, 1000);
        CHECK_EQ(admit(&f, &frame, &header, ALL, cut, 4), frame.hdr_len <= PVS_HEAD_MAX);
        if (frame.hdr_len <= PVS_HEAD_MAX) {
            CHECK_EQ(f.frame.request.hdr_len, frame.hdr_len);
            CHECK_EQ(f.frame.head_len, frame.hdr_len);
            CHECK(memcmp(f.frame.head, frame.bytes, frame.hdr_len) == 0);
        }
        scattered_frame_free(&f);
    }
    /* a header that would end beyond everything */
    struct recipe r = TCP6;
    r.n_extension = 1;
    r.extension[0] = DESTINATION;
    r.extension_len[0] = 2048;
    struct virtio_net_hdr header = cooked_header(&r, 1000);
    CHECK(!let(&header, ALL));
}

TEST(offload_gso_headers_that_are_cut_short_are_refused)
{
    static const struct recipe *const recipes[] = { &TCP4, &TCP6, &UDP4, &UDP6 };
    for (int i = 0; i < 4; i++) {
        struct virtio_net_hdr header = cooked_header(recipes[i], 1000);
        for (frame.len = 14; frame.len < frame.hdr_len; frame.len++)
            CHECK(!let(&header, ALL));
        CHECK(let(&header, ALL)); /* no payload at all: its checksum */
    }
    struct recipe r = TCP4;
    r.tcp_options = 40;
    struct virtio_net_hdr header = cooked_header(&r, 1000);
    for (frame.len = 34; frame.len < frame.hdr_len; frame.len++)
        CHECK(!let(&header, ALL));
}

TEST(offload_gso_headers_must_not_overlap)
{
    struct virtio_net_hdr header = cooked_header(&TCP4, 1000);
    frame.bytes[14] = 0x44; /* the request says the same: L4 would begin within the addresses */
    header.csum_start = 30;
    frame.bytes[30 + 12] = 0x50;
    CHECK(!let(&header, ALL));
}

TEST(offload_gso_extension_headers_beyond_the_head_are_not_looked_at)
{
    for (uint16_t len = 448; len <= 2048; len += 8) { /* from 502 on there is no room for the start of another one */
        struct recipe r = TCP6;
        r.n_extension = 3;
        r.extension[0] = r.extension[1] = r.extension[2] = DESTINATION;
        r.extension_len[0] = len;
        r.extension_len[1] = r.extension_len[2] = 8;
        struct virtio_net_hdr header = cooked_header(&r, 1000);
        header.csum_start = 60; /* doesn't pull what the headers need */
        CHECK(!let(&header, ALL));
    }
}

TEST(offload_gso_that_fits_one_segment_is_a_checksum)
{
    static const uint32_t payloads[] = { 0, 1, 999, 1000 };
    for (int i = 0; i < 4; i++) {
        struct recipe r = TCP4;
        r.payload = payloads[i];
        struct virtio_net_hdr header = cooked_header(&r, 1000);
        header.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
        CHECK(admit(&f, &frame, &header, ALL, NULL, 0));
        CHECK(f.frame.request.checksum);
        CHECK_EQ(f.frame.request.gso_type, VIRTIO_NET_HDR_GSO_NONE);
        CHECK_EQ(f.frame.request.gso_size, 0);
        CHECK_EQ(f.frame.request.hdr_len, 0);
        scattered_frame_free(&f);
    }
}

TEST(offload_gso_of_too_many_segments_is_refused)
{
    static const uint16_t sizes[] = { 1, 2, 31 };
    for (int i = 0; i < 3; i++) {
        struct recipe r = UDP4;
        r.payload = PVS_MAX_PIECES * sizes[i];
        struct virtio_net_hdr header = cooked_header(&r, sizes[i]);
        CHECK(let(&header, ALL));
        r.payload++;
        header = cooked_header(&r, sizes[i]);
        CHECK(!let(&header, ALL));
    }
}

TEST(offload_gso_of_more_than_ip_can_carry_is_refused)
{
    struct recipe r = TCP4;
    r.payload = 65535 - 40;
    struct virtio_net_hdr header = cooked_header(&r, 1000);
    CHECK(let(&header, ALL));
    r.payload++;
    header = cooked_header(&r, 1000);
    CHECK(!let(&header, ALL));
    /* IPv6 doesn't count its own header, so the longest frame there is fits */
    r.v6 = true;
    r.payload = PVS_MAX_FRAME - 74;
    header = cooked_header(&r, 1000);
    CHECK(let(&header, ALL));
}
