/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_port_vhost.c - every legal layout of a frame in rings, what is malformed, and receivers without room or link
 * (port_vhost.h). One worker, driven step by step.
 */
#include <string.h>

#include "lab.h"

static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME + 100];

static uint64_t
bit(int n)
{
    return 1ULL << n;
}

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

/* ---- layouts ---- */

struct case_of_layout {
    const char *name;
    struct pvd_layout layout;
};

static const struct case_of_layout LAYOUTS[] = {
    { "one descriptor", { 0 } },
    { "header apart", { .n_cuts = 1, .cuts = { 12 } } },
    { "legacy header apart", { .n_cuts = 1, .cuts = { 10 } } },
    { "cve_2022_2132: header over four descriptors", { .n_cuts = 4, .cuts = { 1, 5, 9, 12 } } },
    { "header with a byte of the frame", { .n_cuts = 1, .cuts = { 13 } } },
    { "Ethernet header cut", { .n_cuts = 3, .cuts = { 12, 19, 25 } } },
    { "cuts about the head's end",
      { .n_cuts = 6, .cuts = { 12 + 127, 12 + 128, 12 + 129, 12 + 130, 12 + 200, 12 + 201 } } },
    { "indirect", { .n_cuts = 2, .cuts = { 12, 40 }, .flags = PVD_LAYOUT_INDIRECT } },
    { "one direct, then indirect", { .n_cuts = 3, .cuts = { 12, 40, 50 }, .flags = PVD_LAYOUT_INDIRECT, .direct = 1 } },
    { "three direct, then indirect, shuffled",
      { .n_cuts = 5, .cuts = { 4, 12, 20, 26, 60 }, .flags = PVD_LAYOUT_INDIRECT | PVD_LAYOUT_SHUFFLE, .direct = 3 } },
    { "shuffled", { .n_cuts = 3, .cuts = { 12, 26, 100 }, .flags = PVD_LAYOUT_SHUFFLE } },
    { "across regions", { .flags = PVD_LAYOUT_STRADDLE } },
    { "across regions, cut", { .n_cuts = 2, .cuts = { 6, 30 }, .flags = PVD_LAYOUT_STRADDLE } },
    { "across regions, indirect",
      { .n_cuts = 2, .cuts = { 12, 30 }, .flags = PVD_LAYOUT_STRADDLE | PVD_LAYOUT_INDIRECT } },
};

enum { N_LAYOUTS = sizeof LAYOUTS / sizeof LAYOUTS[0] };

/* Which of them a driver may use (virtio 1.2, 2.7.5 and 2.8.5). */
static bool
allowed(const struct pvd_layout *layout, uint64_t features)
{
    bool packed = (features & bit(PVD_F_RING_PACKED)) != 0, in_order = (features & bit(PVD_F_IN_ORDER)) != 0;

    if ((layout->flags & PVD_LAYOUT_INDIRECT) != 0 && (features & bit(PVD_F_INDIRECT_DESC)) == 0)
        return false;
    return packed ? layout->direct == 0 : !in_order || (layout->flags & PVD_LAYOUT_SHUFFLE) == 0;
}

static const uint32_t LENGTHS[] = { 14, 15, 60, 116, 117, 127, 128, 129, 255, 256, 1514, 1518, 2000, 9014, 65549 };

/* Every length with this layout on both sides (receive buffers of `rx_buf_size` bytes). */
static void
all_lengths(uint64_t features, uint32_t rx_buf_size, const struct case_of_layout *c, bool tx_side)
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

static void
all_layouts(uint64_t features, uint32_t rx_buf_size)
{
    features |= lab_ring_features();
    for (uint32_t i = 0; i < N_LAYOUTS; i++) {
        if (!allowed(&LAYOUTS[i].layout, features))
            continue;
        all_lengths(features, rx_buf_size, &LAYOUTS[i], true);
        all_lengths(features, rx_buf_size, &LAYOUTS[i], false);
    }
}

static const uint64_t MODERN = 1ULL << PVD_F_VERSION_1 | 1ULL << PVD_F_ANY_LAYOUT | 1ULL << PVD_F_INDIRECT_DESC;

TEST_EACH_RING(every_layout_with_mergeable_buffers)
{
    all_layouts(MODERN | bit(PVD_F_MRG_RXBUF) | bit(PVD_F_EVENT_IDX), 2048);
}

TEST_EACH_RING(every_layout_with_small_mergeable_buffers)
{
    all_layouts(MODERN | bit(PVD_F_MRG_RXBUF), 300);
}

TEST_EACH_RING(every_layout_without_mergeable_buffers)
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

TEST_EACH_RING(num_buffers_says_how_many_were_merged)
{
    struct lab_conf conf = lab_conf_default(2);
    struct pvd_rx_info info;
    conf.guest.rx_buf_size = 100;
    lab_open(&lab, &conf);
    lab_fill(&lab, 1, 20);
    static const uint32_t length[] = { 14, 88, 89, 188, 189, 1514 };
    static const uint32_t buffers[] = { 1, 1, 2, 2, 3, 16 };
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

TEST_EACH_RING(the_largest_frame_passes_and_one_byte_more_is_malformed)
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

TEST_EACH_RING(chains_of_a_burst_may_fill_the_arena)
{
    /* 32 chains of 65 segments, each across two regions where it can be: more than one burst's segments */
    struct lab_conf conf = lab_conf_default(2);
    struct pvd_layout many = { .n_cuts = PVD_MAX_CUTS, .flags = PVD_LAYOUT_INDIRECT };
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
static void
expect_malformed(uint32_t len, uint16_t flags, const uint8_t *bytes)
{
    uint64_t before = lab_counters(&lab, 0).rx_drop[PVS_DROP_malformed];
    uint64_t at = pvd_scratch_gpa(lab.port[0].guest);
    struct lab_piece piece = { at, len, flags };
    uint32_t id, used;

    memset(pvd_ptr(lab.port[0].guest, at, 200), 0, 200);
    if (bytes != NULL)
        memcpy(pvd_ptr(lab.port[0].guest, at, len), bytes, len);
    lab_post(&lab, 0, 1, 7, &piece, 1);
    pvd_kick_force(lab.port[0].guest, 1);
    lab_poll(&lab, 2);
    CHECK_EQ(pvd_raw_take(lab.port[0].guest, 1, &id, &used), 0);
    CHECK_EQ(id, 7);
    CHECK_EQ(used, 0);
    CHECK_EQ(pvs_port_broken(lab.port[0].port), 0);
    CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_malformed], before + 1);
    lab_expect_nothing(&lab, 1);
}

TEST_EACH_RING(transmit_of_a_header_and_nothing_more_is_malformed)
{
    open_ports(2);
    lab_fill(&lab, 1, 10);
    for (uint32_t len = 0; len < 12 + 14; len++)
        expect_malformed(len, 0, NULL);
    close_and_check();
}

TEST_EACH_RING(transmit_from_writable_buffers_is_malformed)
{
    open_ports(2);
    lab_fill(&lab, 1, 10);
    expect_malformed(100, PVD_DESC_WRITE, NULL);
    close_and_check();
}

TEST_EACH_RING(cve_2024_11614_offloads_that_were_not_offered_are_malformed)
{
    uint8_t bytes[100] = { 0 };
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

TEST_EACH_RING(other_header_fields_are_hints_and_do_not_leave)
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

/* ---- requests that are passed on ---- */

enum { F_CSUM = 0, F_HOST_TSO4 = 11, TCP_LEN = 4054 };

/* A TCP frame to be cut, every field of whose request is different; what of it arrives where `rx` receives. */
static void
pass_on_request(uint64_t features, uint32_t rx_buf_size, const struct pvd_layout *rx, uint16_t num_buffers)
{
    static const uint8_t header[12] = { 1, 1 /* TCPv4 */, 7, 0, 0xe9, 3 /* 1001 */, 34, 0, 16, 0 };
    static uint8_t received[TCP_LEN];
    struct lab_conf conf = lab_conf_default(2);
    struct pvd_rx_info info;

    conf.guest.features =
        features | lab_ring_features() | bit(F_CSUM) | bit(F_HOST_TSO4) | bit(PVD_F_GUEST_CSUM) | bit(PVD_F_GUEST_TSO4);
    conf.guest.rx_buf_size = rx_buf_size;
    conf.guest.tx_buf_size = 8192;
    lab_open(&lab, &conf);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), TCP_LEN, 9);
    lab_udp(frame, LAB_MAC(1), LAB_MAC(0), 1, TCP_LEN);
    frame[23] = 6;
    frame[46] = 0x50; /* a TCP header of 20 bytes */
    frame[47] = 0x10;
    CHECK(pvd_rx_fill(lab.port[1].guest, 0, 32, rx) > 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, i == 1 ? NULL : header, frame, TCP_LEN, NULL), 0);
    pvd_kick(lab.port[0].guest, 1);
    lab_poll(&lab, 2);
    for (int i = 0; i < 3; i++) {
        bool asked = i != 1;
        CHECK_EQ(pvd_rx(lab.port[1].guest, 0, received, sizeof received, &info), TCP_LEN);
        CHECK(memcmp(received, frame, TCP_LEN) == 0);
        CHECK_EQ(info.flags, asked);
        CHECK_EQ(info.gso_type, asked);
        CHECK_EQ(info.hdr_len, asked ? 54 : 0);
        CHECK_EQ(info.gso_size, asked ? 1001 : 0);
        CHECK_EQ(info.csum_start, asked ? 34 : 0);
        CHECK_EQ(info.csum_offset, asked ? 16 : 0);
        CHECK_EQ(info.num_buffers, num_buffers);
    }
    close_and_check();
}

static const struct pvd_layout HEADER_APART = { .n_cuts = 1, .cuts = { 12 } },
                               BEHIND_HEAD = { .n_cuts = 1, .cuts = { 500 } };

TEST_EACH_RING(a_request_is_passed_on_with_the_header_of_12_bytes)
{
    pass_on_request(MODERN, 8192, NULL, 1);
    pass_on_request(MODERN, 8192, &HEADER_APART, 1);
    pass_on_request(MODERN, 8192, &BEHIND_HEAD, 1);
    pass_on_request(MODERN | bit(PVD_F_MRG_RXBUF), 8192, NULL, 1);
    pass_on_request(MODERN | bit(PVD_F_MRG_RXBUF), 2048, NULL, 2);
    pass_on_request(MODERN | bit(PVD_F_MRG_RXBUF), 1500, &BEHIND_HEAD, 3);
}

TEST(a_request_is_passed_on_with_the_header_of_10_bytes)
{
    static const struct pvd_layout legacy_apart = { .n_cuts = 1, .cuts = { 10 } };
    pass_on_request(bit(PVD_F_ANY_LAYOUT), 8192, NULL, 1);
    pass_on_request(bit(PVD_F_ANY_LAYOUT), 8192, &legacy_apart, 1);
    pass_on_request(bit(PVD_F_ANY_LAYOUT), 8192, &BEHIND_HEAD, 1);
}

/* ---- the receiver ---- */

TEST_EACH_RING(receiver_without_buffers_drops_as_full)
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

TEST_EACH_RING(too_few_mergeable_buffers_rewind_and_leak_no_heads)
{
    struct lab_conf conf = lab_conf_default(2);
    conf.guest.rx_buf_size = 500;
    lab_open(&lab, &conf);
    for (uint32_t have = 0; have < 4; have++) {
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 1514, have);
        lab_send(&lab, 0, frame, 1514); /* needs four */
        lab_poll(&lab, 2);
        CHECK_EQ(lab_counters(&lab, 1).tx_drop[PVS_DROP_guest_rx_full], have + 1);
        CHECK_EQ(lab_used(&lab, 1, 0), lab_base(&lab, 0));
        lab_fill(&lab, 1, 1);
    }
    lab_send(&lab, 0, frame, 1514);
    lab_poll(&lab, 2);
    lab_expect(&lab, 1, frame, 1514);
    CHECK_EQ(lab_driver(&lab, 1, 0).in_flight, 0);
    close_and_check();
}

TEST_EACH_RING(receive_buffer_too_small_without_merging_is_left_for_smaller_frames)
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

TEST_EACH_RING(a_guest_that_is_gone_is_link_down_for_unicast_and_no_party_to_floods)
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

TEST_EACH_RING(a_disabled_receive_ring_receives_nothing)
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

TEST_EACH_RING(a_disabled_transmit_ring_is_drained_and_counted)
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
