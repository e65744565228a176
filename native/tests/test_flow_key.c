/* SPDX-License-Identifier: Apache-2.0 */
/* test_flow_key.c - what flows see of a frame is what a plain reader sees, wherever it is cut off; and nothing can be hidden (flow_key.h). */
#include "flow_key.h"
#include "flow_lab.h"
#include "offload.h"
#include "parse.h"
#include "scatter.h"
#include "test.h"

enum { MOST = 2048, SLOT = 7, TUN_ID = 5001 };

static uint8_t bytes[PVS_MAX_FRAME];
static struct scattered_frame f;

/* ---- the plain reader: all of the frame, one byte after the other ---- */

struct reader {
    uint32_t at, end; /* of what may be read */
};

static bool
has(const struct reader *r, uint32_t n)
{
    return r->at + n <= r->end;
}

static uint64_t
take(struct reader *r, uint32_t n)
{
    uint64_t v = 0;

    for (; n != 0; n--)
        v = v << 8 | bytes[r->at++];
    return v;
}

static void
read_l4(struct reader r, uint64_t proto, bool v6, uint64_t *key)
{
    if ((proto == 6 && has(&r, 20)) || (proto == 17 && has(&r, 8)) || (proto == 132 && has(&r, 12))) {
        key[3] |= take(&r, 4);
        r.at += 8;
        if (proto == 6)
            key[8] = take(&r, 2) & 0xfff;
    } else if ((proto == (v6 ? 58 : 1)) && has(&r, 8)) {
        uint64_t type = take(&r, 1), code = take(&r, 1);
        key[3] |= type << 16 | code;
        r.at += 6;
        if (v6 && (type == 135 || type == 136) && code == 0 && has(&r, 16)) {
            key[10] = take(&r, 8);
            key[11] = take(&r, 8);
        }
    }
}

static void
read_ip(const struct reader *r, uint64_t *key)
{
    struct flow_layout o = flow_layout_of(bytes, r->end);
    bool unknown = o.v6 && o.l4 == 0 && !o.later; /* extension headers that end early */
    uint64_t proto = unknown ? 0 : o.later && o.v6 ? 44 : o.proto;

    if (o.l3 == 0)
        return;
    struct reader ip = { .at = o.l3, .end = o.end }, l4 = { .at = o.l4, .end = o.end };
    uint64_t frag = unknown || !o.fragment ? 0 : o.later ? 3 : 1, tos, ttl;
    if (o.v6) {
        tos = take(&ip, 2) >> 4 & 0xff;
        ip.at += 5;
        ttl = take(&ip, 1);
        for (uint32_t w = 4; w < 8; w++)
            key[w] = take(&ip, 8);
    } else {
        ip.at++;
        tos = take(&ip, 1);
        ip.at += 6;
        ttl = take(&ip, 1);
        ip.at += 3;
        key[5] = take(&ip, 4);
        key[7] = take(&ip, 4);
    }
    key[3] = proto << 56 | (unknown ? 0 : tos << 48 | ttl << 40) | frag << 32;
    if (o.l4 != 0)
        read_l4(l4, proto, o.v6, key);
}

static void
read_key(uint32_t len, uint64_t key[PVS_FLOW_WORDS])
{
    struct reader r = { .end = len };

    memset(key, 0, PVS_FLOW_WORDS * sizeof key[0]);
    key[0] = (uint64_t)SLOT << 32 | TUN_ID;
    key[1] = take(&r, 6) << 16;
    key[2] = take(&r, 6) << 16;
    uint64_t type = take(&r, 2);
    for (int tags = 0; tags < 2 && (type == 0x8100 || type == 0x88a8); tags++) {
        uint64_t tci = take(&r, 2);
        key[2] |= tags == 0 ? tci | 0x1000 : 0;
        type = take(&r, 2);
    }
    if (type < 0x600) {
        bool snap = has(&r, 8) && take(&r, 3) == 0xaaaa03 && take(&r, 3) == 0;
        type = snap ? take(&r, 2) : 0;
        type = type < 0x600 ? 0x5ff : type;
    }
    key[1] |= type;
    if (type == 0x0800 || type == 0x86dd) {
        read_ip(&r, key);
    } else if ((type == 0x0806 || type == 0x8035) && has(&r, 28) && take(&r, 6) == 0x000108000604) {
        uint64_t op = take(&r, 2);
        key[3] = (op < 256 ? op : 0) << 56;
        key[8] = take(&r, 6) << 16;
        key[5] = take(&r, 4);
        key[9] = take(&r, 6) << 16;
        key[7] = take(&r, 4);
    }
}

/* ---- frames ---- */

static bool
make(uint32_t len)
{
    static const uint16_t cut[] = { 1, 7, 64 };

    scattered_frame_make(&f, bytes, len, cut, 3);
    return pvs_parse(&f.frame);
}

/* A frame of the first `len` bytes is seen as the plain reader sees it, at both depths. */
static void
compare(uint32_t len)
{
    uint64_t expected[PVS_FLOW_WORDS], key[PVS_FLOW_WORDS];

    if (make(len)) {
        pvs_flow_pull(&f.frame);
        CHECK(!f.frame.malformed);
        pvs_flow_key(&f.frame, SLOT, TUN_ID, PVS_DEPTH_L3, key);
        read_key(len, expected);
        for (uint32_t w = 0; w < PVS_FLOW_WORDS; w++)
            CHECK_EQ(key[w], expected[w]);
        pvs_flow_key(&f.frame, SLOT, TUN_ID, PVS_DEPTH_L2, key);
        for (uint32_t w = 0; w < PVS_FLOW_WORDS; w++)
            CHECK_EQ(key[w], w < 3 ? expected[w] : 0);
    }
    scattered_frame_free(&f);
}

TEST(each_header_is_read_wherever_the_frame_ends)
{
    uint64_t state = 1;

    for (uint32_t i = 0; i < 400; i++) {
        uint32_t len = flow_frame(&state, &FLOW_ANY, bytes);
        for (uint32_t n = PVS_ETH_HLEN; n <= len; n++)
            compare(n);
        memset(bytes + len, 0x55, 30); /* padding, which is nobody's header */
        compare(len + 30);
    }
}

/* The frame is whole, but its headers are anything. */
TEST(headers_that_lie_are_read_as_a_plain_reader_does)
{
    uint64_t state = 2;

    for (uint32_t i = 0; i < 30000; i++) {
        uint32_t len = flow_frame(&state, &FLOW_ANY, bytes);
        for (uint32_t n = 1 + flow_random(&state, 3); n != 0; n--)
            bytes[12 + flow_random(&state, len - 12)] =
                (uint8_t)(flow_random(&state, 4) == 0 ? 0 : flow_random(&state, 256));
        compare(len);
    }
}

/* ---- the short way to a key ---- */

static struct pvs_frame
read_again(struct pvs_seg *tail, const uint8_t *data, uint32_t len)
{
    struct pvs_frame frame = { 0 };

    pvs_frame_from_bytes(&frame, tail, data, len);
    if (!pvs_parse(&frame))
        frame.malformed = true;
    else
        pvs_flow_pull(&frame);
    return frame;
}

/* Two frames that differ in a byte or so: if they are said to have one key, they do. Most that may differ there are recognised. */
TEST(frames_that_are_said_to_have_one_key_have)
{
    static const struct flow_recipe usual[2] = {
        { .tags = -1, .proto = -1, .whole = true, .plain = true, .payload = 40 },
        { .tags = -1, .type = 1, .proto = -1, .whole = true, .plain = true, .payload = 40 },
    };
    static uint8_t other[MOST];
    uint64_t state = 5;
    uint32_t said[3] = { 0 }, one_key[3] = { 0 };

    for (uint32_t i = 0; i < 90000; i++) {
        uint32_t kind = i % 3, len = flow_frame(&state, kind == 2 ? &FLOW_ANY : &usual[kind], bytes), n = len;
        uint32_t most = kind == 0 ? 60 : 80, reach = len < most ? len : most;
        memcpy(other, bytes, len);
        for (uint32_t k = flow_random(&state, 3); k != 0; k--)
            other[flow_random(&state, reach)] ^= (uint8_t)(1 << flow_random(&state, 8));
        if (flow_random(&state, 8) == 0)
            n -= flow_random(&state, len - 13);
        struct pvs_seg a_tail, b_tail;
        struct pvs_frame a = read_again(&a_tail, bytes, len), b = read_again(&b_tail, other, n);
        if (a.malformed || b.malformed)
            continue;
        for (enum pvs_flow_depth depth = PVS_DEPTH_L2; depth <= PVS_DEPTH_L3; depth++) {
            uint64_t of_a[PVS_FLOW_WORDS], of_b[PVS_FLOW_WORDS];
            bool same = pvs_flow_same_key(&a, &b, depth);
            pvs_flow_key(&a, SLOT, 0, depth, of_a);
            pvs_flow_key(&b, SLOT, 0, depth, of_b);
            bool really = memcmp(of_a, of_b, sizeof of_a) == 0;
            CHECK(!same || really);
            said[kind] += depth != PVS_DEPTH_L2 && same;
            one_key[kind] += depth != PVS_DEPTH_L2 && really;
        }
    }
    for (uint32_t kind = 0; kind < 3; kind++)
        CHECK(said[kind] > one_key[kind] / (kind == 2 ? 10 : 4));
}

/* ---- nothing can be hidden ---- */

static const struct flow_recipe TCP4 = { .proto = 6, .whole = true, .payload = 3000 };
static const struct flow_recipe TCP6 = { .type = 1, .proto = 6, .whole = true, .plain = true, .payload = 3000 };

/* Segments get right lengths when the frame is cut, so a wrong one says nothing. */
TEST(a_frame_that_is_to_be_cut_is_not_believed_its_length)
{
    for (uint32_t v6 = 0; v6 < 2; v6++)
        for (uint32_t lie = 0; lie < 4; lie++) {
            static const uint16_t lies[] = { 0, 1, 20, 0xffff };
            uint64_t state = 3, key[PVS_FLOW_WORDS], expected[PVS_FLOW_WORDS];
            uint32_t len = flow_frame(&state, v6 ? &TCP6 : &TCP4, bytes);
            struct flow_layout o = flow_layout_of(bytes, len);
            struct virtio_net_hdr header = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                             .gso_type = v6 ? VIRTIO_NET_HDR_GSO_TCPV6 : VIRTIO_NET_HDR_GSO_TCPV4,
                                             .gso_size = 1000,
                                             .csum_start = (uint16_t)o.l4,
                                             .csum_offset = 16 };
            read_key(len, expected);
            flow_put16(bytes + o.l3 + (v6 ? 4 : 2), lies[lie]);
            CHECK(make(len) && pvs_offload_check(&f.frame, &header, 63));
            pvs_flow_pull(&f.frame);
            CHECK(!f.frame.malformed);
            pvs_flow_key(&f.frame, SLOT, TUN_ID, PVS_DEPTH_L3, key);
            for (uint32_t w = 0; w < PVS_FLOW_WORDS; w++)
                CHECK_EQ(key[w], expected[w]);
            scattered_frame_free(&f);
        }
}

/* Does a frame with this request to fill in a checksum pass? */
static bool
passes(uint32_t len, uint32_t start, uint32_t offset)
{
    struct virtio_net_hdr header = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                     .csum_start = (uint16_t)start,
                                     .csum_offset = (uint16_t)offset };

    bool good = make(len) && pvs_offload_check(&f.frame, &header, 63);
    if (good) {
        pvs_flow_pull(&f.frame);
        good = !f.frame.malformed;
    }
    scattered_frame_free(&f);
    return good;
}

/*
 * Wherever two bytes are written that a sender left to be filled in: if its frame passes, a plain reader sees the same before and after.
 */
TEST(a_checksum_is_not_written_over_what_flows_have_seen)
{
    uint64_t state = 4;
    uint32_t passed = 0;

    for (uint32_t i = 0; i < 600; i++) {
        uint32_t len = flow_frame(&state, &FLOW_ANY, bytes);
        uint32_t first = 14;
        while (first < 22 && (flow_get16(bytes + first - 2) == 0x8100 || flow_get16(bytes + first - 2) == 0x88a8))
            first += 4;
        for (uint32_t at = first; at + 2 <= len; at++) {
            uint64_t before[PVS_FLOW_WORDS], after[PVS_FLOW_WORDS];
            if (!passes(len, first, at - first))
                continue;
            passed++;
            uint8_t was[2] = { bytes[at], bytes[at + 1] };
            read_key(len, before);
            for (uint32_t value = 0; value < 3; value++) {
                flow_put16(bytes + at, value == 0 ? 0 : value == 1 ? 0xffff : flow_random(&state, 65536));
                read_key(len, after);
                CHECK(memcmp(before, after, sizeof before) == 0);
            }
            memcpy(bytes + at, was, 2);
        }
    }
    CHECK(passed > 1000);
}

/* Of four tags the last two are payload, until flows take the first two off and `normal` looks at those. */
TEST(a_checksum_is_not_written_over_tags_that_may_come_to_light)
{
    uint32_t len = 14 + 4 * 4 + 60;

    memset(bytes, 0, len);
    for (uint32_t i = 0; i < 4; i++)
        flow_put16(bytes + 12 + 4 * i, 0x8100);
    for (uint32_t at = 22; at < 30; at++)
        CHECK(!passes(len, 22, at - 22));
    CHECK(passes(len, 22, 30 - 22));
}

TEST(an_honest_checksum_request_passes)
{
    static const struct {
        uint8_t proto, offset;
    } honest[] = { { 6, 16 }, { 17, 6 }, { 1, 2 }, { 58, 2 } };
    uint64_t state = 5;

    for (uint32_t i = 0; i < 400; i++) {
        uint32_t kind = i % 4;
        struct flow_recipe r = { .tags = -1,
                                 .type = kind == 2   ? 0
                                         : kind == 3 ? 1
                                                     : (int)(i / 4 % 2),
                                 .proto = honest[kind].proto,
                                 .whole = true };
        uint32_t len = flow_frame(&state, &r, bytes);
        struct flow_layout o = flow_layout_of(bytes, len);
        CHECK(passes(len, o.l4, honest[kind].offset));
    }
}

/* An IPv6 frame of TCP behind options of so many bytes. */
static uint32_t
behind_options(uint32_t options)
{
    uint64_t state = 6;
    static uint8_t plain[MOST * 2];
    uint32_t len = flow_frame(&state, &TCP6, bytes), at = 54;

    memcpy(plain, bytes, len);
    bytes[20] = 60;
    for (uint32_t left = options; left != 0;) {
        uint32_t part = left < 1024 ? left : 1024;
        memset(bytes + at, 0, part);
        bytes[at] = left == part ? 6 : 60;
        bytes[at + 1] = (uint8_t)(part / 8 - 1);
        at += part;
        left -= part;
    }
    memcpy(bytes + at, plain + 54, len - 54);
    flow_put16(bytes + 18, len + options - 54);
    return len + options;
}

/* What lies behind more headers than are looked at doesn't pass; what is looked at is seen. */
TEST(nothing_hides_behind_extension_headers)
{
    bool hidden = false;

    for (uint32_t options = 8; options <= 1600; options += 8) {
        uint64_t key[PVS_FLOW_WORDS], expected[PVS_FLOW_WORDS];
        uint32_t len = behind_options(options);
        CHECK(make(len));
        pvs_flow_pull(&f.frame);
        CHECK(!hidden || f.frame.malformed);
        hidden = f.frame.malformed;
        if (!hidden) {
            pvs_flow_key(&f.frame, SLOT, TUN_ID, PVS_DEPTH_L3, key);
            read_key(len, expected);
            CHECK(memcmp(key, expected, sizeof key) == 0);
            CHECK(key[3] >> 56 == 6 && (key[3] & 0xffff) != 0);
        }
        CHECK(hidden == (54 + options + 20 > 496));
        scattered_frame_free(&f);
    }
    CHECK(hidden);
}

/* Linux takes an IPv6 packet without a length, if a hop-by-hop header follows, as long as it came. */
TEST(a_packet_without_a_length_is_all_there_is)
{
    uint64_t key[PVS_FLOW_WORDS];
    uint32_t len = behind_options(8);

    bytes[20] = 0;
    flow_put16(bytes + 18, 0);
    CHECK(make(len));
    pvs_flow_pull(&f.frame);
    pvs_flow_key(&f.frame, SLOT, TUN_ID, PVS_DEPTH_L3, key);
    CHECK(key[3] >> 56 == 6 && (key[3] & 0xffff) != 0);
    scattered_frame_free(&f);
}
