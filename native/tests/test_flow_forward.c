/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_flow_forward.c - what guests get of frames that flows are applied to, what is counted, and when (decide.h, forward.c). One worker,
 * driven step by step.
 */
#include "flow_switch.h"

static struct pvs_mirror_conf mirror;

/* ---- where frames go ---- */

TEST_EACH_RING(a_flow_says_where_a_frame_goes)
{
    open_lab();
    from_port(A, 5);
    output(SLOT(B));
    output(SLOT(A)); /* not back */
    output(0);       /* and not to a port that isn't there */
    from_port(B, 5);
    act(PVS_ACT_IN_PORT, 0);
    from_port(C, 5); /* dropped */
    apply();
    send(A, LAB_BROADCAST, 1);
    expect_only(1 << B);
    send(B, LAB_MAC(A), 2);
    expect_only(1 << B);
    send(C, LAB_MAC(A), 3);
    expect_only(0);
    send(D, LAB_BROADCAST, 4); /* no flow matches: as without flows */
    expect_only(1 << A | 1 << B | 1 << C);
    CHECK_EQ(lab_counters(&lab, C).rx_drop[PVS_DROP_flow_drop], 1);
    for (uint32_t i = 0; i < 3; i++)
        CHECK_EQ(counted(i), 1);
    uint64_t packets, bytes, used;
    pvs_flow_counters_read(lab.sw, counter, 1, &packets, &bytes, &used);
    CHECK(bytes == LEN && used <= lab.now_ns && used + 10 * LAB_STEP_NS > lab.now_ns - 10 * LAB_STEP_NS);
    CHECK_EQ(pvs_fdb_count(lab.fdb), 1); /* only `normal` learns */
    close_lab();
}

TEST_EACH_RING(normal_is_what_a_bridge_does)
{
    open_lab();
    from_port(A, 1);
    act(PVS_ACT_NORMAL, 0);
    apply();
    send(A, LAB_BROADCAST, 1);
    expect_only(1 << B | 1 << C | 1 << D);
    send(B, LAB_MAC(A), 2);
    expect_only(1 << A);
    send(A, LAB_MAC(B), 3);
    expect_only(1 << B);
    send(A, LAB_MAC(A), 4);
    expect_only(0);
    CHECK_EQ(lab_counters(&lab, A).rx_drop[PVS_DROP_same_port], 1);
    CHECK_EQ(counted(0), 3);
    close_lab();
}

/* A burst in which frames of one way and another alternate: no short cut is taken past the flows. */
TEST_EACH_RING(flows_hold_in_the_midst_of_a_burst)
{
    enum { FRAMES = 40 };

    open_lab();
    lab_learn_all(&lab);
    from_port(A, 1);
    flow_match(&list, 2, 16, 48, LAB_MAC(A)); /* its sender is A */
    output(SLOT(C));
    apply();
    for (uint32_t i = 0; i < PORTS; i++)
        lab_fill(&lab, i, 60);
    for (uint32_t salt = 0; salt < FRAMES; salt++) {
        lab_frame(frame, LAB_MAC(B), LAB_MAC(salt % 4 == 3 ? 77 : A), LEN, salt);
        lab_send(&lab, A, frame, LEN);
    }
    lab_poll(&lab, 2);
    for (uint32_t salt = 0; salt < FRAMES; salt++) {
        lab_frame(frame, LAB_MAC(B), LAB_MAC(salt % 4 == 3 ? 77 : A), LEN, salt);
        lab_expect(&lab, salt % 4 == 3 ? B : C, frame, LEN);
    }
    CHECK_EQ(counted(0), FRAMES * 3 / 4);
    close_lab();
}

/* A frame of UDP between two ports, number `salt` of its kind. */
static uint32_t
udp(uint32_t port, uint32_t salt)
{
    static const struct flow_recipe recipe = { .proto = 17, .whole = true, .plain = true, .payload = 40 };
    uint64_t state = 9;
    uint32_t len = flow_frame(&state, &recipe, frame);

    flow_put16(frame + 14 + 4, salt);
    flow_put16(frame + 14 + 20 + 2, port);
    flow_put16(frame + 14 + 20 + 8, salt);
    flow_sums_write(frame, len);
    return len;
}

/* The last flow is for UDP to a port. */
static void
to_port(uint32_t port)
{
    flow_match(&list, 1, 0, 16, 0x0800);
    flow_match(&list, 3, 56, 8, 17);
    flow_match(&list, 3, 0, 16, port);
}

/* Runs of frames of one key, of all lengths: each frame goes where its flow says, in order, and counts for it. */
TEST_EACH_RING(frames_of_one_key_follow_the_first)
{
    enum { FRAMES = 60, KINDS = 3 };
    uint64_t state = 3;

    open_lab();
    from_port(A, 2);
    to_port(1);
    output(SLOT(B));
    from_port(A, 1);
    flow_match(&list, 1, 0, 16, 0x0800);
    output(SLOT(C));
    apply();
    for (uint32_t round = 0; round < 20; round++) {
        uint8_t kind[FRAMES] = { 0 };
        uint32_t of[KINDS] = { 0 }, len = 0;
        uint64_t before[2] = { counted(0), counted(1) };
        for (uint32_t i = 0; i < FRAMES; i++) {
            kind[i] =
                (uint8_t)(i == 0 || flow_random(&state, 1 + round) == 0 ? flow_random(&state, KINDS) : kind[i - 1]);
            of[kind[i]]++;
            len = udp(kind[i], i);
            lab_send(&lab, A, frame, len);
        }
        lab_poll(&lab, 2);
        for (uint32_t i = 0; i < FRAMES; i++) {
            len = udp(kind[i], i);
            lab_expect(&lab, kind[i] == 1 ? B : C, frame, len);
        }
        CHECK_EQ(counted(0) - before[0], of[1]);
        CHECK_EQ(counted(1) - before[1], of[0] + of[2]);
        for (uint32_t port = B; port <= C; port++)
            lab_fill(&lab, port, port == B ? of[1] : of[0] + of[2]);
    }
    uint64_t packets, bytes, used;
    pvs_flow_counters_read(lab.sw, &counter[0], 1, &packets, &bytes, &used);
    CHECK_EQ(bytes, packets * udp(1, 0));
    close_lab();
}

/* A flow may send several copies of a frame to one port: those that follow another frame there find its list full, with C's behind it. */
TEST_EACH_RING(followers_and_copies_share_a_list)
{
    enum { TWICE = 30, ONCE = 33 };

    open_lab();
    lab_fill(&lab, B, 100);
    from_port(A, 2);
    to_port(1);
    output(SLOT(B));
    output(SLOT(B));
    from_port(A, 2);
    to_port(3);
    output(SLOT(C));
    from_port(A, 1);
    output(SLOT(B));
    apply();
    for (uint32_t i = 0; i < TWICE + 1 + ONCE; i++)
        lab_send(&lab, A, frame, udp(i < TWICE ? 1 : i == TWICE ? 3 : 2, i));
    lab_poll(&lab, 2);
    for (uint32_t i = 0; i < TWICE + 1 + ONCE; i++) {
        uint32_t len = udp(i < TWICE ? 1 : i == TWICE ? 3 : 2, i);
        lab_expect(&lab, i == TWICE ? C : B, frame, len);
        if (i < TWICE)
            lab_expect(&lab, B, frame, len);
    }
    CHECK(counted(0) == TWICE && counted(1) == 1 && counted(2) == ONCE);
    close_lab();
}

TEST_EACH_RING(all_and_flood_go_to_all_but_those_apart)
{
    static uint64_t none[64];

    for (uint32_t kind = PVS_ACT_ALL; kind <= PVS_ACT_FLOOD; kind++) {
        open_lab();
        lab.port[A].conf.isolated = lab.port[B].conf.isolated = true;
        lab.port[C].conf.vlans = none; /* it carries no VLAN; that is `normal`'s business */
        from_port(A, 1);
        act(kind, 0);
        apply();
        send(A, LAB_MAC(B), 1);
        expect_only(1 << C | 1 << D);
        lab.port[D].conf.enabled = false;
        lab_publish(&lab);
        send(A, LAB_MAC(B), 2);
        expect_only(1 << C);
        close_lab();
    }
}

/* Whom it is sent to by name doesn't ask for VLANs, but for a link, the MTU, and who is kept apart, as Open vSwitch does. */
TEST_EACH_RING(output_asks_for_link_and_mtu)
{
    open_lab();
    lab.port[B].conf.vlan_mode = PVS_VLAN_ACCESS;
    lab.port[B].conf.tag = 20;
    lab.port[C].conf.mtu = LEN - PVS_ETH_HLEN - 1;
    lab.port[D].conf.enabled = false;
    from_port(A, 1);
    output(SLOT(B));
    output(SLOT(C));
    output(SLOT(D));
    act(PVS_ACT_IN_PORT, 0); /* from itself nobody is */
    apply();
    send(A, LAB_BROADCAST, 1);
    expect_only(1 << A | 1 << B);
    CHECK_EQ(lab_counters(&lab, C).tx_drop[PVS_DROP_mtu_exceeded], 1);
    CHECK_EQ(lab_counters(&lab, D).tx_drop[PVS_DROP_link_down], 1);
    lab.port[A].conf.isolated = lab.port[B].conf.isolated = true;
    lab_publish(&lab);
    send(A, LAB_BROADCAST, 2);
    expect_only(1 << A);
    CHECK_EQ(lab_counters(&lab, B).tx_drop[PVS_DROP_isolated], 1);
    close_lab();
}

/* An access port's frame has no tag; what is pushed on the way isn't what the receiver's mode would have. */
TEST_EACH_RING(tags_leave_as_the_actions_made_them)
{
    uint8_t tagged[LEN + 4];

    open_lab();
    lab.port[A].conf.vlan_mode = lab.port[B].conf.vlan_mode = PVS_VLAN_ACCESS;
    lab.port[A].conf.tag = lab.port[B].conf.tag = 20;
    flow_begin(&list, 2, counter[0]); /* vlan_tci 0: untagged */
    flow_match(&list, 2, 0, 16, 0);
    flow_match(&list, 0, 32, 32, SLOT(A));
    output(SLOT(C));
    act(PVS_ACT_SET_VLAN_VID, 30);
    output(SLOT(B));
    output(SLOT(C));
    act(PVS_ACT_POP_VLAN, 0);
    act(PVS_ACT_NORMAL, 0);
    apply();
    send(A, LAB_BROADCAST, 1);
    memcpy(tagged, frame, 12);
    memcpy(tagged + 12, "\x81\x00\x00\x1e", 4);
    memcpy(tagged + 16, frame + 12, LEN - 12);
    lab_expect(&lab, B, tagged, LEN + 4);
    lab_expect(&lab, B, frame, LEN); /* normal's, in VLAN 20 */
    lab_expect(&lab, C, frame, LEN);
    lab_expect(&lab, C, tagged, LEN + 4);
    tagged[15] = 20;
    lab_expect(&lab, C, tagged, LEN + 4);
    lab_expect(&lab, D, tagged, LEN + 4);
    for (uint32_t i = 0; i < PORTS; i++)
        lab_expect_nothing(&lab, i);
    close_lab();
}

/* What is still tagged behind the tag that an access port takes off isn't for its guest, also when a flow took one off before. */
TEST_EACH_RING(a_hidden_tag_does_not_reach_an_access_port)
{
    static const uint8_t tags[] = { 0x81, 0, 0, 5, 0x81, 0, 0, 20, 0x81, 0, 0, 7 };

    open_lab();
    lab.port[B].conf.vlan_mode = PVS_VLAN_ACCESS;
    lab.port[B].conf.tag = 20;
    from_port(A, 1);
    act(PVS_ACT_POP_VLAN, 0);
    act(PVS_ACT_NORMAL, 0);
    apply();
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(A), LEN, 1);
    memcpy(frame + 12, tags, sizeof tags);
    lab_send(&lab, A, frame, LEN);
    lab_poll(&lab, 2);
    memmove(frame + 12, frame + 16, LEN - 16);
    lab_expect_nothing(&lab, B);
    lab_expect(&lab, C, frame, LEN - 4);
    lab_expect(&lab, D, frame, LEN - 4);
    close_lab();
}

/* ---- variants ---- */

TEST_EACH_RING(each_copy_is_as_the_frame_was_by_then)
{
    open_lab();
    from_port(A, 1);
    output(SLOT(B));
    act(PVS_ACT_SET_DL_DST, LAB_MAC(21));
    output(SLOT(C));
    output(SLOT(B));
    act(PVS_ACT_SET_DL_SRC, LAB_MAC(22));
    act(PVS_ACT_SET_DL_DST, LAB_MAC(23));
    act(PVS_ACT_IN_PORT, 0);
    apply();
    for (uint32_t salt = 0; salt < 20; salt++) { /* more than there is room for edited ones, in all */
        lab_frame(frame, LAB_BROADCAST, LAB_MAC(A), LEN, salt);
        lab_send(&lab, A, frame, LEN);
    }
    lab_poll(&lab, 2);
    for (uint32_t salt = 0; salt < 20; salt++) {
        lab_frame(frame, LAB_BROADCAST, LAB_MAC(A), LEN, salt);
        lab_expect(&lab, B, frame, LEN);
        lab_frame(frame, LAB_MAC(21), LAB_MAC(A), LEN, salt);
        lab_expect(&lab, B, frame, LEN);
        lab_expect(&lab, C, frame, LEN);
        lab_frame(frame, LAB_MAC(23), LAB_MAC(22), LEN, salt);
        lab_expect(&lab, A, frame, LEN);
    }
    expect_only(0);
    CHECK_EQ(counted(0), 20);
    close_lab();
}

/* The most that one list may ask for: all variants, each to all, and the worst that mirrors add. */
TEST_EACH_RING(the_longest_list_of_actions_is_carried_out)
{
    open_lab();
    mirror = (struct pvs_mirror_conf){ .vid = 7 };
    lab.conf.bridge.n_mirrors = 1;
    lab.conf.bridge.mirrors = &mirror;
    for (uint32_t i = 0; i < PORTS; i++)
        lab.port[i].conf.mirror_in = lab.port[i].conf.mirror_out = 1;
    from_port(A, 1);
    for (uint32_t i = 0; i < 3; i++) {
        act(PVS_ACT_SET_DL_SRC, LAB_MAC(50 + i));
        act(PVS_ACT_ALL, 0);
    }
    act(PVS_ACT_SET_DL_SRC, LAB_MAC(60));
    act(PVS_ACT_NORMAL, 0);
    for (uint32_t i = 4; i < PVS_MAX_VARIANTS; i++) {
        act(PVS_ACT_SET_DL_SRC, LAB_MAC(50 + i));
        output(SLOT(B));
    }
    while (list.n_actions < PVS_MAX_ACTIONS)
        output(SLOT(C));
    apply();
    send(A, LAB_BROADCAST, 1);
    uint32_t extra = PVS_MAX_ACTIONS - 16, got[PORTS] = { 0 };
    for (uint32_t i = 0; i < PORTS; i++)
        while (pvd_rx(lab.port[i].guest, 0, frame, sizeof frame, NULL) >= 0)
            got[i]++;
    CHECK_EQ(got[A], 0);
    CHECK_EQ(got[B], 4 + PVS_MAX_VARIANTS - 4 + 1); /* and the mirror's */
    CHECK_EQ(got[C], 4 + extra + 1);
    CHECK_EQ(got[D], 4 + 1);
    close_lab();
}

/* What `normal` learns is the source as it is by then, where the frame came from. */
TEST_EACH_RING(an_edited_source_is_learned)
{
    struct pvs_fdb_item item;
    uint8_t mac[6];

    open_lab();
    from_port(A, 1);
    act(PVS_ACT_SET_DL_SRC, LAB_MAC(33));
    act(PVS_ACT_SET_VLAN_VID, 5);
    act(PVS_ACT_NORMAL, 0);
    act(PVS_ACT_SET_DL_SRC, LAB_MAC(34)); /* too late for that */
    output(SLOT(D));
    apply();
    send(A, LAB_BROADCAST, 1);
    pvs_mac_store(mac, LAB_MAC(33));
    CHECK_EQ(pvs_fdb_lookup(lab.fdb, mac, 5, lab.now_ns, &item), 0);
    CHECK_EQ(item.port_ref, pvs_port_ref(lab.port[A].port));
    CHECK_EQ(pvs_fdb_count(lab.fdb), 1);
    close_lab();
}

/* ---- why frames go nowhere ---- */

TEST_EACH_RING(reasons_and_counters_of_what_is_dropped)
{
    uint8_t udp[LEN];

    open_lab();
    from_port(A, 1);
    act(PVS_ACT_SET_DL_SRC, LAB_MAC(1)); /* an edit sends it nowhere */
    from_port(B, 1);
    output(SLOT(B)); /* nor does an output where it came from */
    from_port(C, 1);
    act(PVS_ACT_DEC_TTL, 0);
    output(SLOT(A));
    from_port(D, 1);
    output(SLOT(A)); /* before it can't go on: it isn't dropped, then */
    act(PVS_ACT_DEC_TTL, 0);
    output(SLOT(B));
    apply();
    send(A, LAB_MAC(9), 1);
    send(B, LAB_MAC(9), 1);
    lab_udp(udp, LAB_MAC(A), LAB_MAC(C), 1, LEN);
    udp[22] = 1;
    lab_send(&lab, C, udp, LEN);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, A).rx_drop[PVS_DROP_flow_drop], 1);
    CHECK_EQ(lab_counters(&lab, B).rx_drop[PVS_DROP_no_destination], 1);
    CHECK_EQ(lab_counters(&lab, C).rx_drop[PVS_DROP_ttl_exceeded], 1);
    expect_only(0);
    lab_send(&lab, D, udp, LEN);
    lab_poll(&lab, 2);
    lab_expect(&lab, A, udp, LEN);
    lab_expect_nothing(&lab, B);
    CHECK_EQ(lab_sum(lab_counters(&lab, D).rx_drop), 0);
    for (uint32_t i = 0; i < PORTS; i++)
        CHECK_EQ(counted(i), 1);
    close_lab();
}

/* A checksum that would be written over a port number later is refused where flows are looked at, and nowhere else. */
TEST_EACH_RING(a_request_that_hides_a_port_number_is_malformed)
{
    struct virtio_net_hdr h = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 2 };
    uint8_t header[12] = { 0 };

    open_lab();
    lab_detach(&lab, A);
    lab.conf.guest.features |= UINT64_C(1) << VIRTIO_NET_F_CSUM;
    lab_reset(&lab, A);
    lab_attach(&lab, A);
    memcpy(header, &h, sizeof h < sizeof header ? sizeof h : sizeof header);
    lab_udp(frame, LAB_BROADCAST, LAB_MAC(A), 1, LEN);
    CHECK_EQ(pvd_tx(lab.port[A].guest, 0, header, frame, LEN, NULL), 0);
    CHECK(pvd_kick(lab.port[A].guest, 1) >= 0);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, A).rx_drop[PVS_DROP_malformed], 0);
    from_port(D, 1); /* flows, of other ports, that look no deeper than that */
    apply();
    CHECK_EQ(pvd_tx(lab.port[A].guest, 0, header, frame, LEN, NULL), 0);
    CHECK(pvd_kick(lab.port[A].guest, 1) >= 0);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, A).rx_drop[PVS_DROP_malformed], 1);
    CHECK_EQ(lab_counters(&lab, A).value[PVS_C_rx_packets], 1);
    CHECK_EQ(lab_sum(lab_counters(&lab, A).rx_drop), 1);
    close_lab();
}
