/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_flow_effects.c - meters, mirrors, tunnels and what waits, with flows: each frame counts once, and nothing is done for one that still has
 * to wait (forward.c, flow_count.h). One worker, driven step by step.
 */
#include <errno.h>

#include "flow_switch.h"
#include "tunnel_lab.h"

#define SECOND UINT64_C(1000000000)

static struct pvs_meter_conf meter[1];

struct metered {
    uint64_t packets, bytes, dropped_packets, dropped_bytes;
};

static void
make_meter(uint64_t per_second, uint64_t depth, bool packets)
{
    CHECK_EQ(pvs_flow_meter_create(lab.sw, &meter[0].meter), 0);
    meter[0].limit = (struct pvs_limit){ .per_second = per_second, .depth = depth };
    meter[0].packets = packets;
    lab.conf.bridge.n_flow_meters = 1;
    lab.conf.bridge.flow_meters = meter;
}

static struct metered
metered(void)
{
    struct metered m;

    pvs_flow_meter_read(meter[0].meter, &m.packets, &m.bytes, &m.dropped_packets, &m.dropped_bytes);
    return m;
}

static void
close_with_meter(void)
{
    pvs_flow_meter *last = meter[0].meter;

    lab.conf.bridge.n_flow_meters = 0;
    lab_publish(&lab);
    pvs_flow_meter_destroy(last);
    close_lab();
}

/* Frames that A sends in a second, `n` of them; how many came to a port. */
static uint32_t
a_second(uint32_t n, uint32_t to)
{
    uint32_t came = 0;
    uint8_t got[PVS_MAX_FRAME];

    lab_frame(frame, LAB_BROADCAST, LAB_MAC(A), LEN, 1);
    for (uint32_t i = 0; i < n; i++) {
        lab_send(&lab, A, frame, LEN);
        lab_poll(&lab, 1);
        lab.now_ns += SECOND / n - LAB_STEP_NS;
        while (pvd_rx(lab.port[to].guest, 0, got, sizeof got, NULL) >= 0)
            came++;
        lab_fill(&lab, to, 10);
    }
    return came;
}

TEST_EACH_RING(a_meter_lets_its_rate_through)
{
    for (uint32_t packets = 0; packets < 2; packets++) {
        open_lab();
        make_meter(packets ? 100 : 100 * LEN, packets ? 5 : 5 * LEN, packets);
        from_port(A, 1);
        flow_act(&list, PVS_ACT_METER, 0, 0);
        output(SLOT(B));
        apply();
        uint32_t came = a_second(1000, B) + a_second(1000, B);
        struct metered m = metered();
        CHECK(came >= 200 && came <= 207);
        CHECK(m.packets == 2000 && m.bytes == 2000 * LEN && m.dropped_packets == 2000 - came);
        CHECK_EQ(m.dropped_bytes, m.dropped_packets * LEN);
        CHECK_EQ(lab_counters(&lab, A).rx_drop[PVS_DROP_meter], m.dropped_packets);
        CHECK_EQ(counted(0), 2000); /* also what was too much */
        begin_anew();
        from_port(B, 1);
        apply(); /* flows change: the bucket stays as it is, since its rate does */
        begin_anew();
        from_port(A, 1);
        flow_act(&list, PVS_ACT_METER, 0, 0);
        output(SLOT(B));
        apply();
        CHECK(a_second(1000, B) <= 102);
        meter[0].limit.per_second *= 2;
        lab_publish(&lab);
        came = a_second(1000, B);
        CHECK(came >= 200 && came <= 206);
        close_with_meter();
    }
}

/* In a burst of frames that are all the same each one is charged, edited and counted. */
TEST_EACH_RING(each_frame_of_a_burst_has_its_effects)
{
    enum { FRAMES = 30, FIT = 7 };

    open_lab();
    make_meter(1, FIT, true);
    from_port(A, 1);
    flow_act(&list, PVS_ACT_METER, 0, 0);
    output(SLOT(B));
    from_port(C, 1);
    flow_act(&list, PVS_ACT_SET_DL_DST, 0, LAB_MAC(D));
    output(SLOT(D));
    apply();
    for (uint32_t from = A; from <= C; from += C - A) {
        lab_frame(frame, LAB_MAC(B), LAB_MAC(from), LEN, 1);
        for (uint32_t i = 0; i < FRAMES; i++)
            lab_send(&lab, from, frame, LEN);
    }
    lab_poll(&lab, 2);
    lab_frame(frame, LAB_MAC(B), LAB_MAC(A), LEN, 1);
    for (uint32_t i = 0; i < FIT; i++)
        lab_expect(&lab, B, frame, LEN);
    CHECK_EQ(lab_counters(&lab, A).rx_drop[PVS_DROP_meter], FRAMES - FIT);
    CHECK(metered().packets == FRAMES && metered().dropped_packets == FRAMES - FIT);
    lab_frame(frame, LAB_MAC(B), LAB_MAC(C), LEN, 1);
    pvs_mac_store(frame, LAB_MAC(D));
    for (uint32_t i = 0; i < FRAMES; i++)
        lab_expect(&lab, D, frame, LEN);
    CHECK(counted(0) == FRAMES && counted(1) == FRAMES);
    close_with_meter();
}

/* What is too much goes no further, but what was sent before that stays sent; a slot that stands for no meter lets all through. */
TEST_EACH_RING(a_meter_stops_what_is_behind_it)
{
    open_lab();
    make_meter(1, 1, true);
    from_port(A, 1);
    flow_act(&list, PVS_ACT_METER, 7, 0);
    output(SLOT(C));
    flow_act(&list, PVS_ACT_METER, 0, 0);
    output(SLOT(B));
    apply();
    send(A, LAB_BROADCAST, 1);
    expect_only(1 << B | 1 << C);
    send(A, LAB_BROADCAST, 2);
    expect_only(1 << C);
    CHECK_EQ(lab_sum(lab_counters(&lab, A).rx_drop), 0);
    CHECK_EQ(metered().dropped_packets, 1);
    close_with_meter();
}

/* ---- what has to wait ---- */

/* The receiver is full: the frame stays with its sender, and nothing counts it, however often it is tried. */
TEST_EACH_RING(a_frame_that_waits_is_counted_once)
{
    open_lab();
    lab.port[B].conf.backpressure_ms = 100;
    make_meter(1, 1000000, true);
    mirror_to(D);
    from_port(A, 1);
    flow_act(&list, PVS_ACT_METER, 0, 0);
    flow_act(&list, PVS_ACT_MIRROR, 0, 0);
    output(SLOT(B));
    act(PVS_ACT_SET_DL_SRC, LAB_MAC(50));
    act(PVS_ACT_NORMAL, 0);
    apply();
    uint8_t mac[6] = { 2, 0, 0, 0, 0, C };
    CHECK_EQ(pvs_fdb_set_static(lab.fdb, mac, 0, pvs_port_ref(lab.port[C].port), 0), 0);
    lab_frame(frame, LAB_MAC(C), LAB_MAC(A), LEN, 1);
    uint32_t sent = 0;
    for (; lab_counters(&lab, A).value[PVS_C_rx_packets] == sent && sent < 400; sent++) { /* until B is full */
        lab_send(&lab, A, frame, LEN);
        lab_poll(&lab, 1);
        lab_fill(&lab, C, 1);
        lab_fill(&lab, D, 1);
        uint8_t got[PVS_MAX_FRAME];
        while (pvd_rx(lab.port[C].guest, 0, got, sizeof got, NULL) >= 0)
            ;
        while (pvd_rx(lab.port[D].guest, 0, got, sizeof got, NULL) >= 0)
            ;
    }
    uint64_t fit = lab_counters(&lab, A).value[PVS_C_rx_packets];
    CHECK(fit < sent && sent < 400);
    lab_poll(&lab, 50);
    CHECK_EQ(counted(0), fit);
    CHECK_EQ(metered().packets, fit);
    CHECK_EQ(lab_counters(&lab, D).value[PVS_C_tx_packets], fit);
    CHECK_EQ(lab_counters(&lab, C).value[PVS_C_tx_packets], fit);
    uint8_t got[PVS_MAX_FRAME];
    for (uint64_t i = 0; i < fit; i++)
        CHECK(pvd_rx(lab.port[B].guest, 0, got, sizeof got, NULL) >= 0);
    lab_fill(&lab, B, 100);
    CHECK(pvd_kick(lab.port[B].guest, 0) >= 0);
    lab_poll(&lab, 3);
    CHECK_EQ(counted(0), sent);
    CHECK_EQ(metered().packets, sent);
    CHECK_EQ(lab_counters(&lab, D).value[PVS_C_tx_packets], sent);
    CHECK_EQ(lab_counters(&lab, B).value[PVS_C_tx_packets] + lab_sum(lab_counters(&lab, B).tx_drop), sent);
    close_with_meter();
}

/* ---- mirrors ---- */

TEST_EACH_RING(a_flow_mirrors_a_frame_as_it_came)
{
    open_lab();
    mirror_to(D);
    from_port(A, 1);
    act(PVS_ACT_SET_DL_DST, LAB_MAC(50));
    flow_act(&list, PVS_ACT_MIRROR, 0, 0);
    output(SLOT(B));
    output(SLOT(D)); /* a mirror's output gets nothing else */
    from_port(B, 1);
    flow_act(&list, PVS_ACT_MIRROR, 0, 0); /* and goes nowhere */
    from_port(C, 1);
    flow_act(&list, PVS_ACT_MIRROR, 5, 0); /* a slot that stands for no mirror */
    output(SLOT(B));
    apply();
    send(A, LAB_MAC(C), 1);
    lab_expect(&lab, D, frame, LEN);
    lab_frame(frame, LAB_MAC(50), LAB_MAC(A), LEN, 1);
    expect_only(1 << B);
    CHECK_EQ(lab_counters(&lab, D).tx_drop[PVS_DROP_mirror_output], 1);
    send(B, LAB_MAC(A), 2);
    expect_only(1 << D);
    CHECK_EQ(lab_counters(&lab, B).rx_drop[PVS_DROP_flow_drop], 1);
    send(C, LAB_MAC(A), 3);
    expect_only(1 << B);
    close_lab();
}

/* Who watches a port sees what leaves there; who watches where it came in, what came in; each once. */
TEST_EACH_RING(port_mirrors_see_variants)
{
    for (uint32_t at_sender = 0; at_sender < 2; at_sender++) {
        open_lab();
        mirror_to(D);
        lab.port[B].conf.mirror_out = 1;
        lab.port[A].conf.mirror_in = at_sender;
        from_port(A, 1);
        output(SLOT(C));
        act(PVS_ACT_SET_DL_DST, LAB_MAC(50));
        output(SLOT(B));
        act(PVS_ACT_SET_DL_DST, LAB_MAC(51));
        output(SLOT(B));
        apply();
        send(A, LAB_BROADCAST, 1);
        lab_expect(&lab, C, frame, LEN);
        if (at_sender)
            lab_expect(&lab, D, frame, LEN);
        lab_frame(frame, LAB_MAC(50), LAB_MAC(A), LEN, 1);
        lab_expect(&lab, B, frame, LEN);
        if (!at_sender)
            lab_expect(&lab, D, frame, LEN);
        lab_frame(frame, LAB_MAC(51), LAB_MAC(A), LEN, 1);
        expect_only(1 << B);
        close_lab();
    }
}

/* ---- ports come and go, frames are injected ---- */

TEST_EACH_RING(a_port_that_leaves_gets_nothing_more)
{
    struct pvs_port_conf ports[PORTS];

    open_lab();
    from_port(A, 1);
    output(SLOT(B));
    output(SLOT(C));
    apply();
    slots[SLOT(B)] = NULL;
    for (uint32_t i = 0; i < PORTS; i++)
        ports[i] = lab.port[i].conf;
    ports[B] = ports[D];
    CHECK_EQ(lab_wait(&lab, pvs_publish(lab.sw, ports, PORTS - 1, &lab.conf.bridge, 1)), 0);
    send(A, LAB_BROADCAST, 1);
    lab_expect(&lab, C, frame, LEN);
    lab_expect_nothing(&lab, B);
    slots[SLOT(B)] = lab.port[B].port; /* named, but not on the bridge */
    CHECK_EQ(pvs_publish(lab.sw, ports, PORTS - 1, &lab.conf.bridge, 1), -EINVAL);
    slots[0] = lab.port[A].port; /* named twice */
    lab.conf.bridge.flow_ports = slots;
    for (uint32_t i = 0; i < PORTS; i++)
        ports[i] = lab.port[i].conf;
    CHECK_EQ(pvs_publish(lab.sw, ports, PORTS, &lab.conf.bridge, 1), -EINVAL);
    slots[0] = NULL;
    lab_publish(&lab);
    send(A, LAB_BROADCAST, 2);
    expect_only(1 << B | 1 << C);
    close_lab();
}

TEST_EACH_RING(injected_frames_pass_by_the_flows)
{
    open_lab();
    from_port(A, 1);
    act(PVS_ACT_SET_DL_DST, LAB_MAC(50));
    output(SLOT(C));
    from_port(B, 1);
    apply();
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(A), LEN, 1);
    CHECK_EQ(lab_wait(&lab, pvs_inject(lab.port[A].port, PVS_INGRESS, frame, LEN)), 0);
    CHECK_EQ(lab_wait(&lab, pvs_inject(lab.port[B].port, PVS_INGRESS, frame, LEN)), 0);
    lab_poll(&lab, 2);
    lab_frame(frame, LAB_MAC(50), LAB_MAC(A), LEN, 1);
    expect_only(1 << C);
    CHECK(counted(0) == 1 && counted(1) == 1);
    CHECK_EQ(lab_sum(lab_counters(&lab, B).rx_drop), 0); /* it didn't come from its guest */
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(A), LEN, 2);
    CHECK_EQ(lab_wait(&lab, pvs_inject(lab.port[B].port, PVS_EGRESS, frame, LEN)), 0);
    lab_poll(&lab, 2);
    expect_only(1 << B);
    close_lab();
}

/* ---- tunnels ---- */

static struct tunnel_lab t;

/* A flow's slots: the two guests, then the tunnel. */
static pvs_port *tunnel_slots[3];

static void
open_tunnel_as(bool mapped, bool learning)
{
    struct lab_conf conf = lab_conf_default(2);
    struct tunnel_lab_conf kind = { .kind = PVS_VXLAN };
    struct pvs_segment_conf segment[2] = { { .vni = 100, .vid = mapped ? 10 : PVS_UNMAPPED },
                                           { .vni = 200, .vid = 20 } };

    CHECK(tunnel_lab_open(&t, &conf, &kind));
    for (uint32_t i = 0; i < 2; i++) {
        lab_fill(&t.lab, i, 50);
        tunnel_slots[i] = t.lab.port[i].port;
    }
    struct pvs_tunnel_conf tunnel = tunnel_lab_tunnel(&t, mapped ? 2 : 1, segment);
    tunnel.learning = learning;
    CHECK_EQ(tunnel_lab_add_conf(&t, &tunnel), 0);
    for (uint32_t i = 0; i < tunnel.n_segments; i++)
        tunnel_lab_flood(&t, 0, i, i + 1);
    if (mapped) {
        static const uint64_t any[64] = { 1 };
        t.lab.other[0].vlan_mode = PVS_VLAN_MAPPED;
        t.lab.other[0].vlans = any;
    }
    tunnel_slots[2] = t.tunnel[0].port;
    lab_publish(&t.lab);
    CHECK_EQ(pvs_flow_counter_add(t.lab.sw, &counter[0]), 0);
    begin_anew();
    flow_begin(&list, 1, counter[0]);
}

static void
open_tunnel(bool mapped)
{
    open_tunnel_as(mapped, true);
}

static void
apply_tunnel(void)
{
    CHECK_EQ(pvs_flow_table_create(t.lab.sw, list.flow, list.n_flows, list.action, list.n_actions, 1, &table), 0);
    t.lab.conf.bridge.flows = table;
    t.lab.conf.bridge.n_flow_ports = 3;
    t.lab.conf.bridge.flow_ports = tunnel_slots;
    lab_publish(&t.lab);
}

static void
close_tunnel(void)
{
    t.lab.conf.bridge.flows = NULL;
    t.lab.conf.bridge.n_flow_ports = 0;
    lab_publish(&t.lab);
    pvs_flow_table_destroy(table);
    tunnel_lab_close(&t);
}

TEST(set_tunnel_picks_the_network)
{
    uint8_t tagged[LEN + 4];

    open_tunnel(true);
    flow_match(&list, 0, 32, 32, 0);
    output(2); /* untagged: no network is for that */
    act(PVS_ACT_SET_TUNNEL, 200);
    output(2);
    act(PVS_ACT_SET_TUNNEL, 300); /* nor is there one of this number */
    output(2);
    apply_tunnel();
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), LEN, 1);
    lab_send(&t.lab, 0, frame, LEN);
    lab_poll(&t.lab, 3);
    far_expect(&t, 0, 200, frame, LEN);
    far_expect(&t, 1, 200, frame, LEN);
    CHECK_EQ(tunnel_lab_counters(&t, 0).tx_drop[PVS_DROP_no_destination], 2);
    lab_frame(tagged, LAB_BROADCAST, LAB_MAC(0), LEN + 4, 1); /* by its tag, which it leaves without */
    memcpy(tagged + 12, "\x81\x00\x00\x0a", 4);
    memcpy(tagged + 16, frame + 12, LEN - 12);
    lab_send(&t.lab, 0, tagged, LEN + 4);
    lab_poll(&t.lab, 3);
    far_expect(&t, 0, 100, frame, LEN);
    far_expect(&t, 0, 200, tagged, LEN + 4);
    far_expect(&t, 1, 200, tagged, LEN + 4);
    for (uint32_t i = 0; i < 2; i++) {
        far_expect_nothing(&t, i);
        lab_expect_nothing(&t.lab, i);
    }
    close_tunnel();
}

TEST(flows_know_the_network_that_a_frame_came_by)
{
    open_tunnel(false);
    flow_match(&list, 0, 0, 32, 100);
    act(PVS_ACT_SET_DL_DST, LAB_MAC(50));
    output(1);
    act(PVS_ACT_IN_PORT, 0);
    apply_tunnel();
    lab_frame(frame, LAB_MAC(0), LAB_MAC(77), LEN, 1);
    far_send(&t, 0, 100, frame, LEN);
    lab_poll(&t.lab, 3);
    lab_frame(frame, LAB_MAC(50), LAB_MAC(77), LEN, 1);
    lab_expect(&t.lab, 1, frame, LEN);
    far_expect(&t, 0, 100, frame, LEN);
    lab_expect_nothing(&t.lab, 0);
    lab_send(&t.lab, 0, frame, LEN); /* a guest's frame came by none */
    lab_poll(&t.lab, 3);
    uint64_t packets, bytes, used;
    pvs_flow_counters_read(t.lab.sw, counter, 1, &packets, &bytes, &used);
    CHECK_EQ(packets, 1);
    close_tunnel();
}

/* A mapped network's frames have no tag; flows may want one that has, and it is from that network's remotes all the same. */
TEST(a_tag_in_a_mapped_network_says_nothing_of_its_sender)
{
    static const uint16_t tags[] = { 10, 20, 30 }; /* its own VLAN, another network's, and nobody's */

    open_tunnel_as(true, false);
    flow_match(&list, 0, 32, 32, 2);
    output(1);
    apply_tunnel();
    for (uint32_t i = 0; i < 3; i++) {
        lab_frame(frame, LAB_MAC(1), LAB_MAC(77), LEN, i);
        flow_put16(frame + 12, ETHERTYPE_8021Q);
        flow_put16(frame + 14, tags[i]);
        far_send(&t, 1, 100, frame, LEN); /* who is in network 200 only */
        lab_poll(&t.lab, 3);
        lab_expect_nothing(&t.lab, 1);
        CHECK_EQ(tunnel_lab_counters(&t, 0).rx_drop[PVS_DROP_unknown_vtep], i + 1);
        far_send(&t, 0, 100, frame, LEN);
        lab_poll(&t.lab, 3);
        lab_expect(&t.lab, 1, frame, LEN);
    }
    close_tunnel();
}

/* A mirror sees the frame as it left: a tunnel that it sends to carries it in that one's network, not in that of what came. */
TEST(a_mirror_by_a_tunnel_follows_the_variant)
{
    static const uint64_t carried[64] = { 1 << 10 | 1 << 20 };
    struct pvs_mirror_conf mirror;
    uint8_t tagged[LEN + 4];

    open_tunnel(true);
    t.lab.other[0].vlans = carried;
    mirror = (struct pvs_mirror_conf){ .port = t.tunnel[0].port };
    t.lab.conf.bridge.n_mirrors = 1;
    t.lab.conf.bridge.mirrors = &mirror;
    t.lab.port[0].conf.vlan_mode = PVS_VLAN_ACCESS;
    t.lab.port[0].conf.tag = 10;
    t.lab.port[1].conf.mirror_out = 1;
    flow_match(&list, 0, 32, 32, 0);
    act(PVS_ACT_SET_VLAN_VID, 20);
    output(1);
    apply_tunnel();
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), LEN, 1);
    lab_send(&t.lab, 0, frame, LEN);
    lab_poll(&t.lab, 3);
    memcpy(tagged, frame, 12);
    memcpy(tagged + 12, "\x81\x00\x00\x14", 4);
    memcpy(tagged + 16, frame + 12, LEN - 12);
    lab_expect(&t.lab, 1, tagged, LEN + 4);
    far_expect(&t, 0, 200, frame, LEN);
    far_expect(&t, 1, 200, frame, LEN);
    far_expect_nothing(&t, 0);
    t.lab.port[1].conf.mirror_out = t.lab.conf.bridge.n_mirrors = 0;
    close_tunnel();
}
