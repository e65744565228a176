/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_vlan.c - tags pushed and taken off on the way from ring to ring (vlan.h, tables.c). One worker, driven step by step.
 * The matrix of modes and tags is that of tests/wire/test_vlans.py.
 */
#include <errno.h>
#include <string.h>

#include "frame.h"
#include "lab.h"
#include "parse.h"

enum { LEN = 80, BURST = 40 };

static struct lab lab;
static uint64_t vlans[LAB_PORTS][64];

static void
open_ports(uint32_t n)
{
    struct lab_conf conf = lab_conf_default(n);
    lab_open(&lab, &conf);
}

static void
close_and_check(void)
{
    lab_check_sums(&lab);
    lab_close(&lab);
}

static void
set_mode(uint32_t port, enum pvs_vlan_mode mode, uint16_t tag)
{
    lab.port[port].conf.vlan_mode = (uint8_t)mode;
    lab.port[port].conf.tag = tag;
}

static void
carry(uint32_t port, uint16_t vid)
{
    lab.port[port].conf.vlans = vlans[port];
    vlans[port][vid / 64] |= UINT64_C(1) << vid % 64;
}

/* A frame of LEN bytes with this tag (0: none) behind the addresses. Its length. */
static uint32_t
make(uint8_t *frame, uint64_t dst, uint64_t src, uint32_t tag, uint32_t salt)
{
    uint8_t plain[LEN];
    uint32_t shift = tag != 0 ? PVS_VLAN_HLEN : 0;

    lab_frame(plain, dst, src, LEN, salt);
    memcpy(frame, plain, PVS_TAG_OFFSET);
    for (uint32_t i = 0; i < shift; i++)
        frame[PVS_TAG_OFFSET + i] = (uint8_t)(tag >> (24 - 8 * i));
    memcpy(frame + PVS_TAG_OFFSET + shift, plain + PVS_TAG_OFFSET, LEN - PVS_TAG_OFFSET);
    return LEN + shift;
}

static void
send(uint32_t port, uint64_t dst, uint32_t tag, uint32_t salt)
{
    uint8_t frame[LEN + PVS_VLAN_HLEN];
    uint32_t len = make(frame, dst, LAB_MAC(port), tag, salt);
    lab_send(&lab, port, frame, len);
}

static void
expect(uint32_t port, uint64_t dst, uint32_t from, uint32_t tag, uint32_t salt)
{
    uint8_t frame[LEN + PVS_VLAN_HLEN];
    uint32_t len = make(frame, dst, LAB_MAC(from), tag, salt);
    lab_expect(&lab, port, frame, len);
}

#define C_TAG(tci) (0x81000000U | (tci))
#define S_TAG(tci) (0x88a80000U | (tci))

TEST_EACH_RING(a_flood_leaves_each_port_in_its_own_form)
{
    open_ports(6);
    set_mode(0, PVS_VLAN_ACCESS, 10);
    set_mode(1, PVS_VLAN_ACCESS, 10);
    set_mode(2, PVS_VLAN_ACCESS, 20);
    set_mode(4, PVS_VLAN_NATIVE_UNTAGGED, 10);
    set_mode(5, PVS_VLAN_DOT1Q_TUNNEL, 10);
    lab_publish(&lab);
    for (uint32_t i = 0; i < 6; i++)
        lab_fill(&lab, i, 2 * BURST);
    for (uint32_t salt = 0; salt < BURST; salt++)
        send(0, LAB_BROADCAST, 0, salt);
    lab_poll(&lab, 2);
    for (uint32_t salt = 0; salt < BURST; salt++) {
        expect(1, LAB_BROADCAST, 0, 0, salt);
        expect(3, LAB_BROADCAST, 0, C_TAG(10), salt);
        expect(4, LAB_BROADCAST, 0, 0, salt);
        expect(5, LAB_BROADCAST, 0, 0, salt);
    }
    lab_expect_nothing(&lab, 2);
    send(5, LAB_BROADCAST, C_TAG(7), 1); /* a customer's own tag stays behind the S-tag */
    lab_poll(&lab, 2);
    lab_expect_nothing(&lab, 0);
    lab_expect_nothing(&lab, 4);
    CHECK_EQ(lab_counters(&lab, 3).value[PVS_C_tx_bytes], BURST * (LEN + 4) + LEN + 8);
    close_and_check();
}

/* Frames of one burst for one ring, of which some are edited and some are not, keep their order. */
TEST_EACH_RING(edited_frames_and_others_stay_in_order)
{
    open_ports(2);
    set_mode(1, PVS_VLAN_NATIVE_UNTAGGED, 10);
    lab_publish(&lab);
    lab_fill(&lab, 1, 2 * BURST);
    for (uint32_t salt = 0; salt < BURST; salt++)
        send(0, LAB_BROADCAST, C_TAG(salt % 3 == 0 ? 10 : 0x7000 | 11), salt);
    lab_poll(&lab, 2);
    for (uint32_t salt = 0; salt < BURST; salt++)
        expect(1, LAB_BROADCAST, 0, salt % 3 == 0 ? 0 : C_TAG(0x7000 | 11), salt);
    close_and_check();
}

/* One MAC address in two VLANs is two stations. */
TEST_EACH_RING(each_vlan_learns_by_itself)
{
    open_ports(4);
    set_mode(1, PVS_VLAN_ACCESS, 10);
    set_mode(2, PVS_VLAN_ACCESS, 20);
    lab_publish(&lab);
    for (uint32_t i = 0; i < 4; i++)
        lab_fill(&lab, i, 2 * BURST);
    for (uint32_t port = 1; port <= 2; port++) {
        uint8_t frame[LEN];
        lab_frame(frame, LAB_BROADCAST, LAB_MAC(9), LEN, port);
        lab_send(&lab, port, frame, LEN);
    }
    lab_poll(&lab, 2);
    for (uint32_t port = 0; port <= 3; port += 3) {
        uint8_t frame[LEN + PVS_VLAN_HLEN];
        for (uint16_t n = 1; n <= 2; n++) {
            uint32_t len = make(frame, LAB_BROADCAST, LAB_MAC(9), C_TAG(10 * n), n);
            lab_expect(&lab, port, frame, len);
        }
    }
    for (uint32_t salt = 0; salt < BURST; salt++)
        send(0, LAB_MAC(9), C_TAG(salt % 2 == 0 ? 10 : 20), salt);
    send(0, LAB_MAC(9), C_TAG(30), BURST); /* unknown there: to the other trunk */
    lab_poll(&lab, 2);
    for (uint32_t salt = 0; salt < BURST; salt++)
        expect(salt % 2 == 0 ? 1 : 2, LAB_MAC(9), 0, 0, salt);
    expect(3, LAB_MAC(9), 0, C_TAG(30), BURST);
    for (uint32_t i = 0; i < 4; i++)
        lab_expect_nothing(&lab, i);
    close_and_check();
}

/* Between trunks of all VLANs tagged frames go the fast way, each VLAN its own. */
TEST_EACH_RING(trunks_of_all_vlans_tell_them_apart)
{
    open_ports(3);
    for (uint32_t i = 0; i < 3; i++)
        lab_fill(&lab, i, 4 * BURST);
    send(1, LAB_BROADCAST, C_TAG(10), 0);
    lab_poll(&lab, 1);
    expect(0, LAB_BROADCAST, 1, C_TAG(10), 0);
    expect(2, LAB_BROADCAST, 1, C_TAG(10), 0);
    for (uint32_t salt = 0; salt < BURST; salt++) /* known in 10, flooded in 11 */
        send(0, LAB_MAC(1), C_TAG(salt % 4 == 3 ? 11 : 10), salt);
    lab_poll(&lab, 2);
    for (uint32_t salt = 0; salt < BURST; salt++)
        expect(1, LAB_MAC(1), 0, C_TAG(salt % 4 == 3 ? 11 : 10), salt);
    for (uint32_t salt = 3; salt < BURST; salt += 4)
        expect(2, LAB_MAC(1), 0, C_TAG(11), salt);
    lab_expect_nothing(&lab, 2);
    close_and_check();
}

TEST_EACH_RING(what_is_not_carried_is_filtered_and_counted)
{
    open_ports(3);
    carry(0, 10);
    set_mode(1, PVS_VLAN_ACCESS, 10);
    lab_publish(&lab);
    for (uint32_t i = 0; i < 3; i++)
        lab_fill(&lab, i, BURST);
    send(0, LAB_BROADCAST, 0, 0);
    send(0, LAB_BROADCAST, C_TAG(20), 1);
    send(1, LAB_BROADCAST, C_TAG(10), 2); /* its own VLAN, but an access port's guest sends no tags */
    send(0, LAB_BROADCAST, S_TAG(10), 3); /* the type of the tag doesn't matter */
    lab_poll(&lab, 2);
    expect(1, LAB_BROADCAST, 0, 0, 3);
    expect(2, LAB_BROADCAST, 0, S_TAG(10), 3);
    CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_vlan_filtered], 2);
    CHECK_EQ(lab_counters(&lab, 1).rx_drop[PVS_DROP_vlan_filtered], 1);
    for (uint32_t i = 0; i < 3; i++)
        lab_expect_nothing(&lab, i);
    close_and_check();
}

/* Priority tags: the VLAN is the port's, PCP, DEI and the tag's type stay. */
TEST_EACH_RING(priority_is_kept)
{
    open_ports(3);
    set_mode(0, PVS_VLAN_ACCESS, 10);
    set_mode(1, PVS_VLAN_ACCESS, 10);
    lab_publish(&lab);
    lab_fill(&lab, 1, 2);
    lab_fill(&lab, 2, 2);
    send(0, LAB_BROADCAST, C_TAG(0xb000), 0);
    send(0, LAB_BROADCAST, S_TAG(0x2000), 1);
    lab_poll(&lab, 2);
    expect(1, LAB_BROADCAST, 0, 0, 0);
    expect(1, LAB_BROADCAST, 0, 0, 1);
    expect(2, LAB_BROADCAST, 0, C_TAG(0xb000 | 10), 0);
    expect(2, LAB_BROADCAST, 0, S_TAG(0x2000 | 10), 1);
    close_and_check();
}

/* A tag of which not all is there is no tag, and no payload either. */
TEST_EACH_RING(a_cut_tag_is_malformed)
{
    static const uint8_t ending[] = { 0x81, 0x00, 0x00, 0x0a, 0x88, 0xa8, 0x00 };
    uint8_t frame[PVS_ETH_HLEN + 8];

    open_ports(2);
    lab_fill(&lab, 1, 10);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), sizeof frame, 0);
    memcpy(frame + PVS_TAG_OFFSET, ending, sizeof ending);
    for (uint32_t len = PVS_ETH_HLEN; len < PVS_ETH_HLEN + 8; len++)
        lab_send(&lab, 0, frame, len);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_malformed], 8);
    lab_expect_nothing(&lab, 1);
    close_and_check();
}

TEST(impossible_rules_are_refused)
{
    open_ports(2);
    struct pvs_port_conf ports[2] = { lab.port[0].conf, lab.port[1].conf };
    ports[0].vlan_mode = PVS_VLAN_DOT1Q_TUNNEL + 1;
    CHECK_EQ(pvs_publish(lab.sw, ports, 2, &lab.conf.bridge, 1), -EINVAL);
    ports[0].vlan_mode = PVS_VLAN_ACCESS;
    ports[0].tag = 4096;
    CHECK_EQ(pvs_publish(lab.sw, ports, 2, &lab.conf.bridge, 1), -EINVAL);
    ports[0].tag = 1;
    ports[0].vlans = vlans[0];
    CHECK_EQ(pvs_publish(lab.sw, ports, 2, &lab.conf.bridge, 1), -EINVAL);
    close_and_check();
}

TEST_EACH_RING(what_comes_into_a_vlan_is_counted)
{
    pvs_vlan_counters *counters = NULL;
    uint64_t packets, bytes;

    open_ports(3);
    CHECK_EQ(pvs_vlan_counters_create(lab.sw, &counters), 0);
    lab.conf.bridge.vlan_counters = counters;
    set_mode(0, PVS_VLAN_ACCESS, 10);
    lab_publish(&lab);
    for (uint32_t i = 0; i < 3; i++)
        lab_fill(&lab, i, 2 * BURST);
    send(2, LAB_BROADCAST, C_TAG(11), 0);
    lab_poll(&lab, 1);
    for (uint32_t salt = 0; salt < BURST; salt++) {
        send(0, LAB_BROADCAST, 0, salt);
        send(1, LAB_MAC(2), C_TAG(11), salt); /* known: most of them are not decided on one by one */
    }
    send(0, LAB_BROADCAST, C_TAG(10), 0); /* filtered */
    lab_poll(&lab, 4);
    pvs_vlan_counters_read(counters, 10, &packets, &bytes);
    CHECK_EQ(packets, BURST);
    CHECK_EQ(bytes, BURST * LEN);
    pvs_vlan_counters_read(counters, 11, &packets, &bytes);
    CHECK_EQ(packets, BURST + 1);
    CHECK_EQ(bytes, (BURST + 1) * (LEN + 4));
    lab.conf.bridge.vlan_counters = NULL;
    lab_publish(&lab);
    pvs_vlan_counters_destroy(counters);
    close_and_check();
}
