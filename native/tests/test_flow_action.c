/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_flow_action.c - what actions do to a frame is what a plain editor does, who computes each checksum anew over all of the frame
 * (flow_action.h).
 */
#include "flow_action.h"
#include "flow_lab.h"
#include "offload.h"
#include "parse.h"
#include "scatter.h"
#include "test.h"

enum { ROOM = 64 }; /* what edits may add */

static uint8_t bytes[PVS_MAX_FRAME + ROOM], got[PVS_MAX_FRAME + ROOM];
static uint32_t len;
static uint32_t tags; /* that are known: of those that came two at most, and those pushed */
static struct scattered_frame f;

static struct pvs_flow_action
action(uint32_t kind, uint64_t value)
{
    return (struct pvs_flow_action){ .kind = kind, .value = value };
}

/* ---- the plain editor ---- */

static void
plain_push(uint32_t tpid)
{
    memmove(bytes + 16, bytes + 12, len - 12);
    flow_put16(bytes + 12, tpid);
    flow_put16(bytes + 14, 0);
    len += 4;
    tags++;
}

static void
plain_vlan(const struct pvs_flow_action *a)
{
    if (a->kind == PVS_ACT_PUSH_VLAN) {
        plain_push((uint32_t)a->value);
    } else if (a->kind == PVS_ACT_POP_VLAN) {
        if (tags == 0)
            return;
        memmove(bytes + 12, bytes + 16, len - 16);
        len -= 4;
        tags--;
    } else {
        if (tags == 0)
            plain_push(0x8100);
        uint32_t tci = flow_get16(bytes + 14);
        flow_put16(bytes + 14, a->kind == PVS_ACT_SET_VLAN_VID ? (tci & 0xf000) | (uint32_t)a->value
                                                               : (tci & 0x1fff) | (uint32_t)a->value << 13);
    }
}

/* The checksums are written anew where something has changed. False: the frame goes no further. */
static bool
plain_ip(const struct pvs_flow_action *a, const struct flow_layout *o)
{
    uint8_t *ip = bytes + o->l3;
    uint32_t room = o->l4 == 0 ? 0 : o->end - o->l4;
    bool ports = (o->proto == 6 && room >= 20) || (o->proto == 17 && room >= 8) || (o->proto == 132 && room >= 12);
    bool no_sum = o->proto == 17 && room >= 8 && flow_get16(bytes + o->l4 + 6) == 0;

    switch (a->kind) {
    case PVS_ACT_SET_NW_SRC:
    case PVS_ACT_SET_NW_DST:
        if (o->v6)
            return true;
        flow_put16(ip + (a->kind == PVS_ACT_SET_NW_SRC ? 12 : 16), (uint32_t)(a->value >> 16));
        flow_put16(ip + (a->kind == PVS_ACT_SET_NW_SRC ? 14 : 18), (uint32_t)a->value);
        break;
    case PVS_ACT_SET_NW_TOS:
        if (o->v6)
            flow_put16(ip, (flow_get16(ip) & 0xf03f) | (uint32_t)a->value << 4);
        else
            ip[1] = (uint8_t)((ip[1] & 3) | a->value);
        break;
    case PVS_ACT_DEC_TTL:
        if (ip[o->v6 ? 7 : 8] <= 1)
            return false;
        ip[o->v6 ? 7 : 8]--;
        break;
    default:
        if (!ports)
            return true;
        flow_put16(bytes + o->l4 + (a->kind == PVS_ACT_SET_TP_SRC ? 0 : 2), (uint32_t)a->value);
    }
    flow_sums_write_at(bytes, o);
    if (no_sum)
        flow_put16(bytes + o->l4 + 6, 0);
    return true;
}

static bool
plain_edit(const struct pvs_flow_action *a)
{
    if (a->kind <= PVS_ACT_SET_VLAN_PCP) {
        plain_vlan(a);
        return true;
    }
    if (a->kind <= PVS_ACT_SET_DL_DST) {
        for (int i = 0; i < 6; i++)
            bytes[(a->kind == PVS_ACT_SET_DL_SRC ? 6 : 0) + i] = (uint8_t)(a->value >> (40 - 8 * i));
        return true;
    }
    struct flow_layout o = flow_layout_behind(bytes, len, tags);
    return o.l3 == 0 || plain_ip(a, &o);
}

/* ---- both, side by side ---- */

static void
make(const struct virtio_net_hdr *header)
{
    static const uint16_t cut[] = { 3, 50, 200 };

    scattered_frame_make(&f, bytes, len, cut, 3);
    tags = flow_tags(bytes, len);
    CHECK(pvs_parse(&f.frame));
    CHECK(pvs_offload_check(&f.frame, header, 63));
    pvs_flow_pull(&f.frame);
    CHECK(!f.frame.malformed);
}

/* The frame as the switch has it now is the plain one. */
static void
check_same(void)
{
    struct pvs_seg all = { .base = got, .len = sizeof got };
    struct pvs_cursor c = { .seg = &all, .n = 1 };
    CHECK_EQ(f.frame.len, len);
    pvs_frame_write(&f.frame, &c);
    for (uint32_t i = 0; i < len; i++)
        CHECK_EQ(got[i] | i << 8, bytes[i] | i << 8);
    CHECK_EQ(f.frame.parsed.l3_offset, 14 + 4 * tags);
    CHECK_EQ(f.frame.parsed.ethertype, flow_get16(bytes + 12 + 4 * tags));
    CHECK_EQ(f.frame.parsed.vid, tags > 0 ? flow_get16(bytes + 14) & 0xfff : 0);
    CHECK_EQ(f.frame.parsed.inner_vid, tags > 1 ? flow_get16(bytes + 18) & 0xfff : 0);
    for (int i = 0; i < 6; i++) {
        CHECK_EQ(f.frame.parsed.dst >> (40 - 8 * i) & 0xff, bytes[i]);
        CHECK_EQ(f.frame.parsed.src >> (40 - 8 * i) & 0xff, bytes[6 + i]);
    }
}

static struct pvs_flow_action
random_edit(uint64_t *state)
{
    uint32_t kind = PVS_ACT_PUSH_VLAN + flow_random(state, PVS_ACT_DEC_TTL - PVS_ACT_PUSH_VLAN + 1);
    uint32_t odd = flow_random(state, 3) == 0 ? 0 : flow_random(state, 3) == 0 ? 0xffff : flow_random(state, 65536);

    switch (kind) {
    case PVS_ACT_PUSH_VLAN:
        return action(kind, flow_random(state, 2) == 0 ? 0x8100 : 0x88a8);
    case PVS_ACT_SET_VLAN_VID:
        return action(kind, flow_random(state, 4096));
    case PVS_ACT_SET_VLAN_PCP:
        return action(kind, flow_random(state, 8));
    case PVS_ACT_SET_DL_SRC:
    case PVS_ACT_SET_DL_DST:
        return action(kind, (uint64_t)flow_random(state, 65536) << 32 | odd);
    case PVS_ACT_SET_NW_SRC:
    case PVS_ACT_SET_NW_DST:
        return action(kind, (uint64_t)flow_random(state, 65536) << 16 | odd);
    case PVS_ACT_SET_NW_TOS:
        return action(kind, flow_random(state, 64) << 2);
    default:
        return action(kind, odd);
    }
}

/* Edit by both; false: the frame goes no further, by both. */
static bool
edit_both(const struct pvs_flow_action *a)
{
    bool done, goes_on = plain_edit(a);
    enum pvs_drop drop = pvs_flow_edit(&f.frame, a, &done);

    CHECK_EQ(drop, goes_on ? PVS_DROP_none : PVS_DROP_ttl_exceeded);
    return goes_on;
}

TEST(edits_are_those_of_a_plain_editor)
{
    static const struct virtio_net_hdr nothing = { 0 };
    uint64_t state = 1;
    uint32_t ended = 0;

    for (uint32_t i = 0; i < 20000; i++) {
        struct flow_recipe r = FLOW_ANY;
        r.whole = true;
        len = flow_frame(&state, &r, bytes);
        CHECK(flow_sums_right(bytes, len) || len == 0);
        if (flow_random(&state, 3) == 0) { /* padding belongs to no checksum */
            memset(bytes + len, 0x99, 20);
            len += 20;
        }
        make(&nothing);
        for (uint32_t n = flow_random(&state, 10); n != 0; n--) {
            struct pvs_flow_action a = random_edit(&state);
            if (!edit_both(&a)) {
                ended++;
                break;
            }
            check_same();
        }
        scattered_frame_free(&f);
    }
    CHECK(ended > 100);
}

/* ---- checksums that are still to be filled in ---- */

/* A frame whose L4 checksum is left to be filled in, with what its field has to hold; cut into segments of so many bytes (0: not). */
static void
make_asking(uint64_t *state, bool udp, bool v6, uint32_t payload, uint16_t gso_size)
{
    struct flow_recipe r = {
        .tags = -1, .type = v6, .proto = udp ? 17 : 6, .whole = true, .plain = v6, .payload = payload
    };
    len = flow_frame(state, &r, bytes);
    struct flow_layout o = flow_layout_of(bytes, len);
    struct virtio_net_hdr h = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                .csum_start = (uint16_t)o.l4,
                                .csum_offset = udp ? 6 : 16,
                                .gso_size = gso_size };
    if (gso_size != 0)
        h.gso_type = udp ? VIRTIO_NET_HDR_GSO_UDP_L4 : v6 ? VIRTIO_NET_HDR_GSO_TCPV6 : VIRTIO_NET_HDR_GSO_TCPV4;

    flow_put16(bytes + o.l4 + h.csum_offset, flow_pseudo(bytes, &o));
    make(&h);
}

/* All pieces that a receiver without offloads gets are frames with right checksums. */
static void
check_pieces(uint32_t n)
{
    struct pvs_pieces *p = malloc(sizeof *p);
    uint32_t made = 0;

    for (bool more = pvs_pieces_begin(p, &f.frame, 0, 0); more; more = pvs_pieces_next(p)) {
        struct pvs_seg all = { .base = got, .len = sizeof got };
        struct pvs_cursor c = { .seg = &all, .n = 1 };
        pvs_piece_write(p, &c, 12);
        struct flow_layout o = flow_layout_behind(got + 12, p->len, pvs_tags(&f.frame.parsed));
        uint8_t *ip = got + 12 + o.l3;
        CHECK(o.l4 != 0 && flow_l4_sum(got + 12, &o, true));
        CHECK(o.v6 || flow_sum(0, ip, (ip[0] & 15U) * 4) == 0xffff);
        made++;
    }
    CHECK_EQ(made, n);
    free(p);
}

TEST(checksums_to_be_filled_in_come_right)
{
    uint64_t state = 2;

    for (uint32_t i = 0; i < 3000; i++) {
        bool udp = i & 1, v6 = i & 2, cut = i & 4;
        uint32_t payload = 1 + flow_random(&state, 3000);
        uint16_t size = (uint16_t)(cut ? 1 + payload / (1 + flow_random(&state, 20)) : 0);
        make_asking(&state, udp, v6, payload, size);
        uint16_t l4 = (uint16_t)flow_layout_of(bytes, len).l4;
        bool alive = true;
        for (uint32_t n = flow_random(&state, 10); n != 0 && alive; n--) {
            struct pvs_flow_action a = random_edit(&state);
            bool done;
            alive = pvs_flow_edit(&f.frame, &a, &done) == PVS_DROP_none;
        }
        if (alive) {
            CHECK_EQ(f.frame.request.csum_start - f.frame.parsed.l3_offset, l4 - flow_layout_of(bytes, len).l3);
            check_pieces(pvs_frame_segments(&f.frame));
        }
        scattered_frame_free(&f);
    }
}

/* UDP may have no checksum; one that comes out as 0 is sent as 0xffff, and so is told from none (RFC 768). */
TEST(udp_without_a_checksum_keeps_none)
{
    static const struct virtio_net_hdr nothing = { 0 };
    static const struct flow_recipe udp = { .type = 0, .proto = 17, .whole = true, .plain = true, .payload = 30 };
    uint64_t state = 3;
    uint32_t ones = 0;

    for (uint32_t i = 0; i < 65536; i++) {
        struct pvs_flow_action a = action(PVS_ACT_SET_TP_DST, i);
        if (i == 0) {
            len = flow_frame(&state, &udp, bytes);
            flow_sums_write(bytes, len);
            make(&nothing);
        }
        CHECK(edit_both(&a));
        uint32_t sum = flow_get16(f.frame.head + 40);
        CHECK(sum != 0 && sum == flow_get16(bytes + 40));
        ones += sum == 0xffff;
    }
    CHECK(ones >= 1);
    scattered_frame_free(&f);
    flow_put16(bytes + 40, 0);
    make(&nothing);
    struct pvs_flow_action a = action(PVS_ACT_SET_NW_SRC, 0x01020304);
    CHECK(edit_both(&a));
    check_same();
    scattered_frame_free(&f);
}

/* ---- fragments ---- */

/* An edited first fragment is the first fragment of the edited packet; behind it only the addresses change. */
TEST(fragments_are_parts_of_the_edited_packet)
{
    static const struct virtio_net_hdr nothing = { 0 };
    uint64_t state = 4;

    for (uint32_t i = 0; i < 2000; i++) {
        static uint8_t whole[2048], fragment[2048];
        struct flow_recipe r = { .tags = -1, .proto = i % 2 == 0 ? 6 : 17, .whole = true, .payload = 200 };
        struct pvs_flow_action a = random_edit(&state);
        if (a.kind < PVS_ACT_SET_NW_SRC)
            continue;
        len = flow_frame(&state, &r, bytes);
        struct flow_layout o = flow_layout_of(bytes, len);
        bool later = flow_random(&state, 2) == 0, no_sum = o.proto == 17 && flow_get16(bytes + o.l4 + 6) == 0;
        uint32_t part = 48 + 8 * flow_random(&state, 8), whole_len = len;
        memcpy(whole, bytes, len);
        if (later) { /* what comes behind `part` bytes of L4 */
            memmove(bytes + o.l4, bytes + o.l4 + part, len - o.l4 - part);
            len -= part;
        } else {
            len = o.l4 + part;
        }
        flow_put16(bytes + o.l3 + 2, len - o.l3);
        flow_put16(bytes + o.l3 + 6, later ? part / 8 : 0x2000);
        flow_sums_write(bytes, len);
        make(&nothing);
        memcpy(fragment, bytes, len);
        uint32_t fragment_len = len;
        memcpy(bytes, whole, len = whole_len);
        bool goes_on = plain_edit(&a), done;
        CHECK(pvs_flow_edit(&f.frame, &a, &done) == (goes_on ? PVS_DROP_none : PVS_DROP_ttl_exceeded));
        if (goes_on) {
            if (!later)
                memcpy(fragment + o.l4, bytes + o.l4, part);
            memcpy(fragment + o.l3 + 12, bytes + o.l3 + 12, 8);
            fragment[o.l3 + 1] = bytes[o.l3 + 1];
            fragment[o.l3 + 8] = bytes[o.l3 + 8];
            memcpy(bytes, fragment, len = fragment_len);
            flow_sums_write(bytes, len); /* of the IPv4 header; of a fragment's L4 it writes none */
            CHECK(!no_sum || later || flow_get16(bytes + o.l4 + 6) == 0);
            check_same();
        }
        scattered_frame_free(&f);
    }
}

/* ---- bounds ---- */

/* A tag can't be pushed where there is no room for one more, which the port may put there that the frame leaves by. */
TEST(the_longest_heads_and_frames_get_no_tag)
{
    static const struct virtio_net_hdr nothing = { 0 };
    struct pvs_flow_action push = action(PVS_ACT_PUSH_VLAN, 0x8100);
    static struct pvs_frame out;
    uint64_t state = 5;
    bool done;

    for (uint32_t head = PVS_HEAD_MAX - 8; head <= PVS_HEAD_MAX; head++) {
        struct flow_recipe r = { .tags = 1, .proto = 6, .whole = true, .payload = 1000 };
        len = flow_frame(&state, &r, bytes);
        make(&nothing);
        CHECK(pvs_frame_pull(&f.frame, head));
        bool fits = head + 4 <= PVS_HEAD_MAX;
        CHECK_EQ(pvs_flow_edit(&f.frame, &push, &done), fits ? PVS_DROP_none : PVS_DROP_mtu_exceeded);
        if (fits) {
            plain_edit(&push);
            check_same();
            struct pvs_edit more = { .push = true, .tag = 0x81000007 };
            CHECK_EQ(pvs_frame_edit(&out, &f.frame, &more, NULL), 0);
            CHECK(out.head_len == head + 8 && out.head_len <= sizeof out.head);
        }
        scattered_frame_free(&f);
    }
    for (uint32_t short_of = 0; short_of < 8; short_of++) {
        len = PVS_MAX_FRAME - short_of;
        memset(bytes, 0, len);
        bytes[12] = 0x88;
        bytes[13] = 0xb5;
        make(&nothing);
        CHECK_EQ(pvs_flow_edit(&f.frame, &push, &done), short_of >= 4 ? PVS_DROP_none : PVS_DROP_mtu_exceeded);
        scattered_frame_free(&f);
    }
}

/* A third tag is payload, and stays it, as in Open vSwitch; one that was pushed comes off as it went on. */
TEST(tags_come_off_one_by_one)
{
    static const struct virtio_net_hdr nothing = { 0 };
    struct pvs_flow_action pop = action(PVS_ACT_POP_VLAN, 0), push = action(PVS_ACT_PUSH_VLAN, 0x88a8);
    struct pvs_flow_action port = action(PVS_ACT_SET_TP_DST, 4711);
    uint64_t state = 6;
    bool done;

    for (uint32_t came = 0; came < 4; came++) {
        struct flow_recipe r = { .tags = came > 2 ? 2 : (int)came, .type = 0, .proto = 6, .whole = true };
        len = flow_frame(&state, &r, bytes);
        if (came == 3)
            plain_push(0x88a8);
        make(&nothing);
        for (uint32_t i = 0; i < 2; i++) {
            CHECK_EQ(pvs_flow_edit(&f.frame, &push, &done), PVS_DROP_none);
            plain_edit(&push);
            CHECK_EQ(pvs_flow_edit(&f.frame, &port, &done), PVS_DROP_none); /* behind all tags */
            CHECK_EQ(done, came < 3);
            plain_edit(&port);
            check_same();
        }
        for (uint32_t i = 0; i < 6; i++) {
            CHECK_EQ(pvs_flow_edit(&f.frame, &pop, &done), PVS_DROP_none);
            CHECK_EQ(done, i < 2 + (came < 2 ? came : 2));
            plain_edit(&pop);
            check_same();
        }
        scattered_frame_free(&f);
    }
}
