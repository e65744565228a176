/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_encap.c - the headers of tunnels byte by byte, as RFC 7348, RFC 8926, RFC 2784 and RFC 2890 draw them, and what RFC 6040 has done with
 * DSCP and ECN (encap.h).
 */
#include <stdlib.h>
#include <string.h>

#include "encap.h"
#include "offload_lab.h"

enum { PAYLOAD = 30, NOT_ECT = 0, ECT_1 = 1, ECT_0 = 2, CE = 3, DROPPED = 4 };

/* Read a copy that ends where memory ends: ASan sees who looks further. */
static bool
reads(enum pvs_tunnel_kind kind, const uint8_t *bytes, uint32_t len, struct pvs_outer *outer)
{
    uint8_t *exact = malloc(len + (len == 0));

    memcpy(exact, bytes, len);
    *outer = (struct pvs_outer){ .vni = 12345, .len = 99 };
    bool taken = pvs_outer_read(kind, exact, len, outer);
    free(exact);
    return taken;
}

static void
check_read(enum pvs_tunnel_kind kind, const uint8_t *bytes, uint32_t len, uint64_t vni, uint32_t header)
{
    struct pvs_outer outer;

    CHECK(reads(kind, bytes, len, &outer));
    CHECK_EQ(outer.vni, vni);
    CHECK_EQ(outer.len, header);
}

static void
check_refused(enum pvs_tunnel_kind kind, const uint8_t *bytes, uint32_t len)
{
    struct pvs_outer outer;

    CHECK(!reads(kind, bytes, len, &outer));
}

/* A header with a payload behind it is taken down to its last byte, and no further. */
static void
check_truncated(enum pvs_tunnel_kind kind, const uint8_t *bytes, uint32_t header, uint64_t vni)
{
    uint8_t packet[300 + PAYLOAD] = { 0 };

    memcpy(packet, bytes, header);
    for (uint32_t len = 0; len < header; len++)
        check_refused(kind, packet, len);
    for (uint32_t len = header; len <= header + PAYLOAD; len++)
        check_read(kind, packet, len, vni, header);
}

static void
check_written(enum pvs_tunnel_kind kind, uint64_t vni, const uint8_t *wanted, uint32_t len)
{
    uint8_t header[PVS_OUTER + 8];

    memset(header, 0xee, sizeof header);
    CHECK_EQ(pvs_outer_write(kind, vni, header), len);
    CHECK(memcmp(header, wanted, len) == 0);
    for (uint32_t i = len; i < sizeof header; i++)
        CHECK_EQ(header[i], 0xee);
    check_truncated(kind, header, len, vni);
}

TEST(encap_headers_are_written_as_the_rfcs_draw_them)
{
    check_written(PVS_VXLAN, 0x123456, (const uint8_t[]){ 8, 0, 0, 0, 0x12, 0x34, 0x56, 0 }, 8);
    check_written(PVS_VXLAN, 0xffffff, (const uint8_t[]){ 8, 0, 0, 0, 0xff, 0xff, 0xff, 0 }, 8);
    check_written(PVS_VXLAN, 0, (const uint8_t[]){ 8, 0, 0, 0, 0, 0, 0, 0 }, 8);
    check_written(PVS_GENEVE, 0x123456, (const uint8_t[]){ 0, 0, 0x65, 0x58, 0x12, 0x34, 0x56, 0 }, 8);
    check_written(PVS_GENEVE, 0xffffff, (const uint8_t[]){ 0, 0, 0x65, 0x58, 0xff, 0xff, 0xff, 0 }, 8);
    check_written(PVS_GRE, PVS_NO_KEY, (const uint8_t[]){ 0, 0, 0x65, 0x58 }, 4);
    check_written(PVS_GRE, 0, (const uint8_t[]){ 0x20, 0, 0x65, 0x58, 0, 0, 0, 0 }, 8);
    check_written(PVS_GRE, 0xfedcba98, (const uint8_t[]){ 0x20, 0, 0x65, 0x58, 0xfe, 0xdc, 0xba, 0x98 }, 8);
}

TEST(encap_vxlan_asks_for_one_flag_and_ignores_the_rest)
{
    uint8_t h[8 + PAYLOAD] = { 8, 0, 0, 0, 1, 2, 3, 0 };

    for (uint32_t flags = 0; flags < 256; flags++) {
        h[0] = (uint8_t)flags;
        if ((flags & 8) != 0)
            check_read(PVS_VXLAN, h, sizeof h, 0x010203, 8);
        else
            check_refused(PVS_VXLAN, h, sizeof h);
    }
    memset(h, 0xff, 8); /* reserved bits count for nothing on receipt (RFC 7348, 5) */
    check_read(PVS_VXLAN, h, sizeof h, 0xffffff, 8);
}

TEST(encap_geneve_skips_options_that_are_not_critical)
{
    uint8_t h[8 + 63 * 4 + PAYLOAD] = { 0, 0, 0x65, 0x58, 1, 2, 3, 0 };

    for (uint32_t words = 0; words < 64; words++) {
        h[0] = (uint8_t)words;
        check_truncated(PVS_GENEVE, h, 8 + 4 * words, 0x010203);
    }
    h[0] = 1;
    for (uint32_t version = 1; version < 4; version++) {
        h[0] = (uint8_t)(version << 6 | 1);
        check_refused(PVS_GENEVE, h, sizeof h);
    }
    h[0] = 0;
    for (uint32_t flags = 0; flags < 256; flags++) { /* O, C, and six reserved bits */
        h[1] = (uint8_t)flags;
        if ((flags & 0xc0) != 0)
            check_refused(PVS_GENEVE, h, sizeof h);
        else
            check_read(PVS_GENEVE, h, sizeof h, 0x010203, 8);
    }
    h[1] = 0;
    h[7] = 0xff; /* reserved */
    check_read(PVS_GENEVE, h, sizeof h, 0x010203, 8);
}

TEST(encap_only_ethernet_is_carried)
{
    uint8_t geneve[8 + PAYLOAD] = { 0, 0, 0x65, 0x58, 1, 2, 3, 0 }, gre[4 + PAYLOAD] = { 0, 0, 0x65, 0x58 };

    for (uint32_t type = 0; type < 0x10000; type++) {
        struct pvs_outer outer;
        put16(geneve + 2, type);
        put16(gre + 2, type);
        CHECK_EQ(pvs_outer_read(PVS_GENEVE, geneve, sizeof geneve, &outer), type == 0x6558);
        CHECK_EQ(pvs_outer_read(PVS_GRE, gre, sizeof gre, &outer), type == 0x6558);
    }
}

/* A GRE packet with these of C, K and S, its checksum right; how long its header is. */
static uint32_t
make_gre(uint8_t *p, uint32_t flags, uint32_t len)
{
    uint32_t at = 4;

    for (uint32_t i = 0; i < len; i++)
        p[i] = (uint8_t)(i * 2654435761U >> 11);
    put16(p, flags);
    put16(p + 2, 0x6558);
    if ((flags & 0x8000) != 0) {
        memset(p + at, 0, 4);
        at += 4;
    }
    if ((flags & 0x2000) != 0) {
        memcpy(p + at, (const uint8_t[]){ 0xca, 0xfe, 0xba, 0xbe }, 4);
        at += 4;
    }
    at += (flags & 0x1000) != 0 ? 4 : 0;
    if ((flags & 0x8000) != 0)
        put16(p + 4, 0xffff & ~simple_sum(0, p, len));
    return at;
}

TEST(encap_gre_takes_each_mixture_of_checksum_key_and_sequence_number)
{
    for (uint32_t mixture = 0; mixture < 8; mixture++) {
        uint32_t flags = (mixture & 1) << 15 | (mixture & 2) << 12 | (mixture & 4) << 10;
        for (uint32_t len = 16; len < 80; len++) { /* even and odd lengths */
            uint8_t p[80];
            uint32_t header = make_gre(p, flags, len);
            check_read(PVS_GRE, p, len, (mixture & 2) != 0 ? 0xcafebabe : PVS_NO_KEY, header);
        }
        for (uint32_t len = 0; len < 16; len++) {
            uint8_t p[16];
            uint32_t header = make_gre(p, flags, 16);
            if ((flags & 0x8000) != 0 || len < header)
                check_refused(PVS_GRE, p, len);
        }
    }
}

TEST(encap_gre_checksum_covers_each_byte)
{
    uint8_t p[61];
    uint32_t header = make_gre(p, 0xb000, sizeof p);

    check_read(PVS_GRE, p, sizeof p, 0xcafebabe, header);
    for (uint32_t bit = 0; bit < 8 * sizeof p; bit++) {
        p[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (bit / 8 >= 2) /* without its flag there is no checksum */
            check_refused(PVS_GRE, p, sizeof p);
        p[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    make_gre(p, 0x8000, 12);
    p[4] = p[5] = 0;
    check_refused(PVS_GRE, p, 12);
}

TEST(encap_gre_refuses_what_rfc_2784_tells_it_to)
{
    for (uint32_t flags = 0; flags < 0x8000; flags++) {
        uint8_t p[40];
        uint32_t header = make_gre(p, flags, sizeof p);
        struct pvs_outer outer;
        bool refused = (flags & 0x4c07) != 0; /* R, s, the first bit of Recur; versions but 0 */
        CHECK_EQ(pvs_outer_read(PVS_GRE, p, sizeof p, &outer), !refused);
        CHECK(refused || outer.len == header);
    }
}

/* ---- DSCP and ECN ---- */

static struct cooked cooked;
static struct scattered_frame f;

/* A finished UDP frame with this TOS. */
static void
frame_with(bool v6, uint8_t tags, uint8_t tos)
{
    struct recipe r = { .udp = true, .v6 = v6, .tags = tags, .payload = 50, .id = 7 };

    cook(&r, FINISHED, &cooked);
    uint8_t *ip = cooked.bytes + cooked.l3;
    if (v6) {
        ip[0] = (uint8_t)(0x60 | tos >> 4);
        ip[1] = (uint8_t)(tos << 4 | 0x0a); /* with a flow label */
        ip[2] = 0xbc;
    } else {
        ip[1] = tos;
        put16(ip + 10, 0);
        put16(ip + 10, 0xffff & ~simple_sum(0, ip, 20));
    }
    scattered_frame_make(&f, cooked.bytes, cooked.len, NULL, 0);
    CHECK(pvs_parse(&f.frame));
}

/* RFC 6040, figure 4: by inner, then outer. */
static const uint8_t ARRIVES[4][4] = {
    [NOT_ECT] = { [NOT_ECT] = NOT_ECT, [ECT_0] = NOT_ECT, [ECT_1] = NOT_ECT, [CE] = DROPPED },
    [ECT_0] = { [NOT_ECT] = ECT_0, [ECT_0] = ECT_0, [ECT_1] = ECT_1, [CE] = CE },
    [ECT_1] = { [NOT_ECT] = ECT_1, [ECT_0] = ECT_1, [ECT_1] = ECT_1, [CE] = CE },
    [CE] = { [NOT_ECT] = CE, [ECT_0] = CE, [ECT_1] = CE, [CE] = CE },
};

static void
check_arrival(bool v6, uint8_t tags, uint8_t dscp, uint8_t inner, uint8_t outer)
{
    uint8_t arrives = ARRIVES[inner][outer], wanted[PVS_HEAD];
    uint32_t head_len;

    if (arrives != DROPPED) { /* what it would have been, had it been sent so */
        frame_with(v6, tags, (uint8_t)(dscp << 2 | arrives));
        memcpy(wanted, f.frame.head, f.frame.head_len);
        scattered_frame_free(&f);
    }
    frame_with(v6, tags, (uint8_t)(dscp << 2 | inner));
    head_len = f.frame.head_len;
    if (arrives == DROPPED)
        memcpy(wanted, f.frame.head, head_len);
    CHECK_EQ(pvs_ecn_inherit(&f.frame, (uint8_t)((dscp ^ 0x3fU) << 2 | outer)), arrives != DROPPED);
    CHECK(memcmp(f.frame.head, wanted, head_len) == 0);
    scattered_frame_free(&f);
}

TEST(encap_congestion_is_told_as_rfc_6040_says)
{
    for (int all = 0; all < 64 * 16; all++)
        for (uint8_t tags = 0; tags <= 2; tags++) {
            uint8_t dscp = (uint8_t)(all >> 4), inner = all >> 2 & 3, outer = all & 3;
            check_arrival(false, tags, dscp, inner, outer);
            check_arrival(true, tags, dscp, inner, outer);
        }
}

/* Each checksum that there may be; eqn. 3 of RFC 1624 knows no exception. */
TEST(encap_a_marked_ipv4_header_has_a_right_checksum_whatever_it_was)
{
    frame_with(false, 0, ECT_0);
    uint8_t *ip = f.frame.head + 14;
    for (uint32_t id = 0; id < 0x10000; id++) {
        put16(ip + 4, id);
        ip[1] = ECT_0;
        put16(ip + 10, 0);
        put16(ip + 10, 0xffff & ~simple_sum(0, ip, 20));
        CHECK(pvs_ecn_inherit(&f.frame, CE));
        CHECK_EQ(ip[1], CE);
        CHECK_EQ(simple_sum(0, ip, 20), 0xffff);
        CHECK(ip[10] != 0xff || ip[11] != 0xff); /* as it would be computed anew */
    }
    scattered_frame_free(&f);
}

/* Not even a checksum that is 0xffff, which nobody computes, and which is the same as 0. */
TEST(encap_what_is_marked_already_stays_as_it_is)
{
    for (int outer = ECT_1; outer <= CE; outer += 2)
        for (int inner = outer; inner <= CE; inner += 2) {
            frame_with(false, 0, (uint8_t)inner);
            uint8_t *ip = f.frame.head + 14;
            put16(ip + 10, 0xffff);
            CHECK(pvs_ecn_inherit(&f.frame, (uint8_t)outer));
            CHECK_EQ(ip[1], inner);
            CHECK(ip[10] == 0xff && ip[11] == 0xff);
            scattered_frame_free(&f);
        }
}

TEST(encap_what_is_not_ip_has_no_congestion_to_tell_of)
{
    uint8_t bytes[60] = { 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2 };

    for (uint32_t i = 0; i < 3; i++) {
        static const uint16_t types[] = { 0x88b5, 0x0800, 0x86dd };
        static const uint32_t lens[] = { 60, 14 + 19, 14 + 39 }; /* no header, or one that is cut short */
        put16(bytes + 12, types[i]);
        scattered_frame_make(&f, bytes, lens[i], NULL, 0);
        CHECK(pvs_parse(&f.frame));
        CHECK(pvs_ecn_inherit(&f.frame, CE));
        CHECK(memcmp(f.frame.head, bytes, lens[i]) == 0);
        CHECK_EQ(pvs_outer_tos(&f.frame, -1), 0);
        CHECK_EQ(pvs_outer_tos(&f.frame, 0xb8), 0xb8);
        CHECK_EQ(pvs_outer_tos(&f.frame, 0xbb), 0xb8); /* ECN is the frame's affair */
        scattered_frame_free(&f);
    }
}

TEST(encap_the_outer_tos_is_given_or_inherited_with_the_inner_ecn)
{
    for (uint32_t tos = 0; tos < 256; tos++)
        for (uint8_t tags = 0; tags <= 2; tags++)
            for (int v6 = 0; v6 < 2; v6++) {
                frame_with(v6 != 0, tags, (uint8_t)tos);
                CHECK_EQ(pvs_outer_tos(&f.frame, -1), tos);
                CHECK_EQ(pvs_outer_tos(&f.frame, 0), tos & 3);
                CHECK_EQ(pvs_outer_tos(&f.frame, 0xb8), 0xb8 | (tos & 3));
                CHECK_EQ(pvs_outer_tos(&f.frame, 0xff), 0xfc | (tos & 3));
                scattered_frame_free(&f);
            }
}
