/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_mirror_lists.c - many copies of a burst for one port, edited and not, through mirrors into VLANs, shapers, uplinks
 * and GSO: lists hold what they have room for, and each copy is of its own frame. Step by step.
 */
#include <errno.h>
#include <string.h>

#include "frame.h"
#include "lab.h"
#include "mirror.h"
#include "offload_lab.h"
#include "parse.h"
#include "uplink_lab.h"

enum { LEN = 80, SENDER = 0, RECEIVER, WATCHER, BYSTANDER, PORTS, VID = 100 };

static struct lab lab;
static struct pvs_mirror_conf mirror[PVS_MAX_MIRRORS];

static void
open_with(uint32_t n_mirrors, uint64_t features)
{
    struct lab_conf conf = lab_conf_default(PORTS);
    conf.guest.features |= features;
    conf.guest.tx_buf_size = 16384;
    lab_open(&lab, &conf);
    memset(mirror, 0, sizeof mirror);
    for (uint32_t i = 0; i < n_mirrors; i++)
        mirror[i].port = lab.port[WATCHER].conf.port;
    lab.conf.bridge.n_mirrors = n_mirrors;
    lab.conf.bridge.mirrors = mirror;
}

static uint8_t *
frame_of(uint64_t dst, uint64_t src, uint32_t len, uint32_t salt)
{
    static uint8_t frame[PVS_MAX_FRAME];
    lab_frame(frame, dst, src, len, salt);
    return frame;
}

/* The same with a tag. */
static uint8_t *
tagged(uint16_t tci, uint64_t dst, uint64_t src, uint32_t len, uint32_t salt)
{
    static uint8_t frame[PVS_MAX_FRAME];
    const uint8_t *plain = frame_of(dst, src, len, salt), tag[] = { 0x81, 0, (uint8_t)(tci >> 8), (uint8_t)tci };
    memcpy(frame, plain, PVS_TAG_OFFSET);
    memcpy(frame + PVS_TAG_OFFSET, tag, 4);
    memcpy(frame + PVS_TAG_OFFSET + 4, plain + PVS_TAG_OFFSET, len - PVS_TAG_OFFSET);
    return frame;
}

/* All addresses known, this very second. */
static void
settle(void)
{
    lab.now_ns += 1000000000 - lab.now_ns % 1000000000;
    for (uint32_t i = 0; i < PORTS; i++)
        lab_fill(&lab, i, 64);
    lab_learn_all(&lab);
    for (uint32_t i = 0; i < PORTS; i++)
        lab_fill(&lab, i, 200);
}

static void
send(uint64_t dst, uint32_t salt)
{
    lab_send(&lab, SENDER, frame_of(dst, LAB_MAC(SENDER), LEN, salt), LEN);
}

static void
expect(uint32_t at, uint64_t dst, uint32_t salt)
{
    lab_expect(&lab, at, frame_of(dst, LAB_MAC(SENDER), LEN, salt), LEN);
}

/* ---- lists ---- */

/* A list has room for a burst; mirrors give one port several times as much. */
TEST_EACH_RING(many_mirrors_to_one_port_fill_more_than_a_list)
{
    enum { MIRRORS = 3, FRAMES = 60 };

    for (uint32_t snaplen = 0; snaplen <= 60; snaplen += 60) {
        open_with(MIRRORS, 0);
        for (uint32_t i = 0; i < MIRRORS; i++)
            mirror[i].snaplen = (uint16_t)snaplen;
        lab.port[SENDER].conf.mirror_in = (1U << MIRRORS) - 1;
        settle();
        lab_publish(&lab);
        for (uint32_t salt = 0; salt < FRAMES; salt++)
            send(LAB_MAC(salt % 2 == 0 ? RECEIVER : BYSTANDER), salt);
        lab_poll(&lab, 2);
        for (uint32_t salt = 0; salt < FRAMES; salt++) {
            uint32_t at = salt % 2 == 0 ? RECEIVER : BYSTANDER;
            expect(at, LAB_MAC(at), salt);
            for (uint32_t i = 0; i < MIRRORS; i++)
                lab_expect(&lab, WATCHER, frame_of(LAB_MAC(at), LAB_MAC(SENDER), LEN, salt),
                           snaplen != 0 ? snaplen : LEN);
        }
        lab_expect_nothing(&lab, WATCHER);
        lab_close(&lab);
    }
}

/* Copies that nobody gets are work as well: who makes very many of them has had its turn. */
TEST_EACH_RING(dropped_copies_cost_their_sender_of_its_turn)
{
    enum { FRAMES = 60 };
    uint64_t taken[3];

    struct lab_conf conf = lab_conf_default(LAB_PORTS);
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < PVS_MAX_MIRRORS; i++)
        mirror[i] = (struct pvs_mirror_conf){ .vid = (uint16_t)(VID + i) };
    lab.conf.bridge.n_mirrors = PVS_MAX_MIRRORS;
    lab.conf.bridge.mirrors = mirror;
    lab.port[SENDER].conf.mirror_in = UINT32_MAX;
    for (uint32_t k = 0; k < 3; k++) { /* taken; too large; more than may leave */
        for (uint32_t i = RECEIVER; i < LAB_PORTS; i++) {
            lab.port[i].conf.mtu = k == 1 ? LEN - PVS_ETH_HLEN - 1 : 0;
            lab.port[i].conf.shaping = (struct pvs_limit){ .per_second = k == 2, .depth = 1 };
        }
        lab_publish(&lab);
        uint64_t before = lab_counters(&lab, SENDER).value[PVS_C_rx_packets];
        for (uint32_t salt = 0; salt < FRAMES; salt++)
            send(LAB_BROADCAST, salt);
        lab_poll(&lab, 1);
        taken[k] = lab_counters(&lab, SENDER).value[PVS_C_rx_packets] - before;
        lab_poll(&lab, FRAMES);
        CHECK_EQ(lab_counters(&lab, SENDER).value[PVS_C_rx_packets] - before, FRAMES);
    }
    CHECK(taken[0] > 0 && taken[0] < FRAMES);
    CHECK(taken[1] > taken[0] && taken[1] < FRAMES);
    CHECK(taken[2] > taken[0] && taken[2] < FRAMES);
    lab_close(&lab);
}

/* A port without rules gets edited frames from a mirror, and others of the same burst as they came. */
TEST_EACH_RING(a_mirror_into_a_vlan_reaches_a_port_that_gets_frames_as_well)
{
    enum { FRAMES = 20 };

    open_with(1, 0);
    mirror[0] = (struct pvs_mirror_conf){ .vid = VID };
    lab.port[RECEIVER].conf.mirror_out = 1;
    settle();
    lab_publish(&lab);
    for (uint32_t salt = 0; salt < FRAMES; salt++)
        send(LAB_MAC(salt % 4 == 0 ? RECEIVER : BYSTANDER), salt);
    lab_poll(&lab, 2);
    for (uint32_t salt = 0; salt < FRAMES; salt++) {
        if (salt % 4 == 0) {
            expect(RECEIVER, LAB_MAC(RECEIVER), salt);
            for (uint32_t i = RECEIVER; i < PORTS; i++) /* all are trunks */
                lab_expect(&lab, i, tagged(VID, LAB_MAC(RECEIVER), LAB_MAC(SENDER), LEN, salt), LEN + 4);
        } else {
            expect(BYSTANDER, LAB_MAC(BYSTANDER), salt);
        }
    }
    for (uint32_t i = 0; i < PORTS; i++)
        lab_expect_nothing(&lab, i);
    lab_close(&lab);
}

/* Ports' counters of copies that were not sent. */
static uint64_t
dropped(uint32_t port, enum pvs_drop why)
{
    return lab_counters(&lab, port).tx_drop[why];
}

/* ---- into a VLAN ---- */

/* Its tag takes the place of the outermost, whose priority stays; by ports of the VLAN it leaves in their form. */
TEST_EACH_RING(a_mirror_into_a_vlan_replaces_the_tag)
{
    enum { TCI = 5 << 13 | 1 << 12 | 20 }; /* PCP 5, DEI */
    open_with(1, 0);
    mirror[0] = (struct pvs_mirror_conf){ .vid = VID };
    settle();
    lab.port[SENDER].conf.mirror_in = 1;
    lab.port[WATCHER].conf.vlan_mode = PVS_VLAN_ACCESS;
    lab.port[WATCHER].conf.tag = VID;
    lab.port[RECEIVER].conf.vlan_mode = PVS_VLAN_ACCESS;
    lab.port[RECEIVER].conf.tag = 20;
    lab.conf.bridge.forward_bpdu = true;
    lab_publish(&lab);
    lab_send(&lab, SENDER, tagged(TCI, LAB_BROADCAST, LAB_MAC(SENDER), LEN, 1), LEN + 4);
    lab_send(&lab, SENDER, frame_of(LAB_BROADCAST, LAB_MAC(SENDER), LEN, 2), LEN);            /* untagged */
    lab_send(&lab, SENDER, tagged(3 << 13, LAB_BROADCAST, LAB_MAC(SENDER), LEN, 3), LEN + 4); /* priority-tagged */
    lab_send(&lab, SENDER, tagged(VID, LAB_BROADCAST, LAB_MAC(SENDER), LEN, 4), LEN + 4);     /* it is there already */
    lab_send(&lab, SENDER, frame_of(0x0180c200000eULL, LAB_MAC(SENDER), LEN, 5), LEN);        /* a bridge's own */
    lab_poll(&lab, 2);
    expect(RECEIVER, LAB_BROADCAST, 1);
    lab_expect_nothing(&lab, RECEIVER);
    for (uint32_t salt = 1; salt <= 4; salt++)
        expect(WATCHER, LAB_BROADCAST, salt);
    lab_expect_nothing(&lab, WATCHER);
    lab_expect(&lab, BYSTANDER, tagged(TCI, LAB_BROADCAST, LAB_MAC(SENDER), LEN, 1), LEN + 4);
    lab_expect(&lab, BYSTANDER, tagged((TCI & ~0xfff) | VID, LAB_BROADCAST, LAB_MAC(SENDER), LEN, 1), LEN + 4);
    expect(BYSTANDER, LAB_BROADCAST, 2);
    lab_expect(&lab, BYSTANDER, tagged(VID, LAB_BROADCAST, LAB_MAC(SENDER), LEN, 2), LEN + 4);
    lab_expect(&lab, BYSTANDER, tagged(3 << 13, LAB_BROADCAST, LAB_MAC(SENDER), LEN, 3), LEN + 4);
    lab_expect(&lab, BYSTANDER, tagged(3 << 13 | VID, LAB_BROADCAST, LAB_MAC(SENDER), LEN, 3), LEN + 4);
    lab_expect(&lab, BYSTANDER, tagged(VID, LAB_BROADCAST, LAB_MAC(SENDER), LEN, 4), LEN + 4);
    expect(BYSTANDER, 0x0180c200000eULL, 5);
    lab_expect_nothing(&lab, BYSTANDER);
    lab_expect_nothing(&lab, SENDER);
    lab_close(&lab);
}

/* How long a copy is depends on its tag as well. */
TEST_EACH_RING(a_mirror_keeps_bytes_of_the_copy)
{
    for (uint32_t more = 0; more <= 5; more++) {
        open_with(2, 0);
        settle();
        mirror[0].snaplen = mirror[1].snaplen = (uint16_t)(LEN + more);
        mirror[1].port = lab.port[BYSTANDER].conf.port;
        lab.port[SENDER].conf.mirror_in = 3;
        lab.port[BYSTANDER].conf.vlan_mode = PVS_VLAN_ACCESS;
        lab.port[BYSTANDER].conf.tag = 20;
        lab_publish(&lab);
        const uint8_t *frame = tagged(20, LAB_BROADCAST, LAB_MAC(SENDER), LEN, 1);
        lab_send(&lab, SENDER, frame, LEN + 4);
        lab_poll(&lab, 2);
        lab_expect(&lab, WATCHER, frame, more < 4 ? LEN + more : LEN + 4);
        expect(BYSTANDER, LAB_BROADCAST, 1);
        lab.port[SENDER].conf.vlan_mode = PVS_VLAN_ACCESS;
        lab.port[SENDER].conf.tag = 20;
        lab_publish(&lab);
        send(LAB_BROADCAST, 1);
        lab_poll(&lab, 2);
        lab_expect(&lab, WATCHER, tagged(20, LAB_BROADCAST, LAB_MAC(SENDER), LEN, 1), more < 4 ? LEN + more : LEN + 4);
        expect(BYSTANDER, LAB_BROADCAST, 1);
        lab_close(&lab);
    }
}

/* A copy that doesn't leave by a port is none that its mirror wants. */
TEST_EACH_RING(what_a_port_does_not_get_its_mirror_does_not)
{
    open_with(1, 0);
    settle();
    lab.port[RECEIVER].conf.mirror_out = 1;
    lab.port[RECEIVER].conf.mtu = 68; /* the headers are not part of it */
    lab_publish(&lab);
    lab_send(&lab, SENDER, frame_of(LAB_MAC(RECEIVER), LAB_MAC(SENDER), 100, 1), 100);
    send(LAB_MAC(RECEIVER), 2);
    lab_poll(&lab, 2);
    expect(RECEIVER, LAB_MAC(RECEIVER), 2);
    expect(WATCHER, LAB_MAC(RECEIVER), 2);
    lab_expect_nothing(&lab, WATCHER);
    CHECK_EQ(dropped(RECEIVER, PVS_DROP_mtu_exceeded), 1);
    lab_close(&lab);
}

/* Of a tunnel's frame the provider's tag is another, the customer's stays. */
TEST_EACH_RING(a_mirror_into_a_vlan_takes_frames_of_tunnels)
{
    uint8_t frame[LEN + 8];

    open_with(1, 0);
    mirror[0] = (struct pvs_mirror_conf){ .vid = VID };
    settle();
    lab.port[SENDER].conf.mirror_in = 1;
    lab.port[SENDER].conf.vlan_mode = lab.port[WATCHER].conf.vlan_mode = PVS_VLAN_DOT1Q_TUNNEL;
    lab.port[SENDER].conf.tag = 30;
    lab.port[WATCHER].conf.tag = VID;
    lab.port[RECEIVER].conf.vlan_mode = PVS_VLAN_ACCESS; /* what is tagged behind its tag it doesn't take */
    lab.port[RECEIVER].conf.tag = VID;
    lab_publish(&lab);
    const uint8_t *customer = tagged(7, LAB_BROADCAST, LAB_MAC(SENDER), LEN, 1);
    lab_send(&lab, SENDER, customer, LEN + 4);
    lab_poll(&lab, 2);
    lab_expect(&lab, WATCHER, customer, LEN + 4);
    lab_expect_nothing(&lab, WATCHER);
    lab_expect_nothing(&lab, RECEIVER);
    for (uint32_t copy = 0; copy < 2; copy++) {
        memcpy(frame, customer, PVS_TAG_OFFSET);
        memcpy(frame + PVS_TAG_OFFSET, copy == 0 ? "\x88\xa8\0\x1e" : "\x88\xa8\0\x64", 4);
        memcpy(frame + PVS_TAG_OFFSET + 4, customer + PVS_TAG_OFFSET, LEN + 4 - PVS_TAG_OFFSET);
        lab_expect(&lab, BYSTANDER, frame, LEN + 8);
    }
    lab_close(&lab);
}

/* ---- who watches ---- */

TEST_EACH_RING(a_watcher_without_link_costs_nobody_a_frame)
{
    open_with(2, 0);
    settle();
    mirror[1] = (struct pvs_mirror_conf){ .vid = VID };
    lab.port[SENDER].conf.mirror_in = 1 | 2;
    lab_publish(&lab);
    lab_detach(&lab, WATCHER);
    lab_detach(&lab, BYSTANDER);
    for (uint32_t salt = 0; salt < 5; salt++)
        send(LAB_MAC(RECEIVER), salt);
    lab_poll(&lab, 2);
    for (uint32_t salt = 0; salt < 5; salt++) {
        expect(RECEIVER, LAB_MAC(RECEIVER), salt);
        lab_expect(&lab, RECEIVER, tagged(VID, LAB_MAC(RECEIVER), LAB_MAC(SENDER), LEN, salt), LEN + 4);
    }
    CHECK_EQ(lab_sum(lab_counters(&lab, WATCHER).tx_drop), 0);
    CHECK_EQ(lab_sum(lab_counters(&lab, BYSTANDER).tx_drop), 0);
    lab_close(&lab);
}

/* A copy is as long as the watcher's MTU allows: cut to less it fits, cut to more it doesn't. */
TEST_EACH_RING(a_watchers_mtu_holds_for_what_is_kept)
{
    enum { BIG = 1200, MTU = 500, HEADERS = PVS_ETH_HLEN + PVS_VLAN_HLEN };
    static const uint16_t snaplen[] = { MTU + HEADERS, MTU + HEADERS + 1, BIG, 0, PVS_ETH_HLEN };

    open_with(5, 0);
    settle();
    for (uint32_t i = 0; i < 5; i++)
        mirror[i].snaplen = snaplen[i];
    lab.port[SENDER].conf.mirror_in = 31;
    lab.port[SENDER].conf.vlan_mode = PVS_VLAN_ACCESS; /* so each copy has a tag */
    lab.port[SENDER].conf.tag = 9;
    lab.port[WATCHER].conf.mtu = MTU;
    lab_publish(&lab);
    lab_send(&lab, SENDER, frame_of(LAB_BROADCAST, LAB_MAC(SENDER), BIG, 1), BIG);
    lab_poll(&lab, 2);
    lab_expect(&lab, WATCHER, tagged(9, LAB_BROADCAST, LAB_MAC(SENDER), BIG, 1), MTU + HEADERS);
    lab_expect(&lab, WATCHER, tagged(9, LAB_BROADCAST, LAB_MAC(SENDER), BIG, 1), PVS_ETH_HLEN);
    lab_expect_nothing(&lab, WATCHER);
    CHECK_EQ(dropped(WATCHER, PVS_DROP_mtu_exceeded), 3);
    lab_close(&lab);
}

/* What was dropped at an output came into no VLAN. */
TEST_EACH_RING(what_an_output_sends_is_counted_in_no_vlan)
{
    struct pvs_vlan_counters *counted;
    uint64_t packets, bytes;

    open_with(1, 0);
    CHECK_EQ(pvs_vlan_counters_create(lab.sw, &counted), 0);
    lab.conf.bridge.vlan_counters = counted;
    settle();
    lab_publish(&lab);
    lab_send(&lab, SENDER, tagged(9, LAB_BROADCAST, LAB_MAC(SENDER), LEN, 1), LEN + 4);
    lab_poll(&lab, 2);
    lab_send(&lab, WATCHER, tagged(9, LAB_BROADCAST, LAB_MAC(WATCHER), LEN, 1), LEN + 4);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, WATCHER).rx_drop[PVS_DROP_mirror_output], 1);
    pvs_vlan_counters_read(counted, 9, &packets, &bytes);
    CHECK_EQ(packets, 1);
    lab_close(&lab);
    pvs_vlan_counters_destroy(counted);
}

/* ---- with all the rest ---- */

/* To one that takes no GSO a copy goes in segments, or cut to the first bytes of the whole. */
static void
mirror_gso(uint16_t snaplen, uint64_t features)
{
    enum { MSS = 1000, PAYLOAD = 9000, N = PAYLOAD / MSS };
    static const struct recipe tcp = { .payload = PAYLOAD, .seq = 5, .flags = ACK };
    static struct cooked big, segment;
    static uint8_t got[PVS_MAX_FRAME];
    struct pvd_rx_info info;
    bool taken = features != 0;

    open_with(1, 1U << VIRTIO_NET_F_CSUM | 1U << VIRTIO_NET_F_HOST_TSO4 | features);
    settle();
    mirror[0].snaplen = snaplen;
    lab.port[RECEIVER].conf.mirror_in = 1; /* the recipe's sender; its receiver is nobody here */
    lab_publish(&lab);
    cook(&tcp, PSEUDO, &big);
    big.bytes[5] = 77;
    struct virtio_net_hdr header = header_for(&tcp, &big, MSS);
    uint8_t hdr[16] = { 0 };
    memcpy(hdr, &header, sizeof header);
    CHECK_EQ(pvd_tx(lab.port[RECEIVER].guest, 0, hdr, big.bytes, big.len, NULL), 0);
    CHECK(pvd_kick(lab.port[RECEIVER].guest, 1) >= 0);
    lab_poll(&lab, 2);
    if (snaplen != 0 && snaplen < big.len) {
        CHECK_EQ(pvd_rx(lab.port[WATCHER].guest, 0, got, sizeof got, &info), snaplen);
        CHECK(memcmp(got, big.bytes, snaplen) == 0);
        CHECK_EQ(info.flags, 0);
        CHECK_EQ(info.gso_type, 0);
    } else {
        for (uint32_t i = 0; i < (taken ? 1 : N); i++) {
            struct recipe r = segment_recipe(&tcp, MSS, i, N);
            cook(taken ? &tcp : &r, taken ? PSEUDO : FINISHED, &segment);
            segment.bytes[5] = 77;
            CHECK_EQ(pvd_rx(lab.port[WATCHER].guest, 0, got, sizeof got, &info), segment.len);
            CHECK(memcmp(got, segment.bytes, segment.len) == 0);
            CHECK_EQ(info.gso_type, taken ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_NONE);
        }
    }
    lab_expect_nothing(&lab, WATCHER);
    lab_close(&lab);
}

TEST_EACH_RING(mirrors_of_gso_frames)
{
    static const uint16_t snaplen[] = { 0, 14, 60, 128, 1000, 5000, 9053, 9054, 65535 };
    for (uint32_t i = 0; i < sizeof snaplen / sizeof snaplen[0]; i++) {
        mirror_gso(snaplen[i], 0);
        mirror_gso(snaplen[i], 1U << VIRTIO_NET_F_GUEST_CSUM | 1U << VIRTIO_NET_F_GUEST_TSO4);
    }
}

/* From an access port, by a trunk to a shaped watcher that gets two mirrors' copies, one of them cut. */
TEST_EACH_RING(mirrors_and_shaping_and_vlans_together)
{
    enum { FRAMES = 30, BIG = 500, SNAP = 100 };

    open_with(2, 0);
    settle();
    mirror[1].snaplen = SNAP;
    for (uint32_t i = SENDER; i <= RECEIVER; i++) {
        lab.port[i].conf.vlan_mode = PVS_VLAN_ACCESS;
        lab.port[i].conf.tag = 20;
    }
    lab.port[SENDER].conf.mirror_in = 3;
    lab.port[WATCHER].conf.shaping = (struct pvs_limit){ .per_second = 1000000, .depth = BIG + 4 };
    lab_publish(&lab);
    for (uint32_t salt = 0; salt < FRAMES; salt++)
        lab_send(&lab, SENDER, frame_of(LAB_BROADCAST, LAB_MAC(SENDER), BIG, salt), BIG);
    lab_poll(&lab, 1);
    for (uint32_t salt = 0; salt < FRAMES; salt++)
        lab_expect(&lab, RECEIVER, frame_of(LAB_BROADCAST, LAB_MAC(SENDER), BIG, salt), BIG);
    lab_expect_nothing(&lab, RECEIVER);
    lab.now_ns += FRAMES * (BIG + 4 + SNAP) * 1000;
    lab_poll(&lab, 2);
    for (uint32_t salt = 0; salt < FRAMES; salt++) {
        const uint8_t *copy = tagged(20, LAB_BROADCAST, LAB_MAC(SENDER), BIG, salt);
        lab_expect(&lab, WATCHER, copy, BIG + 4);
        lab_expect(&lab, WATCHER, copy, SNAP);
    }
    lab_expect_nothing(&lab, WATCHER);
    CHECK_EQ(lab_sum(lab_counters(&lab, WATCHER).tx_drop), 0);
    lab_close(&lab);
}

/* What waits for its receiver is mirrored, learned and charged when it leaves, once. */
TEST_EACH_RING(what_waits_is_mirrored_and_charged_once)
{
    enum { FRAMES = 5 };

    open_with(1, 0);
    mirror[0].port = lab.port[BYSTANDER].conf.port;
    lab_publish(&lab);
    settle();
    uint8_t got[PVS_MAX_FRAME];
    lab.port[SENDER].conf.mirror_in = 1;
    lab.port[SENDER].conf.policing = (struct pvs_limit){ .per_second = 1, .depth = FRAMES * LEN };
    lab.port[RECEIVER].conf.backpressure_ms = 10;
    lab_publish(&lab);
    lab_detach(&lab, RECEIVER); /* a new ring, without buffers */
    lab_reset(&lab, RECEIVER);
    lab_attach(&lab, RECEIVER);
    for (uint32_t salt = 0; salt < FRAMES + 1; salt++)
        send(LAB_MAC(RECEIVER), salt);
    lab_poll(&lab, 20); /* tried again and again */
    lab_expect_nothing(&lab, BYSTANDER);
    lab_fill(&lab, RECEIVER, 20);
    lab_poll(&lab, 5);
    for (uint32_t salt = 0; salt < FRAMES; salt++) {
        expect(RECEIVER, LAB_MAC(RECEIVER), salt);
        expect(BYSTANDER, LAB_MAC(RECEIVER), salt);
    }
    CHECK(pvd_rx(lab.port[BYSTANDER].guest, 0, got, sizeof got, NULL) < 0);
    CHECK_EQ(lab_counters(&lab, SENDER).rx_drop[PVS_DROP_policed], 1);
    lab_close(&lab);
}

/* More edited copies than there is room for, by an uplink: none is of another frame. */
TEST(an_uplink_gets_each_edited_copy_of_many)
{
    static const uint16_t snaplen[] = { 14, 100, 127, 128, 129, 300, 0 };
    enum { MIRRORS = 7, FRAMES = 31, BIG = 400 };
    uint32_t seen = 0;

    open_with(MIRRORS, 0);
    settle();
    uint32_t up = lab_uplink_add(&lab, PVS_PACKET, 1);
    for (uint32_t i = 0; i < MIRRORS; i++)
        mirror[i] = (struct pvs_mirror_conf){ .port = lab.uplink[up].conf.port, .snaplen = snaplen[i] };
    lab.port[SENDER].conf.mirror_in = (1U << MIRRORS) - 1;
    lab_publish(&lab);
    for (uint32_t salt = 0; salt < FRAMES; salt++)
        lab_send(&lab, SENDER, frame_of(LAB_BROADCAST, LAB_MAC(SENDER), BIG, salt), BIG);
    lab_poll(&lab, 2);
    for (uint32_t salt = 0; salt < FRAMES; salt++)
        for (uint32_t i = 0; i < MIRRORS; i++, seen++)
            lab_wire_expect(&lab, up, frame_of(LAB_BROADCAST, LAB_MAC(SENDER), BIG, salt),
                            snaplen[i] != 0 ? snaplen[i] : BIG);
    CHECK_EQ(seen, MIRRORS * FRAMES);
    lab_close(&lab);
}
