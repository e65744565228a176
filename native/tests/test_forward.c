/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_forward.c - where frames go and why they don't, what is learned, and counters that add up (decide.h, forward.c).
 * One worker, driven step by step.
 */
#include <errno.h>
#include <string.h>

#include "lab.h"
#include "parse.h"

static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME + 100];

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

/* ---- where frames go ---- */

TEST_EACH_RING(a_flood_reaches_everyone_but_its_sender)
{
    open_ports(4);
    for (uint32_t i = 0; i < 4; i++)
        lab_fill(&lab, i, 10);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(2), 60, 9);
    lab_send(&lab, 2, frame, 60);
    lab_poll(&lab, 2);
    for (uint32_t i = 0; i < 4; i++) {
        if (i == 2)
            lab_expect_nothing(&lab, i);
        else
            lab_expect(&lab, i, frame, 60);
    }
    CHECK_EQ(lab_counters(&lab, 2).value[PVS_C_rx_broadcast_packets], 1);
    lab_frame(frame, 0x01005e000001ULL, LAB_MAC(2), 60, 9);
    lab_send(&lab, 2, frame, 60);
    lab_poll(&lab, 2);
    lab_expect(&lab, 3, frame, 60);
    CHECK_EQ(lab_counters(&lab, 2).value[PVS_C_rx_multicast_packets], 1);
    lab_frame(frame, LAB_MAC(77), LAB_MAC(2), 60, 9); /* unknown unicast */
    lab_send(&lab, 2, frame, 60);
    lab_poll(&lab, 2);
    lab_expect_nothing(&lab, 2);
    lab_expect(&lab, 3, frame, 60);
    close_and_check();
}

TEST_EACH_RING(known_unicast_goes_to_its_port_alone)
{
    open_ports(3);
    for (uint32_t i = 0; i < 3; i++)
        lab_fill(&lab, i, 20);
    lab_learn_all(&lab);
    lab_frame(frame, LAB_MAC(2), LAB_MAC(0), 60, 1);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    lab_expect(&lab, 2, frame, 60);
    lab_expect_nothing(&lab, 1);
    close_and_check();
}

TEST_EACH_RING(unknown_unicast_is_dropped_where_floods_of_it_are_off)
{
    struct lab_conf conf = lab_conf_default(2);
    conf.bridge.flood_unknown = false;
    lab_open(&lab, &conf);
    lab_fill(&lab, 1, 10);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 1);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    lab_expect_nothing(&lab, 1);
    CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_no_destination], 1);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), 60, 1);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    lab_expect(&lab, 1, frame, 60);
    close_and_check();
}

TEST_EACH_RING(a_frame_to_an_address_on_its_own_port_is_dropped)
{
    open_ports(2);
    lab_fill(&lab, 1, 20);
    lab_learn_all(&lab);
    lab_frame(frame, LAB_MAC(0), LAB_MAC(50), 60, 1);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_same_port], 1);
    lab_expect_nothing(&lab, 1);
    close_and_check();
}

TEST_EACH_RING(alone_on_a_bridge_there_is_no_destination)
{
    open_ports(1);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), 60, 1);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_no_destination], 1);
    close_and_check();
}

TEST_EACH_RING(bridges_are_apart)
{
    open_ports(4);
    struct pvs_port_conf ports[4];
    struct pvs_bridge_conf bridges[2] = { lab.conf.bridge, lab.conf.bridge };
    CHECK_EQ(pvs_fdb_create(100, 300, 2, &bridges[1].fdb), 0);
    for (uint16_t i = 0; i < 4; i++) {
        lab_fill(&lab, i, 20);
        ports[i] = lab.port[i].conf;
        ports[i].bridge = i / 2;
    }
    CHECK_EQ(lab_wait(&lab, pvs_publish(lab.sw, ports, 4, bridges, 2)), 0);
    lab_learn_all(&lab);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), 60, 1);
    lab_send(&lab, 0, frame, 60);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(3), 60, 1); /* known on the other bridge: unknown on this one */
    lab_send(&lab, 3, frame, 60);
    lab_poll(&lab, 2);
    lab_expect(&lab, 2, frame, 60);
    lab_expect_nothing(&lab, 2);
    lab_expect_nothing(&lab, 3);
    lab_publish(&lab);
    pvs_fdb_destroy(bridges[1].fdb);
    lab_close(&lab);
}

TEST_EACH_RING(an_administratively_disabled_port_neither_sends_nor_receives)
{
    open_ports(3);
    for (uint32_t i = 0; i < 3; i++)
        lab_fill(&lab, i, 20);
    lab_learn_all(&lab);
    lab.port[1].conf.enabled = false;
    lab_publish(&lab);
    lab_frame(frame, LAB_MAC(0), LAB_MAC(1), 60, 1);
    lab_send(&lab, 1, frame, 60);
    lab_poll(&lab, 2);
    lab_expect_nothing(&lab, 0);
    CHECK_EQ(lab_counters(&lab, 1).rx_drop[PVS_DROP_link_down], 1);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 1);
    lab_send(&lab, 0, frame, 60);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), 60, 1);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    lab_expect_nothing(&lab, 1);
    lab_expect(&lab, 2, frame, 60);
    CHECK_EQ(lab_counters(&lab, 1).tx_drop[PVS_DROP_link_down], 1);
    lab_close(&lab);
}

TEST_EACH_RING(mtu_counts_l3_bytes_without_tags)
{
    open_ports(3);
    lab.port[1].conf.mtu = 1500;
    lab_publish(&lab);
    for (uint32_t i = 1; i < 3; i++)
        lab_fill(&lab, i, 40);
    static const struct {
        uint32_t len, tags;
        bool fits;
    } cases[] = { { 1514, 0, true }, { 1515, 0, false }, { 1518, 1, true },  { 1519, 1, false },
                  { 1522, 2, true }, { 1523, 2, false }, { 1526, 3, false }, { 14, 0, true } };
    uint64_t exceeded = 0;
    for (uint32_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), cases[i].len, i);
        for (uint32_t t = 0; t < cases[i].tags; t++)
            memcpy(frame + 12 + 4 * t, t == 0 ? "\x88\xa8\x00\x01" : "\x81\x00\x00\x02", 4);
        lab_send(&lab, 0, frame, cases[i].len);
        lab_poll(&lab, 2);
        lab_expect(&lab, 2, frame, cases[i].len); /* a flood drops per receiver */
        exceeded += !cases[i].fits;
        if (cases[i].fits)
            lab_expect(&lab, 1, frame, cases[i].len);
        else
            lab_expect_nothing(&lab, 1);
        CHECK_EQ(lab_counters(&lab, 1).tx_drop[PVS_DROP_mtu_exceeded], exceeded);
    }
    close_and_check();
}

TEST_EACH_RING(link_local_frames_stay_unless_forward_bpdu)
{
    open_ports(2);
    lab_fill(&lab, 1, 40);
    for (int on = 0; on < 2; on++) {
        lab.conf.bridge.forward_bpdu = on;
        lab_publish(&lab);
        for (uint64_t last = 0; last <= 0x10; last++) {
            uint64_t before = lab_counters(&lab, 0).rx_drop[PVS_DROP_bpdu];
            lab_frame(frame, 0x0180c2000000ULL + last, LAB_MAC(0), 60, 0);
            lab_send(&lab, 0, frame, 60);
            lab_poll(&lab, 2);
            bool passes = last == 0x10 || (on && last != 1); /* -01 is PAUSE: never */
            CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_bpdu], before + !passes);
            if (passes)
                lab_expect(&lab, 1, frame, 60);
            else
                lab_expect_nothing(&lab, 1);
        }
    }
    close_and_check();
}

/* ---- what is read of a frame ---- */

TEST(both_addresses_and_the_type_are_read_whole)
{
    struct pvs_frame f = { .len = 14, .head_len = 14 };

    for (uint32_t shift = 0; shift < 2; shift++) { /* with and without the highest bit of each byte */
        for (uint32_t i = 0; i < 14; i++)
            f.head[i] = (uint8_t)(0x71 + i + (i % 2 == shift ? 0x80 : 0));
        memset(f.head + 14, 0xee, 8); /* beyond the frame */
        CHECK(pvs_parse(&f));
        CHECK_EQ(f.parsed.dst, pvs_mac_load(f.head));
        CHECK_EQ(f.parsed.src, pvs_mac_load(f.head + 6));
        CHECK_EQ(f.parsed.dst, shift == 0 ? 0xf172f374f576 : 0x71f273f475f6);
        CHECK_EQ(f.parsed.src, shift == 0 ? 0xf778f97afb7c : 0x77f879fa7bfc);
        CHECK_EQ(f.parsed.ethertype, shift == 0 ? 0xfd7e : 0x7dfe);
        CHECK_EQ(f.parsed.l3_offset, 14);
        CHECK(!f.malformed);
    }
    f.len = 13;
    CHECK(!pvs_parse(&f));
    CHECK(f.malformed);
}

/* ---- learning ---- */

static uint32_t
port_of(uint64_t mac)
{
    uint8_t bytes[6];
    struct pvs_fdb_item item;
    pvs_mac_store(bytes, mac);
    return pvs_fdb_lookup(lab.fdb, bytes, 0, lab.now_ns, &item) == 0 ? item.port_ref : 0;
}

static int
next_event(struct pvs_event *e)
{
    return pvs_event_next(lab.sw, e);
}

TEST_EACH_RING(sources_are_learned_moved_and_reported)
{
    struct pvs_event e;
    open_ports(2);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(9), 60, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(port_of(LAB_MAC(9)), pvs_port_ref(lab.port[0].port));
    CHECK_EQ(next_event(&e), 1);
    CHECK_EQ(e.kind, PVS_EV_LEARNED);
    CHECK_EQ(e.port_ref, pvs_port_ref(lab.port[0].port));
    CHECK_EQ(e.detail, 0);
    CHECK_EQ(pvs_mac_load(e.mac), LAB_MAC(9));
    CHECK_EQ(next_event(&e), 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(next_event(&e), 0); /* known */
    lab_send(&lab, 1, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(port_of(LAB_MAC(9)), pvs_port_ref(lab.port[1].port));
    CHECK_EQ(next_event(&e), 1);
    CHECK_EQ(e.kind, PVS_EV_MOVED);
    CHECK_EQ(e.port_ref, pvs_port_ref(lab.port[1].port));
    CHECK_EQ(e.detail, pvs_port_ref(lab.port[0].port));
    lab_close(&lab);
}

TEST_EACH_RING(group_and_zero_sources_are_not_learned)
{
    struct pvs_event e;
    open_ports(2);
    static const uint64_t src[] = { 0, LAB_BROADCAST, 0x01005e000001ULL, 0x0180c2000000ULL };
    for (int i = 0; i < 4; i++) {
        lab_frame(frame, LAB_BROADCAST, src[i], 60, 0);
        lab_send(&lab, 0, frame, 60);
    }
    lab_frame(frame, 0x0180c2000000ULL, LAB_MAC(5), 60, 0); /* and nothing from a frame that is not relayed */
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(pvs_fdb_count(lab.fdb), 0);
    CHECK_EQ(next_event(&e), 0);
    lab_close(&lab);
}

TEST_EACH_RING(a_static_address_does_not_move)
{
    uint8_t mac[6];
    open_ports(3);
    lab_fill(&lab, 1, 10);
    lab_fill(&lab, 2, 10);
    pvs_mac_store(mac, LAB_MAC(9));
    CHECK_EQ(pvs_fdb_set_static(lab.fdb, mac, 0, pvs_port_ref(lab.port[1].port), 0), 0);
    lab_frame(frame, LAB_MAC(40), LAB_MAC(9), 60, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(port_of(LAB_MAC(9)), pvs_port_ref(lab.port[1].port));
    lab_close(&lab);
}

TEST_EACH_RING(an_address_of_a_port_that_was_replaced_is_unknown)
{
    uint8_t mac[6];
    open_ports(3);
    for (uint32_t i = 0; i < 3; i++)
        lab_fill(&lab, i, 10);
    pvs_mac_store(mac, LAB_MAC(9));
    uint32_t older = pvs_port_ref(lab.port[1].port) ^ 0x70000; /* another generation of the same index */
    CHECK_EQ(pvs_fdb_set_static(lab.fdb, mac, 0, older, 0), 0);
    lab_frame(frame, LAB_MAC(9), LAB_MAC(0), 60, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    lab_expect(&lab, 1, frame, 60); /* flooded */
    lab_expect(&lab, 2, frame, 60);
    lab_close(&lab);
}

TEST_EACH_RING(learning_has_a_budget_per_port_and_second)
{
    enum { LIMIT = 8192 };
    struct lab_conf conf = lab_conf_default(1);
    struct pvs_perf perf;
    conf.fdb_limit = 100000;
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < LIMIT + 1000; i++) {
        lab_frame(frame, LAB_BROADCAST, LAB_MAC(0x10000 + i), 14, 0);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, 14, NULL), 0);
        if (i % 200 == 199 || i == LIMIT + 999) {
            for (int k = 0; k < 7; k++)
                pvs_poll_once(lab.sw, 0, lab.now_ns);
            CHECK(pvd_tx_reap(lab.port[0].guest, 0) > 0);
        }
    }
    CHECK_EQ(pvs_fdb_count(lab.fdb), LIMIT);
    CHECK_EQ(pvs_worker_perf(lab.sw, 0, &perf), 0);
    CHECK_EQ(perf.learn_skipped, 1000);
    lab.now_ns += 1000000000; /* a second later there is a new one */
    lab_send(&lab, 0, frame, 14);
    lab_poll(&lab, 1);
    CHECK_EQ(pvs_fdb_count(lab.fdb), LIMIT + 1);
    lab_close(&lab);
}

/* ---- in the middle of a burst ---- */

TEST_EACH_RING(a_receiver_that_breaks_within_a_burst_changes_nothing_for_the_others)
{
    static const uint8_t request[12] = { 1 /* NEEDS_CSUM */, [6] = 34, [8] = 6 };
    struct lab_conf conf = lab_conf_default(4);
    struct pvs_event e;
    uint32_t broken = 0;

    conf.guest.features |= 1; /* CSUM: a request that no guest takes as it is goes at once */
    lab_open(&lab, &conf);
    lab_learn_all(&lab);
    lab_fill(&lab, 2, 10);
    lab_fill(&lab, 3, 10);
    lab_post_bad(&lab, 1, 0);
    uint64_t dropped = lab_sum(lab_counters(&lab, 1).tx_drop);
    for (uint32_t i = 0; i < 7; i++) {
        lab_udp(frame, i < 2 || i == 6 ? LAB_MAC(1) : LAB_BROADCAST, LAB_MAC(0), 1, 60);
        frame[59] = (uint8_t)i;
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, i == 1 ? request : NULL, frame, 60, NULL), 0);
    }
    pvd_kick(lab.port[0].guest, 1);
    lab_poll(&lab, 2);
    for (uint32_t i = 2; i < 6; i++) {
        lab_udp(frame, LAB_BROADCAST, LAB_MAC(0), 1, 60);
        frame[59] = (uint8_t)i;
        lab_expect(&lab, 2, frame, 60);
        lab_expect(&lab, 3, frame, 60);
    }
    lab_expect_nothing(&lab, 2);
    lab_expect_nothing(&lab, 3);
    CHECK_EQ(pvs_port_broken(lab.port[1].port), PVS_BROKEN_BAD_ADDRESS);
    CHECK_EQ(lab_sum(lab_counters(&lab, 1).tx_drop), dropped + 3);
    while (next_event(&e) == 1)
        broken += e.kind == PVS_EV_BROKEN;
    CHECK_EQ(broken, 1);
    lab_close(&lab);
}

static uint64_t
received_segments(void)
{
    return lab_counters(&lab, 1).value[PVS_C_tx_packets];
}

/* Three frames of four segments each to a port that is waited for; it has room for the first segment. */
static void
leave_half_delivered(void)
{
    enum { HOST_TSO4 = 11, LEN = 4054 };
    static const uint8_t request[12] = { 1 /* NEEDS_CSUM */, 1 /* TCPv4 */, 54, 0, 0xe8, 3 /* 1000 */, 34, 0, 16, 0 };
    struct lab_conf conf = lab_conf_default(2);
    uint8_t mac[6];

    conf.guest.features |= 1 | 1U << HOST_TSO4;
    conf.guest.tx_buf_size = 8192;
    lab_open(&lab, &conf);
    pvs_mac_store(mac, LAB_MAC(1));
    CHECK_EQ(pvs_fdb_set_static(lab.fdb, mac, 0, pvs_port_ref(lab.port[1].port), 0), 0);
    lab.port[1].conf.backpressure_ms = 100;
    lab_publish(&lab);
    lab_fill(&lab, 1, 1);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), LEN, 9);
    lab_udp(frame, LAB_MAC(1), LAB_MAC(0), 1, LEN);
    frame[23] = 6;
    frame[46] = 0x50; /* a TCP header of 20 bytes */
    frame[47] = 0x10;
    for (int i = 0; i < 3; i++)
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, request, frame, LEN, NULL), 0);
    pvd_kick(lab.port[0].guest, 1);
    lab_poll(&lab, 2);
    CHECK_EQ(received_segments(), 1);
}

static void
go_on_and_close(uint64_t expected)
{
    lab_fill(&lab, 1, 20);
    pvd_kick(lab.port[1].guest, 0);
    lab_poll(&lab, 3);
    CHECK_EQ(received_segments(), expected);
    lab_check_port(&lab, 0);
    lab_check_port(&lab, 1);
    lab_close(&lab);
}

TEST_EACH_RING(a_frame_behind_one_that_waited_between_its_segments_arrives_whole)
{
    leave_half_delivered();
    go_on_and_close(12);
}

TEST_EACH_RING(a_frame_behind_one_that_became_malformed_between_its_segments_arrives_whole)
{
    leave_half_delivered();
    struct lab_piece first = lab_piece(&lab, 0, 1, 0);
    uint8_t *header = pvd_ptr(lab.port[0].guest, first.addr, 12);
    CHECK_EQ(header[1], 1);
    header[1] = 77;
    lab_fill(&lab, 1, 20);
    go_on_and_close(1 + 8);
}

/* ---- a storm ---- */

TEST_EACH_RING(random_traffic_adds_up)
{
    struct lab_conf conf = lab_conf_default(4);
    uint64_t seed = 42;
    conf.guest.rx_buf_size = 600;
    conf.guest.queue_size = 64;
    lab_open(&lab, &conf);
    lab.port[3].conf.mtu = 500;
    lab_publish(&lab);
    for (int step = 0; step < 4000; step++) {
        uint32_t p = lab_random(&seed, 4);
        pvd_guest *guest = lab.port[p].guest;
        switch (lab_random(&seed, 4)) {
        case 0:
            lab_fill(&lab, p, lab_random(&seed, 20));
            break;
        case 1:
            while (pvd_rx(guest, 0, frame, sizeof frame, NULL) >= 0)
                ;
            break;
        case 2:
            lab_poll(&lab, 1);
            CHECK(pvd_tx_reap(guest, 0) >= 0);
            break;
        default: {
            uint32_t len = 14 + lab_random(&seed, 1500);
            uint32_t dst = lab_random(&seed, 6);
            lab_frame(frame, dst == 5 ? LAB_BROADCAST : LAB_MAC(dst), LAB_MAC(p), len, 0);
            int rc = pvd_tx(guest, 0, NULL, frame, len, NULL);
            CHECK(rc == 0 || rc == -ENOSPC);
            pvd_kick(guest, 1);
        }
        }
    }
    lab_poll(&lab, 20);
    uint64_t sent = 0, received = 0;
    for (uint32_t p = 0; p < 4; p++) {
        CHECK(pvd_tx_reap(lab.port[p].guest, 0) >= 0);
        while (pvd_rx(lab.port[p].guest, 0, frame, sizeof frame, NULL) >= 0)
            ;
        struct lab_counters c = lab_counters(&lab, p);
        sent += lab_driver(&lab, p, 1).frames;
        received += lab_driver(&lab, p, 0).frames;
        CHECK_EQ(lab_driver(&lab, p, 1).in_flight, 0);
        CHECK_EQ(c.value[PVS_C_rx_packets], lab_driver(&lab, p, 1).frames);
        CHECK_EQ(c.value[PVS_C_rx_bytes], lab_driver(&lab, p, 1).bytes);
        CHECK_EQ(c.value[PVS_C_tx_packets], lab_driver(&lab, p, 0).frames);
        CHECK_EQ(c.value[PVS_C_tx_bytes], lab_driver(&lab, p, 0).bytes);
    }
    CHECK(sent > 500);
    CHECK(received > 200);
    close_and_check();
}
