/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_forward.c - frames from guest to guest: every legal layout, every reason for a drop, and counters that add up
 * (port_vhost.h, decide.h, forward.c). One worker, driven step by step.
 */
#include <errno.h>
#include <string.h>

#include "lab.h"
#include "parse.h"

static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME + 100];

static uint64_t bit(int n)
{
    return 1ULL << n;
}

/* Every frame taken off a ring is received or malformed; what was received left, or was dropped for a reason. */
static void check_sums(void)
{
    uint64_t in = 0, out = 0;
    for (uint32_t i = 0; i < lab.conf.n_ports; i++) {
        struct lab_counters c = lab_counters(&lab, i);
        struct pvs_ring_status tx, rx;
        CHECK_EQ(pvs_ring_status(lab.port[i].port, 1, &tx), 0);
        CHECK_EQ(pvs_ring_status(lab.port[i].port, 0, &rx), 0);
        uint64_t sizes = 0;
        for (int b = PVS_C_rx_1_to_64_packets; b <= PVS_C_rx_1523_to_max_packets; b++)
            sizes += c.value[b];
        CHECK_EQ(sizes, c.value[PVS_C_rx_packets]);
        CHECK_EQ(tx.packets, c.value[PVS_C_rx_packets] + c.rx_drop[PVS_DROP_malformed]);
        CHECK_EQ(rx.packets, c.value[PVS_C_tx_packets]);
        CHECK_EQ(rx.bytes, c.value[PVS_C_tx_bytes]);
        CHECK_EQ(lab_driver(&lab, i, 1).errors, 0);
        CHECK_EQ(lab_driver(&lab, i, 0).errors, 0);
        CHECK_EQ(lab_driver(&lab, i, 1).out_of_order, 0);
        CHECK_EQ(lab_driver(&lab, i, 0).out_of_order, 0);
        in += c.value[PVS_C_rx_packets] - (lab_sum(c.rx_drop) - c.rx_drop[PVS_DROP_malformed]);
        out += c.value[PVS_C_tx_packets] + lab_sum(c.tx_drop);
    }
    CHECK(lab.conf.n_ports != 2 || in == out); /* with two ports there is one copy of each frame */
}

static void open_ports(uint32_t n)
{
    struct lab_conf conf = lab_conf_default(n);
    lab_open(&lab, &conf);
}

static void close_and_check(void)
{
    check_sums();
    lab_close(&lab);
}

/* ---- layouts ---- */

struct case_of_layout {
    const char *name;
    struct pvd_layout layout;
};

static const struct case_of_layout LAYOUTS[] = {
    {"one descriptor", {0}},
    {"header apart", {.n_cuts = 1, .cuts = {12}}},
    {"legacy header apart", {.n_cuts = 1, .cuts = {10}}},
    {"cve_2022_2132: header over four descriptors", {.n_cuts = 4, .cuts = {1, 5, 9, 12}}},
    {"header with a byte of the frame", {.n_cuts = 1, .cuts = {13}}},
    {"Ethernet header cut", {.n_cuts = 3, .cuts = {12, 19, 25}}},
    {"cuts about the head's end",
     {.n_cuts = 6, .cuts = {12 + 127, 12 + 128, 12 + 129, 12 + 130, 12 + 200, 12 + 201}}},
    {"indirect", {.n_cuts = 2, .cuts = {12, 40}, .flags = PVD_LAYOUT_INDIRECT}},
    {"one direct, then indirect",
     {.n_cuts = 3, .cuts = {12, 40, 50}, .flags = PVD_LAYOUT_INDIRECT, .direct = 1}},
    {"three direct, then indirect, shuffled",
     {.n_cuts = 5,
      .cuts = {4, 12, 20, 26, 60},
      .flags = PVD_LAYOUT_INDIRECT | PVD_LAYOUT_SHUFFLE,
      .direct = 3}},
    {"shuffled", {.n_cuts = 3, .cuts = {12, 26, 100}, .flags = PVD_LAYOUT_SHUFFLE}},
    {"across regions", {.flags = PVD_LAYOUT_STRADDLE}},
    {"across regions, cut", {.n_cuts = 2, .cuts = {6, 30}, .flags = PVD_LAYOUT_STRADDLE}},
    {"across regions, indirect",
     {.n_cuts = 2, .cuts = {12, 30}, .flags = PVD_LAYOUT_STRADDLE | PVD_LAYOUT_INDIRECT}},
};

enum { N_LAYOUTS = sizeof LAYOUTS / sizeof LAYOUTS[0] };

static const uint32_t LENGTHS[] = {14, 15, 60, 116, 117, 127, 128, 129, 255, 256, 1514, 1518, 2000, 9014, 65549};

/* Every length with this layout on both sides (receive buffers of `rx_buf_size` bytes). */
static void all_lengths(uint64_t features, uint32_t rx_buf_size, const struct case_of_layout *c, bool tx_side)
{
    struct lab_conf conf = lab_conf_default(2);
    bool mrg = (features & bit(PVD_F_MRG_RXBUF)) != 0;

    conf.guest.features = features;
    conf.guest.rx_buf_size = rx_buf_size;
    conf.guest.tx_buf_size = 66000;
    conf.guest.n_regions = 3;
    conf.guest.flags = PVD_CONF_ADJACENT;
    lab_open(&lab, &conf);
    uint32_t expected = 0;
    for (uint32_t i = 0; i < sizeof LENGTHS / sizeof LENGTHS[0]; i++) {
        uint32_t len = LENGTHS[i], header = pvd_hdr_len(lab.port[0].guest);
        if (!mrg && len + header > rx_buf_size)
            continue;
        CHECK(pvd_rx_fill(lab.port[1].guest, 0, 256, tx_side ? NULL : &c->layout) >= 0);
        if (lab_driver(&lab, 1, 0).in_flight * (uint64_t)rx_buf_size < len + header)
            continue;
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), len, i);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, len, tx_side ? &c->layout : NULL), 0);
        pvd_kick(lab.port[0].guest, 1);
        lab_poll(&lab, 2);
        CHECK_EQ(pvs_port_broken(lab.port[0].port), 0);
        CHECK_EQ(pvs_port_broken(lab.port[1].port), 0);
        lab_expect(&lab, 1, frame, len);
        CHECK_EQ(pvd_tx_reap(lab.port[0].guest, 0), 1);
        expected++;
    }
    CHECK(expected >= 9);
    CHECK_EQ(lab_counters(&lab, 1).value[PVS_C_tx_packets], expected);
    CHECK_EQ(lab_driver(&lab, 0, 1).in_flight, 0);
    close_and_check();
}

static void all_layouts(uint64_t features, uint32_t rx_buf_size)
{
    bool indirect = (features & bit(PVD_F_INDIRECT_DESC)) != 0;
    for (uint32_t i = 0; i < N_LAYOUTS; i++) {
        if (!indirect && (LAYOUTS[i].layout.flags & PVD_LAYOUT_INDIRECT) != 0)
            continue;
        all_lengths(features, rx_buf_size, &LAYOUTS[i], true);
        all_lengths(features, rx_buf_size, &LAYOUTS[i], false);
    }
}

static const uint64_t MODERN = 1ULL << PVD_F_VERSION_1 | 1ULL << PVD_F_ANY_LAYOUT | 1ULL << PVD_F_INDIRECT_DESC;

TEST(every_layout_with_mergeable_buffers)
{
    all_layouts(MODERN | bit(PVD_F_MRG_RXBUF) | bit(PVD_F_EVENT_IDX), 2048);
}

TEST(every_layout_with_small_mergeable_buffers)
{
    all_layouts(MODERN | bit(PVD_F_MRG_RXBUF), 300);
}

TEST(every_layout_without_mergeable_buffers)
{
    all_layouts(MODERN | bit(PVD_F_EVENT_IDX), 66000);
}

TEST(every_layout_with_the_legacy_header_of_10_bytes)
{
    all_layouts(bit(PVD_F_ANY_LAYOUT) | bit(PVD_F_INDIRECT_DESC), 66000);
}

TEST(every_layout_with_the_legacy_header_of_12_bytes)
{
    all_layouts(bit(PVD_F_ANY_LAYOUT) | bit(PVD_F_MRG_RXBUF), 1000);
}

TEST(num_buffers_says_how_many_were_merged)
{
    struct lab_conf conf = lab_conf_default(2);
    struct pvd_rx_info info;
    conf.guest.rx_buf_size = 100;
    lab_open(&lab, &conf);
    lab_fill(&lab, 1, 20);
    static const uint32_t length[] = {14, 88, 89, 188, 189, 1514};
    static const uint32_t buffers[] = {1, 1, 2, 2, 3, 16};
    for (int i = 0; i < 6; i++) {
        lab_fill(&lab, 1, 20);
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), length[i], 0);
        lab_send(&lab, 0, frame, length[i]);
        lab_poll(&lab, 2);
        CHECK_EQ(pvd_rx(lab.port[1].guest, 0, frame, sizeof frame, &info), length[i]);
        CHECK_EQ(info.num_buffers, buffers[i]);
    }
    close_and_check();
}

TEST(the_largest_frame_passes_and_one_byte_more_is_malformed)
{
    struct lab_conf conf = lab_conf_default(2);
    conf.guest.tx_buf_size = 70000;
    lab_open(&lab, &conf);
    lab_fill(&lab, 1, 100);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), PVS_MAX_FRAME, 1);
    lab_send(&lab, 0, frame, PVS_MAX_FRAME);
    lab_poll(&lab, 2);
    lab_expect(&lab, 1, frame, PVS_MAX_FRAME);
    lab_send(&lab, 0, frame, PVS_MAX_FRAME + 1);
    lab_poll(&lab, 2);
    lab_expect_nothing(&lab, 1);
    CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_malformed], 1);
    close_and_check();
}

TEST(chains_of_a_burst_may_fill_the_arena)
{
    /* 32 chains of 65 segments, each across two regions where it can be: more than one burst's segments */
    struct lab_conf conf = lab_conf_default(2);
    struct pvd_layout many = {.n_cuts = PVD_MAX_CUTS, .flags = PVD_LAYOUT_INDIRECT};
    for (uint32_t i = 0; i < PVD_MAX_CUTS; i++)
        many.cuts[i] = 1 + i * 8;
    lab_open(&lab, &conf);
    lab_fill(&lab, 1, 256);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 1000, 3);
    for (int i = 0; i < 250; i++)
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, 1000, &many), 0);
    pvd_kick(lab.port[0].guest, 1);
    lab_poll(&lab, 20);
    for (int i = 0; i < 250; i++)
        lab_expect(&lab, 1, frame, 1000);
    close_and_check();
}

/* ---- what is malformed ---- */

/* A raw chain of one descriptor of `len` bytes; must be given back with length 0 and counted as malformed. */
static void expect_malformed(uint32_t len, uint16_t flags, const uint8_t *bytes)
{
    uint64_t before = lab_counters(&lab, 0).rx_drop[PVS_DROP_malformed];
    uint64_t at = pvd_scratch_gpa(lab.port[0].guest);
    struct pvd_desc d = {.addr = at, .len = len, .flags = flags};
    uint32_t id, used;

    memset(pvd_ptr(lab.port[0].guest, at, 200), 0, 200);
    if (bytes != NULL)
        memcpy(pvd_ptr(lab.port[0].guest, at, len), bytes, len);
    CHECK_EQ(pvd_desc_set(lab.port[0].guest, 1, 7, &d), 0);
    CHECK_EQ(pvd_raw_post(lab.port[0].guest, 1, 7), 0);
    pvd_kick_force(lab.port[0].guest, 1);
    lab_poll(&lab, 2);
    CHECK_EQ(pvd_raw_take(lab.port[0].guest, 1, &id, &used), 0);
    CHECK_EQ(id, 7);
    CHECK_EQ(used, 0);
    CHECK_EQ(pvs_port_broken(lab.port[0].port), 0);
    CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_malformed], before + 1);
    lab_expect_nothing(&lab, 1);
}

TEST(transmit_of_a_header_and_nothing_more_is_malformed)
{
    open_ports(2);
    lab_fill(&lab, 1, 10);
    for (uint32_t len = 0; len < 12 + 14; len++)
        expect_malformed(len, 0, NULL);
    close_and_check();
}

TEST(transmit_from_writable_buffers_is_malformed)
{
    open_ports(2);
    lab_fill(&lab, 1, 10);
    expect_malformed(100, PVD_DESC_WRITE, NULL);
    close_and_check();
}

TEST(cve_2024_11614_offloads_that_were_not_offered_are_malformed)
{
    uint8_t bytes[100] = {0};
    open_ports(2);
    lab_fill(&lab, 1, 10);
    bytes[0] = 1; /* NEEDS_CSUM with csum_start past the packet */
    bytes[6] = bytes[7] = 0xff;
    expect_malformed(sizeof bytes, 0, bytes);
    bytes[0] = 0;
    for (int gso = 1; gso < 256; gso += 1) {
        bytes[1] = (uint8_t)gso;
        expect_malformed(sizeof bytes, 0, bytes);
    }
    close_and_check();
}

TEST(other_header_fields_are_hints_and_do_not_leave)
{
    uint8_t header[12];
    open_ports(2);
    lab_fill(&lab, 1, 10);
    memset(header, 0xff, sizeof header);
    header[0] = 0xfe; /* every flag but NEEDS_CSUM */
    header[1] = 0;
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 64, 0);
    CHECK_EQ(pvd_tx(lab.port[0].guest, 0, header, frame, 64, NULL), 0);
    pvd_kick(lab.port[0].guest, 1);
    lab_poll(&lab, 2);
    struct pvd_rx_info info;
    CHECK_EQ(pvd_rx(lab.port[1].guest, 0, frame, sizeof frame, &info), 64);
    CHECK_EQ(info.flags, 0);
    CHECK_EQ(info.hdr_len, 0);
    CHECK_EQ(info.gso_size, 0);
    CHECK_EQ(info.csum_start, 0);
    CHECK_EQ(info.csum_offset, 0);
    CHECK_EQ(info.num_buffers, 1);
    close_and_check();
}

/* ---- the receiver ---- */

TEST(receiver_without_buffers_drops_as_full)
{
    open_ports(2);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 100, 0);
    for (int i = 0; i < 5; i++) {
        lab_send(&lab, 0, frame, 100);
        lab_poll(&lab, 2);
    }
    CHECK_EQ(lab_counters(&lab, 1).tx_drop[PVS_DROP_guest_rx_full], 5);
    CHECK_EQ(lab_driver(&lab, 0, 1).in_flight, 1); /* sent all the same; the last was not reaped yet */
    lab_fill(&lab, 1, 1);
    lab_send(&lab, 0, frame, 100);
    lab_poll(&lab, 2);
    lab_expect(&lab, 1, frame, 100);
    close_and_check();
}

TEST(too_few_mergeable_buffers_rewind_and_leak_no_heads)
{
    struct lab_conf conf = lab_conf_default(2);
    conf.guest.rx_buf_size = 500;
    lab_open(&lab, &conf);
    for (uint32_t have = 0; have < 4; have++) {
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 1514, have);
        lab_send(&lab, 0, frame, 1514); /* needs four */
        lab_poll(&lab, 2);
        CHECK_EQ(lab_counters(&lab, 1).tx_drop[PVS_DROP_guest_rx_full], have + 1);
        CHECK_EQ(pvd_used_idx(lab.port[1].guest, 0), 0);
        lab_fill(&lab, 1, 1);
    }
    lab_send(&lab, 0, frame, 1514);
    lab_poll(&lab, 2);
    lab_expect(&lab, 1, frame, 1514);
    CHECK_EQ(lab_driver(&lab, 1, 0).in_flight, 0);
    close_and_check();
}

TEST(receive_buffer_too_small_without_merging_is_left_for_smaller_frames)
{
    struct lab_conf conf = lab_conf_default(2);
    conf.guest.features &= ~bit(PVD_F_MRG_RXBUF);
    conf.guest.rx_buf_size = 112;
    lab_open(&lab, &conf);
    lab_fill(&lab, 1, 1);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 101, 0);
    lab_send(&lab, 0, frame, 101);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, 1).tx_drop[PVS_DROP_guest_rx_too_small], 1);
    CHECK_EQ(pvs_port_broken(lab.port[1].port), 0);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 100, 0);
    lab_send(&lab, 0, frame, 100);
    lab_poll(&lab, 2);
    lab_expect(&lab, 1, frame, 100);
    CHECK_EQ(lab_driver(&lab, 1, 0).in_flight, 0);
    close_and_check();
}

TEST(a_guest_that_is_gone_is_link_down_for_unicast_and_no_party_to_floods)
{
    open_ports(3);
    lab_fill(&lab, 1, 10);
    lab_fill(&lab, 2, 10);
    lab_learn_all(&lab);
    lab_fill(&lab, 2, 10);
    lab_ring_stop(&lab, 1, 0);
    uint64_t dropped = lab_sum(lab_counters(&lab, 1).tx_drop);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, 1).tx_drop[PVS_DROP_link_down], 1);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), 60, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_sum(lab_counters(&lab, 1).tx_drop), dropped + 1);
    lab_expect(&lab, 2, frame, 60);
    lab_close(&lab);
}

TEST(a_disabled_receive_ring_receives_nothing)
{
    open_ports(2);
    lab_fill(&lab, 1, 10);
    lab_learn_all(&lab);
    CHECK_EQ(lab_wait(&lab, pvs_ring_enable(lab.port[1].port, 0, false)), 0);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    lab_expect_nothing(&lab, 1);
    CHECK_EQ(lab_counters(&lab, 1).tx_drop[PVS_DROP_link_down], 1);
    CHECK_EQ(lab_wait(&lab, pvs_ring_enable(lab.port[1].port, 0, true)), 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    lab_expect(&lab, 1, frame, 60);
    close_and_check();
}

TEST(a_disabled_transmit_ring_is_drained_and_counted)
{
    open_ports(2);
    lab_fill(&lab, 1, 100);
    CHECK_EQ(lab_wait(&lab, pvs_ring_enable(lab.port[0].port, 1, false)), 0);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 0);
    for (int i = 0; i < 40; i++)
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, 60, NULL), 0);
    pvd_kick(lab.port[0].guest, 1);
    lab_poll(&lab, 5);
    CHECK_EQ(pvd_tx_reap(lab.port[0].guest, 0), 40);
    CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_queue_disabled], 40);
    lab_expect_nothing(&lab, 1);
    CHECK_EQ(lab_wait(&lab, pvs_ring_enable(lab.port[0].port, 1, true)), 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    lab_expect(&lab, 1, frame, 60);
    close_and_check();
}

/* ---- where frames go ---- */

TEST(a_flood_reaches_everyone_but_its_sender)
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

TEST(known_unicast_goes_to_its_port_alone)
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

TEST(unknown_unicast_is_dropped_where_floods_of_it_are_off)
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

TEST(a_frame_to_an_address_on_its_own_port_is_dropped)
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

TEST(alone_on_a_bridge_there_is_no_destination)
{
    open_ports(1);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), 60, 1);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_no_destination], 1);
    close_and_check();
}

TEST(bridges_are_apart)
{
    open_ports(4);
    struct pvs_port_conf ports[4];
    struct pvs_bridge_conf bridges[2] = {lab.conf.bridge, lab.conf.bridge};
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

TEST(an_administratively_disabled_port_neither_sends_nor_receives)
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

TEST(mtu_counts_l3_bytes_without_tags)
{
    open_ports(3);
    lab.port[1].conf.mtu = 1500;
    lab_publish(&lab);
    for (uint32_t i = 1; i < 3; i++)
        lab_fill(&lab, i, 40);
    static const struct {
        uint32_t len, tags;
        bool fits;
    } cases[] = {{1514, 0, true}, {1515, 0, false}, {1518, 1, true}, {1519, 1, false}, {1522, 2, true},
                 {1523, 2, false}, {1526, 3, false}, {14, 0, true}};
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

TEST(link_local_frames_stay_unless_forward_bpdu)
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

/* ---- learning ---- */

static uint32_t port_of(uint64_t mac)
{
    uint8_t bytes[6];
    uint32_t ref = 0;
    pvs_mac_store(bytes, mac);
    return pvs_fdb_lookup(lab.fdb, bytes, 0, lab.now_ns, &ref) == 0 ? ref : 0;
}

static int next_event(struct pvs_event *e)
{
    return pvs_event_next(lab.sw, e);
}

TEST(sources_are_learned_moved_and_reported)
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

TEST(group_and_zero_sources_are_not_learned)
{
    struct pvs_event e;
    open_ports(2);
    static const uint64_t src[] = {0, LAB_BROADCAST, 0x01005e000001ULL, 0x0180c2000000ULL};
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

TEST(a_static_address_does_not_move)
{
    uint8_t mac[6];
    open_ports(3);
    lab_fill(&lab, 1, 10);
    lab_fill(&lab, 2, 10);
    pvs_mac_store(mac, LAB_MAC(9));
    CHECK_EQ(pvs_fdb_set_static(lab.fdb, mac, 0, pvs_port_ref(lab.port[1].port)), 0);
    lab_frame(frame, LAB_MAC(40), LAB_MAC(9), 60, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(port_of(LAB_MAC(9)), pvs_port_ref(lab.port[1].port));
    lab_close(&lab);
}

TEST(an_address_of_a_port_that_was_replaced_is_unknown)
{
    uint8_t mac[6];
    open_ports(3);
    for (uint32_t i = 0; i < 3; i++)
        lab_fill(&lab, i, 10);
    pvs_mac_store(mac, LAB_MAC(9));
    uint32_t older = pvs_port_ref(lab.port[1].port) ^ 0x70000; /* another generation of the same index */
    CHECK_EQ(pvs_fdb_set_static(lab.fdb, mac, 0, older), 0);
    lab_frame(frame, LAB_MAC(9), LAB_MAC(0), 60, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    lab_expect(&lab, 1, frame, 60); /* flooded */
    lab_expect(&lab, 2, frame, 60);
    lab_close(&lab);
}

TEST(learning_has_a_budget_per_port_and_second)
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

/* ---- a storm ---- */

TEST(random_traffic_adds_up)
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
