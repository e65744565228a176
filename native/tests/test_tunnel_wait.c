/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_tunnel_wait.c - tunnels and all else that a port may be asked for: frames that wait while their endpoint or their tunnel goes,
 * mirrors, shaping, port security, frames of control's. Step by step.
 */
#include <errno.h>
#include <string.h>

#include "offload_lab.h"
#include "tunnel_lab.h"

enum { LEN = 200, VNI = 5001, OTHER = 5002, TO = 0, FROM = 1, GUESTS = 3, WATCHER = 2 };
#define BEHIND(i) LAB_MAC(0x100 + (i))

static struct tunnel_lab t;

static uint8_t *
frame_of(uint64_t dst, uint64_t src, uint32_t salt)
{
    static uint8_t frame[LEN];
    lab_frame(frame, dst, src, LEN, salt);
    return frame;
}

/* Two tunnels; known guests; nobody has room yet. */
static void
open_with(uint32_t workers)
{
    struct lab_conf lab = lab_conf_default(GUESTS);
    struct tunnel_lab_conf conf = { 0 };

    lab.workers = workers;
    CHECK(tunnel_lab_open(&t, &lab, &conf));
    CHECK_EQ(tunnel_lab_add(&t, VNI), 0);
    CHECK_EQ(tunnel_lab_add(&t, OTHER), 1);
    for (uint32_t i = 0; i < GUESTS; i++) {
        uint8_t mac[6];
        pvs_mac_store(mac, LAB_MAC(i));
        CHECK_EQ(pvs_fdb_set_static(t.lab.fdb, mac, 0, pvs_port_ref(t.lab.port[i].port), 0), 0);
    }
    lab_publish(&t.lab);
}

/* Frames for a guest without buffers wait. */
static void
open_waiting(uint32_t workers)
{
    open_with(workers);
    t.lab.port[TO].conf.backpressure_ms = 1000;
    lab_publish(&t.lab);
}

static void
far_sends(uint32_t far, uint64_t vni, uint64_t dst, uint32_t salt)
{
    far_send(&t, far, vni, frame_of(dst, BEHIND(far), salt), LEN);
}

static void
make_room(uint32_t guest, uint32_t n)
{
    lab_fill(&t.lab, guest, n);
    CHECK(pvd_kick(t.lab.port[guest].guest, 0) >= 0);
    lab_poll(&t.lab, 5);
}

static void
guest_has(uint32_t guest, uint64_t src, uint32_t salt)
{
    lab_expect(&t.lab, guest, frame_of(LAB_MAC(guest), src, salt), LEN);
}

static uint64_t
drops(uint32_t tunnel, enum pvs_drop why)
{
    return tunnel_lab_counters(&t, tunnel).rx_drop[why];
}

static uint64_t
endpoint_drops(enum pvs_drop why)
{
    return tunnel_lab_endpoint(&t).rx_drop[why];
}

/* ---- who waits ---- */

TEST(tunnel_frames_wait_for_their_receiver)
{
    open_waiting(1);
    for (uint32_t i = 0; i < 100; i++)
        far_sends(i % FARS, i % 2 == 0 ? VNI : OTHER, LAB_MAC(TO), i);
    lab_poll(&t.lab, 20);
    CHECK_EQ(lab_counters(&t.lab, TO).value[PVS_C_tx_packets], 0);
    for (uint32_t i = 0; i < 100; i += 10) {
        make_room(TO, 10);
        for (uint32_t k = i; k < i + 10; k++)
            guest_has(TO, BEHIND(k % FARS), k);
        lab_expect_nothing(&t.lab, TO);
    }
    CHECK_EQ(lab_sum(lab_counters(&t.lab, TO).tx_drop), 0);
    CHECK_EQ(tunnel_lab_counters(&t, 0).value[PVS_C_rx_packets], 50);
    CHECK_EQ(tunnel_lab_counters(&t, 1).value[PVS_C_rx_packets], 50);
    tunnel_lab_close(&t);
}

static uint64_t
taken(void)
{
    return tunnel_lab_counters(&t, 0).value[PVS_C_rx_packets] + tunnel_lab_counters(&t, 1).value[PVS_C_rx_packets];
}

/* However many networks and VTEPs take turns, an endpoint has one budget a turn: 15 floods of this size to three guests. */
TEST(tunnel_floods_leave_others_their_turn)
{
    enum { FLOODS = 32, LARGE = 12000, IN_A_TURN = 16 };
    static uint8_t frame[LARGE];

    open_with(1);
    lab_poll(&t.lab, 5);
    for (uint32_t i = 0; i < FLOODS; i++) {
        lab_frame(frame, LAB_BROADCAST, BEHIND(0), LARGE, i);
        far_send(&t, 0, i % 2 == 0 ? VNI : OTHER, frame, LARGE);
    }
    for (int i = 0; i < 10 && taken() == 0; i++)
        lab_poll(&t.lab, 1);
    CHECK(taken() != 0 && taken() <= IN_A_TURN);
    lab_poll(&t.lab, 10);
    CHECK_EQ(taken(), FLOODS);
    tunnel_lab_close(&t);
}

TEST(tunnel_frames_do_not_wait_for_ever)
{
    open_waiting(1);
    for (uint32_t i = 0; i < 10; i++)
        far_sends(0, VNI, LAB_MAC(TO), i);
    lab_poll(&t.lab, 10000 + 20);
    CHECK_EQ(lab_counters(&t.lab, TO).tx_drop[PVS_DROP_guest_rx_full], 10);
    tunnel_lab_close(&t);
}

TEST(tunnel_frames_that_wait_when_the_endpoint_stops_are_counted)
{
    open_waiting(1);
    for (uint32_t i = 0; i < 10; i++)
        far_sends(0, VNI, LAB_MAC(TO), i);
    lab_poll(&t.lab, 5);
    tunnel_lab_stop(&t);
    CHECK_EQ(endpoint_drops(PVS_DROP_link_down), 10);
    far_sends(0, VNI, LAB_MAC(TO), 50);
    lab_poll(&t.lab, 5);
    make_room(TO, 32);
    lab_expect_nothing(&t.lab, TO);
    tunnel_lab_flood(&t, 0, 0, 1); /* nothing leaves while nothing could come */
    lab_send(&t.lab, FROM, frame_of(LAB_BROADCAST, LAB_MAC(FROM), 1), LEN);
    lab_poll(&t.lab, 3);
    lab_expect(&t.lab, TO, frame_of(LAB_BROADCAST, LAB_MAC(FROM), 1), LEN);
    far_expect_nothing(&t, 0);
    tunnel_lab_start(&t);
    lab_poll(&t.lab, 5);
    guest_has(TO, BEHIND(0), 50); /* the kernel has kept it */
    tunnel_lab_close(&t);
}

TEST(tunnel_frames_that_wait_move_with_their_endpoint)
{
    open_waiting(3);
    for (uint32_t i = 0; i < 60; i++)
        far_sends(i % FARS, i % 2 == 0 ? VNI : OTHER, LAB_MAC(TO), i);
    lab_poll(&t.lab, 5);
    for (uint32_t i = 0; i < 60; i++) {
        make_room(TO, 1);
        guest_has(TO, BEHIND(i % FARS), i);
        int64_t seq = pvs_uplink_move(t.endpoint, 0, i % 3);
        if (seq != -EALREADY)
            CHECK_EQ(lab_wait(&t.lab, seq), 0);
    }
    far_sends(0, VNI, LAB_MAC(TO), 99);
    make_room(TO, 1);
    guest_has(TO, BEHIND(0), 99);
    CHECK_EQ(lab_sum(lab_counters(&t.lab, TO).tx_drop), 0);
    tunnel_lab_close(&t);
}

/* One of two tunnels goes; the other one's frames, which wait behind, don't. */
TEST(tunnel_frames_that_wait_when_their_tunnel_goes_are_nobodys)
{
    open_waiting(1);
    for (uint32_t i = 0; i < 20; i++)
        far_sends(0, i < 10 ? OTHER : VNI, LAB_MAC(TO), i);
    lab_poll(&t.lab, 5);
    tunnel_lab_remove(&t); /* that of OTHER */
    lab_poll(&t.lab, 5);
    CHECK_EQ(endpoint_drops(PVS_DROP_unknown_vni), 10);
    make_room(TO, 32);
    for (uint32_t i = 10; i < 20; i++)
        guest_has(TO, BEHIND(0), i);
    lab_expect_nothing(&t.lab, TO);
    for (uint32_t i = 30; i < 35; i++)
        far_sends(0, VNI, LAB_MAC(TO), i);
    lab_poll(&t.lab, 5);
    for (uint32_t i = 30; i < 35; i++)
        guest_has(TO, BEHIND(0), i);
    tunnel_lab_close(&t);
}

/* Joined segments of which some have been delivered: those of another connection, which wait behind, are all there. */
TEST(tunnel_frames_that_wait_half_delivered_when_their_tunnel_goes)
{
    enum { SEGMENTS = 5, MSS = 100 };
    static struct cooked c;
    struct recipe r = { .payload = SEGMENTS * MSS, .flags = ACK };

    open_waiting(1);
    lab_fill(&t.lab, FROM, 64);
    uint8_t mac[6];
    pvs_mac_store(mac, LAB_MAC(2)); /* whom recipes send to */
    CHECK_EQ(pvs_fdb_set_static(t.lab.fdb, mac, 0, pvs_port_ref(t.lab.port[TO].port), 0), 0);
    for (uint32_t i = 0; i < 2 * SEGMENTS; i++) {
        struct recipe s = segment_recipe(&r, MSS, i % SEGMENTS, SEGMENTS);
        cook(&s, FINISHED, &c);
        far_send(&t, 0, i < SEGMENTS ? OTHER : VNI, c.bytes, c.len);
    }
    lab_poll(&t.lab, 5);
    make_room(TO, 2);
    CHECK_EQ(lab_counters(&t.lab, TO).value[PVS_C_tx_packets], 2);
    CHECK_EQ(tunnel_lab_counters(&t, 1).value[PVS_C_rx_packets], 0); /* it waits, and is one frame */
    tunnel_lab_remove(&t);
    make_room(TO, 64);
    CHECK_EQ(endpoint_drops(PVS_DROP_unknown_vni), 1);
    for (uint32_t i = 0; i < 2 + SEGMENTS; i++) {
        struct recipe s = segment_recipe(&r, MSS, i < 2 ? i : i - 2, SEGMENTS);
        cook(&s, FINISHED, &c);
        lab_expect(&t.lab, TO, c.bytes, c.len);
    }
    lab_expect_nothing(&t.lab, TO);
    tunnel_lab_close(&t);
}

TEST(tunnel_frames_that_wait_when_all_tunnels_go)
{
    open_waiting(1);
    for (uint32_t i = 0; i < 20; i++)
        far_sends(0, i < 10 ? OTHER : VNI, LAB_MAC(TO), i);
    lab_poll(&t.lab, 5);
    tunnel_lab_remove(&t);
    tunnel_lab_remove(&t);
    lab_poll(&t.lab, 5);
    CHECK_EQ(endpoint_drops(PVS_DROP_unknown_vni), 20);
    CHECK_EQ(tunnel_lab_add(&t, VNI), 0);
    lab_publish(&t.lab);
    far_sends(0, VNI, LAB_MAC(TO), 77);
    make_room(TO, 32);
    guest_has(TO, BEHIND(0), 77);
    lab_expect_nothing(&t.lab, TO);
    tunnel_lab_close(&t);
}

/* As control removes one (pvs_api.h). */
static void
remove_vtep(uint16_t number)
{
    CHECK_EQ(pvs_vtep_unlink(t.lab.sw, number), 0);
    CHECK_EQ(lab_wait(&t.lab, pvs_sync(t.lab.sw)), 0);
    CHECK(pvs_fdb_flush(t.lab.fdb, &(struct pvs_fdb_filter){ .by_vtep = true, .vtep = number }) >= 0);
    CHECK_EQ(lab_wait(&t.lab, pvs_sync(t.lab.sw)), 0);
    CHECK_EQ(pvs_vtep_free(t.lab.sw, number), 0);
}

/* What waits doesn't name it any more, whether it has been looked at or not. */
TEST(tunnel_frames_that_wait_forget_a_vtep_that_goes)
{
    static uint8_t packets[64 * (LEN + 8)];

    for (uint32_t train = 0; train < 3; train++) {
        open_waiting(2);
        for (uint32_t i = 0; i < 64; i++) {
            uint8_t *to = packets + i * (LEN + 8);
            pvs_outer_write(PVS_VXLAN, VNI, to);
            memcpy(to + 8, frame_of(LAB_MAC(TO), BEHIND(i), i), LEN);
            if (train == 0)
                far_send_bytes(&t, 0, to, LEN + 8, 0, 0);
        }
        if (train != 0)
            far_send_bytes(&t, 0, packets, sizeof packets, LEN + 8, 0);
        lab_poll(&t.lab, 5);
        int64_t move = train == 2 ? pvs_uplink_move(t.endpoint, 0, 1) : 0; /* nobody may have it just then */
        remove_vtep(t.far[0].number);
        CHECK(move == 0 || move == -EALREADY || lab_wait(&t.lab, move) == 0);
        make_room(TO, 128);
        lab_poll(&t.lab, 10);
        for (uint32_t i = 0; i < 64; i++) {
            struct pvs_fdb_item item;
            uint8_t mac[6];
            lab_expect(&t.lab, TO, frame_of(LAB_MAC(TO), BEHIND(i), i), LEN);
            pvs_mac_store(mac, BEHIND(i));
            if (pvs_fdb_lookup(t.lab.fdb, mac, 0, t.lab.now_ns, &item) == 0)
                CHECK(item.vtep != t.far[0].number); /* but with a number of its own */
        }
        tunnel_lab_close(&t);
    }
}

TEST(tunnel_shaped_frames_forget_a_vtep_that_goes)
{
    open_with(1);
    far_sends(2, VNI, LAB_BROADCAST, 1);
    lab_poll(&t.lab, 3);
    tunnel_lab_flood(&t, 0, 0, 1);
    t.tunnel[0].conf->shaping = (struct pvs_limit){ .per_second = 100000, .depth = LEN };
    lab_publish(&t.lab);
    for (uint32_t i = 0; i < 5; i++)
        lab_send(&t.lab, FROM, frame_of(BEHIND(2), LAB_MAC(FROM), i), LEN);
    lab_poll(&t.lab, 1);
    far_expect(&t, 2, VNI, frame_of(BEHIND(2), LAB_MAC(FROM), 0), LEN);
    remove_vtep(t.far[2].number);
    lab_poll(&t.lab, 400);
    for (uint32_t i = 1; i < 5; i++) /* as what nobody knows */
        far_expect(&t, 0, VNI, frame_of(BEHIND(2), LAB_MAC(FROM), i), LEN);
    far_expect_nothing(&t, 2);
    tunnel_lab_close(&t);
}

TEST(tunnel_that_is_disabled_takes_and_sends_nothing)
{
    open_with(1);
    tunnel_lab_flood(&t, 0, 0, 1);
    t.tunnel[0].conf->enabled = false;
    lab_publish(&t.lab);
    lab_fill(&t.lab, TO, 32);
    far_sends(0, VNI, LAB_MAC(TO), 1);
    lab_send(&t.lab, FROM, frame_of(LAB_BROADCAST, LAB_MAC(FROM), 2), LEN);
    lab_poll(&t.lab, 5);
    lab_expect(&t.lab, TO, frame_of(LAB_BROADCAST, LAB_MAC(FROM), 2), LEN);
    lab_expect_nothing(&t.lab, TO);
    far_expect_nothing(&t, 0);
    CHECK_EQ(drops(0, PVS_DROP_link_down), 1);
    tunnel_lab_close(&t);
}

/* ---- control's frames ---- */

TEST(tunnel_injected_frames)
{
    open_with(1);
    for (uint32_t i = 0; i < GUESTS; i++)
        lab_fill(&t.lab, i, 16);
    tunnel_lab_flood(&t, 0, 0, 2);
    tunnel_lab_flood(&t, 1, 0, 1);
    const uint8_t *frame = frame_of(LAB_BROADCAST, BEHIND(9), 1);
    CHECK_EQ(lab_wait(&t.lab, pvs_inject(t.tunnel[0].port, PVS_EGRESS, frame, LEN)), 0);
    far_expect(&t, 0, VNI, frame, LEN);
    far_expect(&t, 1, VNI, frame, LEN);
    far_expect_nothing(&t, 0);
    lab_expect_nothing(&t.lab, TO);
    CHECK_EQ(lab_wait(&t.lab, pvs_inject(t.tunnel[0].port, PVS_INGRESS, frame, LEN)), 0);
    far_expect(&t, 0, OTHER, frame, LEN);
    far_expect_nothing(&t, 0);
    far_expect_nothing(&t, 1);
    for (uint32_t i = 0; i < GUESTS; i++)
        lab_expect(&t.lab, i, frame, LEN);
    struct pvs_fdb_item item;
    CHECK_EQ(pvs_fdb_lookup(t.lab.fdb, frame + 6, 0, t.lab.now_ns, &item), -ENOENT); /* it is behind no VTEP */
    CHECK_EQ(lab_wait(&t.lab, pvs_inject(t.lab.port[TO].port, PVS_INGRESS, frame, LEN)), 0);
    for (uint32_t i = 0; i < 2; i++)
        far_expect(&t, i, VNI, frame, LEN);
    far_expect(&t, 0, OTHER, frame, LEN);
    CHECK(lab_wait(&t.lab, pvs_inject(t.endpoint, PVS_INGRESS, frame, LEN)) < 0); /* it is on no bridge */
    CHECK(lab_wait(&t.lab, pvs_inject(t.endpoint, PVS_EGRESS, frame, LEN)) < 0);
    tunnel_lab_close(&t);
}

/* ---- mirrors ---- */

static struct pvs_mirror_conf mirror;

static void
mirror_to(pvs_port *port)
{
    mirror = (struct pvs_mirror_conf){ .port = port };
    t.lab.conf.bridge.n_mirrors = 1;
    t.lab.conf.bridge.mirrors = &mirror;
}

TEST(tunnel_a_mirror_has_what_comes_and_goes_by_a_tunnel)
{
    open_with(1);
    mirror_to(t.lab.port[WATCHER].port);
    t.tunnel[0].conf->mirror_in = t.tunnel[0].conf->mirror_out = 1;
    lab_publish(&t.lab);
    for (uint32_t i = 0; i < GUESTS; i++)
        lab_fill(&t.lab, i, 16);
    far_sends(0, VNI, LAB_MAC(TO), 1);
    lab_poll(&t.lab, 3);
    guest_has(TO, BEHIND(0), 1);
    lab_expect(&t.lab, WATCHER, frame_of(LAB_MAC(TO), BEHIND(0), 1), LEN);
    lab_send(&t.lab, TO, frame_of(BEHIND(0), LAB_MAC(TO), 2), LEN);
    lab_poll(&t.lab, 3);
    far_expect(&t, 0, VNI, frame_of(BEHIND(0), LAB_MAC(TO), 2), LEN);
    lab_expect(&t.lab, WATCHER, frame_of(BEHIND(0), LAB_MAC(TO), 2), LEN);
    lab_expect_nothing(&t.lab, WATCHER);
    t.lab.conf.bridge.n_mirrors = 0;
    t.tunnel[0].conf->mirror_in = t.tunnel[0].conf->mirror_out = 0;
    tunnel_lab_close(&t);
}

TEST(tunnel_as_a_mirrors_output_sends_to_all_its_remotes)
{
    for (uint16_t snaplen = 0; snaplen <= 100; snaplen = (uint16_t)(snaplen + 50)) {
        open_with(1);
        mirror_to(t.tunnel[1].port);
        mirror.snaplen = snaplen;
        t.lab.port[FROM].conf.mirror_in = 1;
        t.tunnel[0].conf->mirror_in = 1;
        lab_publish(&t.lab);
        tunnel_lab_flood(&t, 1, 0, 2);
        lab_fill(&t.lab, TO, 16);
        uint32_t kept = snaplen != 0 ? snaplen : LEN;
        lab_send(&t.lab, FROM, frame_of(LAB_MAC(TO), LAB_MAC(FROM), 1), LEN);
        lab_poll(&t.lab, 3);
        for (uint32_t i = 0; i < 2; i++)
            far_expect(&t, i, OTHER, frame_of(LAB_MAC(TO), LAB_MAC(FROM), 1), kept);
        far_sends(2, VNI, LAB_MAC(TO), 2); /* of another tunnel's */
        lab_poll(&t.lab, 3);
        for (uint32_t i = 0; i < 2; i++)
            far_expect(&t, i, OTHER, frame_of(LAB_MAC(TO), BEHIND(2), 2), kept);
        lab_send(&t.lab, FROM, frame_of(BEHIND(2), LAB_MAC(FROM), 3),
                 LEN); /* known unicast to one VTEP, its copy to all */
        lab_poll(&t.lab, 3);
        far_expect(&t, 2, VNI, frame_of(BEHIND(2), LAB_MAC(FROM), 3), LEN);
        for (uint32_t i = 0; i < 2; i++)
            far_expect(&t, i, OTHER, frame_of(BEHIND(2), LAB_MAC(FROM), 3), kept);
        far_sends(0, OTHER, LAB_MAC(TO), 4); /* nothing comes in by it */
        lab_poll(&t.lab, 3);
        CHECK_EQ(drops(1, PVS_DROP_mirror_output), 1);
        t.tunnel[1].conf->room = kept - 1; /* and it has a room as well */
        lab_publish(&t.lab);
        lab_send(&t.lab, FROM, frame_of(LAB_MAC(TO), LAB_MAC(FROM), 5), LEN);
        lab_poll(&t.lab, 3);
        for (uint32_t i = 0; i < FARS; i++)
            far_expect_nothing(&t, i);
        CHECK_EQ(tunnel_lab_counters(&t, 1).tx_drop[PVS_DROP_mtu_exceeded], 1);
        t.lab.conf.bridge.n_mirrors = 0;
        t.lab.port[FROM].conf.mirror_in = t.tunnel[0].conf->mirror_in = 0;
        tunnel_lab_close(&t);
    }
}

/* ---- limits ---- */

TEST(tunnel_shaped_frames_leave_later_by_the_same_way)
{
    open_with(1);
    far_sends(1, VNI, LAB_BROADCAST, 1);
    far_sends(2, VNI, LAB_BROADCAST, 1);
    lab_poll(&t.lab, 3);
    tunnel_lab_flood(&t, 0, 0, 1);
    t.tunnel[0].conf->shaping = (struct pvs_limit){ .per_second = 100000, .depth = LEN }; /* 2 ms for each */
    lab_publish(&t.lab);
    for (uint32_t i = 0; i < 10; i++) {
        uint64_t dst = i % 3 == 0 ? LAB_BROADCAST : BEHIND(i % 3);
        lab_send(&t.lab, FROM, frame_of(dst, LAB_MAC(FROM), i), LEN);
        lab_poll(&t.lab, 1);
    }
    CHECK(tunnel_lab_counters(&t, 0).value[PVS_C_tx_packets] <= 2);
    lab_poll(&t.lab, 400);
    CHECK_EQ(tunnel_lab_counters(&t, 0).value[PVS_C_tx_packets], 10);
    for (uint32_t i = 0; i < 10; i++) {
        uint64_t dst = i % 3 == 0 ? LAB_BROADCAST : BEHIND(i % 3);
        far_expect(&t, i % 3, VNI, frame_of(dst, LAB_MAC(FROM), i), LEN);
    }
    for (uint32_t i = 0; i < FARS; i++)
        far_expect_nothing(&t, i);
    tunnel_lab_close(&t);
}

TEST(tunnel_shaped_frames_go_with_their_tunnel)
{
    open_with(1);
    tunnel_lab_flood(&t, 1, 0, 1);
    t.tunnel[1].conf->shaping = (struct pvs_limit){ .per_second = 100000, .depth = LEN };
    lab_publish(&t.lab);
    for (uint32_t i = 0; i < 10; i++)
        lab_send(&t.lab, FROM, frame_of(LAB_BROADCAST, LAB_MAC(FROM), i), LEN);
    lab_poll(&t.lab, 2);
    tunnel_lab_remove(&t);
    lab_poll(&t.lab, 400);
    far_expect(&t, 0, OTHER, frame_of(LAB_BROADCAST, LAB_MAC(FROM), 0), LEN);
    far_expect_nothing(&t, 0);
    tunnel_lab_close(&t);
}

/* ---- port security ---- */

TEST(tunnel_port_security_counts_addresses_whichever_vtep_they_are_behind)
{
    open_with(1);
    lab_fill(&t.lab, TO, 64);
    t.tunnel[0].conf->secure = true;
    t.tunnel[0].conf->max_macs = 2;
    lab_publish(&t.lab);
    for (uint32_t i = 0; i < FARS; i++) {
        far_sends(i, VNI, LAB_MAC(TO), i);
        lab_poll(&t.lab, 3);
    }
    guest_has(TO, BEHIND(0), 0);
    guest_has(TO, BEHIND(1), 1);
    lab_expect_nothing(&t.lab, TO); /* the third one is one too many */
    CHECK_EQ(drops(0, PVS_DROP_port_security), 1);
    far_send(&t, 2, VNI, frame_of(LAB_MAC(TO), BEHIND(0), 7), LEN); /* but the first one may move */
    lab_poll(&t.lab, 3);
    guest_has(TO, BEHIND(0), 7);
    lab_send(&t.lab, FROM, frame_of(BEHIND(0), LAB_MAC(FROM), 8), LEN);
    lab_poll(&t.lab, 3);
    far_expect(&t, 2, VNI, frame_of(BEHIND(0), LAB_MAC(FROM), 8), LEN);
    tunnel_lab_close(&t);
}

TEST(tunnel_storms_and_policing)
{
    open_with(1);
    lab_fill(&t.lab, TO, 64);
    t.tunnel[0].conf->storm[0] = (struct pvs_limit){ .per_second = 1, .depth = 3 };
    t.tunnel[1].conf->policing = (struct pvs_limit){ .per_second = 1, .depth = 4 * LEN };
    lab_publish(&t.lab);
    for (uint32_t i = 0; i < 10; i++) {
        far_sends(0, VNI, LAB_BROADCAST, i);
        far_sends(1, OTHER, LAB_MAC(TO), i);
    }
    lab_poll(&t.lab, 5);
    CHECK_EQ(drops(0, PVS_DROP_storm_control), 7);
    CHECK_EQ(drops(1, PVS_DROP_policed), 6);
    CHECK_EQ(lab_counters(&t.lab, TO).value[PVS_C_tx_packets], 7);
    tunnel_lab_close(&t);
}

/* ---- what doesn't fit ---- */

TEST(tunnel_the_kernels_refusal_is_told)
{
    struct lab_conf lab = lab_conf_default(1);
    struct tunnel_lab_conf conf = { 0 };
    static uint8_t frame[65530];
    struct pvs_event e;

    lab.guest.tx_buf_size = 65600;
    CHECK(tunnel_lab_open(&t, &lab, &conf));
    tunnel_lab_add(&t, VNI);
    tunnel_lab_flood(&t, 0, 0, 2);
    lab_publish(&t.lab);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), sizeof frame, 1); /* no datagram holds that much */
    lab_send(&t.lab, 0, frame, sizeof frame);
    lab_poll(&t.lab, 3);
    CHECK_EQ(tunnel_lab_counters(&t, 0).tx_drop[PVS_DROP_mtu_exceeded], 2);
    CHECK_EQ(pvs_tunnel_error(t.tunnel[0].tunnel), EMSGSIZE);
    for (uint32_t i = 0; i < 2; i++) {
        do
            CHECK_EQ(pvs_event_next(t.lab.sw, &e), 1);
        while (e.kind == PVS_EV_LEARNED);
        CHECK_EQ(e.kind, PVS_EV_TOO_BIG);
        CHECK_EQ(e.port_ref, pvs_port_ref(t.tunnel[0].port));
        CHECK_EQ(e.vtep, t.far[i].number);
    }
    far_expect_nothing(&t, 0);
    tunnel_lab_close(&t);
}
