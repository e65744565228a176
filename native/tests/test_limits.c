/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_limits.c - limits while other things happen: they change, ports go and rings stop while frames wait for a rate, floods,
 * GSO frames, several workers; and how many addresses a port may have (policy.h, shaper.c, security.h). Step by step.
 */
#include <errno.h>
#include <string.h>

#include "lab.h"
#include "offload_lab.h"
#include "policy.h"

enum { LEN = 1000, OTHER = 0, FROM = 1, TO = 2, PORTS = 4 };

#define SECOND UINT64_C(1000000000)

static struct lab lab;
static uint8_t got[PVS_MAX_FRAME];

static void
open_workers(uint32_t workers, uint64_t features)
{
    struct lab_conf conf = lab_conf_default(PORTS);
    conf.workers = workers;
    conf.guest.features |= features;
    conf.guest.tx_buf_size = 40000;
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < PORTS; i++)
        lab_fill(&lab, i, 100);
    lab_learn_all(&lab);
    for (uint32_t i = 0; i < PORTS; i++)
        lab_fill(&lab, i, 200);
}

static void
send(uint32_t from, uint64_t dst, uint32_t salt)
{
    static uint8_t frame[LEN];
    lab_frame(frame, dst, LAB_MAC(from), LEN, salt);
    lab_send(&lab, from, frame, LEN);
}

static void
expect(uint32_t at, uint64_t dst, uint32_t from, uint32_t salt)
{
    static uint8_t frame[LEN];
    lab_frame(frame, dst, LAB_MAC(from), LEN, salt);
    lab_expect(&lab, at, frame, LEN);
}

static uint32_t
received(uint32_t port)
{
    uint32_t n = 0;
    while (pvd_rx(lab.port[port].guest, 0, got, sizeof got, NULL) >= 0)
        n++;
    lab_fill(&lab, port, 200);
    return n;
}

static uint32_t
send_and_count(uint64_t dst, uint32_t n)
{
    for (uint32_t salt = 0; salt < n; salt++)
        send(FROM, dst, salt);
    lab_poll(&lab, 2);
    return received(TO);
}

/* ---- limits that change ---- */

/* At a thousandth of the rate a bucket takes a thousand times as long to fill; a new limit doesn't wait for it. */
TEST(a_new_limit_does_not_pay_for_the_old_one)
{
    static const uint64_t dst[] = { LAB_BROADCAST, 0x01005e000001ULL, LAB_MAC(77), LAB_MAC(TO) };

    for (uint32_t which = 0; which < 5; which++) {
        open_workers(1, 0);
        struct pvs_port_conf *port = &lab.port[which < 4 ? FROM : TO].conf;
        struct pvs_limit *limit = which < 3 ? &port->storm[which] : which == 3 ? &port->policing : &port->shaping;
        uint32_t unit = which < 3 ? 1 : LEN;
        *limit = (struct pvs_limit){ .per_second = 1, .depth = 50 * unit };
        lab_publish(&lab);
        CHECK_EQ(send_and_count(dst[which < 4 ? which : 3], 60), 50);
        port->mtu = 1500; /* something else changes: what was used stays used */
        lab_publish(&lab);
        CHECK_EQ(send_and_count(dst[which < 4 ? which : 3], 60), 0);
        limit->per_second = 1000 * unit;
        lab_publish(&lab);
        CHECK_EQ(send_and_count(dst[which < 4 ? which : 3], 50), 50);
        *limit = (struct pvs_limit){ 0 };
        lab_publish(&lab);
        CHECK_EQ(send_and_count(dst[which < 4 ? which : 3], 60), 60);
        lab_close(&lab);
    }
}

/* ---- frames that wait ---- */

/* One frame goes through, the others wait: one in each ms. */
static void
shape(uint32_t port)
{
    lab.port[port].conf.shaping = (struct pvs_limit){ .per_second = 1000000, .depth = LEN };
    lab_publish(&lab);
}

static void
step_ms(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        lab.now_ns += SECOND / 1000 - LAB_STEP_NS;
        lab_poll(&lab, 1);
    }
}

TEST_EACH_RING(a_port_that_is_disabled_gets_nothing_that_waited)
{
    open_workers(1, 0);
    shape(TO);
    for (uint32_t salt = 0; salt < 10; salt++)
        send(FROM, LAB_MAC(TO), salt);
    lab_poll(&lab, 1);
    lab.port[TO].conf.enabled = false;
    lab_publish(&lab);
    step_ms(20);
    uint32_t n = received(TO);
    CHECK(n >= 1 && n <= 2);
    CHECK_EQ(lab_counters(&lab, TO).tx_drop[PVS_DROP_link_down], 10 - n);
    lab_close(&lab);
}

TEST_EACH_RING(frames_that_wait_for_a_stopped_ring_are_dropped)
{
    open_workers(1, 0);
    shape(TO);
    for (uint32_t salt = 0; salt < 20; salt++)
        send(FROM, LAB_MAC(TO), salt);
    lab_poll(&lab, 1);
    expect(TO, LAB_MAC(TO), FROM, 0);
    lab_detach(&lab, TO); /* its memory goes, too */
    step_ms(8);
    CHECK(lab_counters(&lab, TO).tx_drop[PVS_DROP_link_down] >= 6);
    lab_reset(&lab, TO);
    lab_attach(&lab, TO);
    lab_fill(&lab, TO, 100);
    step_ms(30);
    uint32_t n = received(TO);
    CHECK(n >= 9);
    CHECK_EQ(lab_counters(&lab, TO).tx_drop[PVS_DROP_link_down] + n, 19);
    send(FROM, LAB_MAC(TO), 99);
    lab_poll(&lab, 1);
    expect(TO, LAB_MAC(TO), FROM, 99);
    lab_close(&lab);
}

/* The port is gone, and another has its place. */
static void
replace(uint32_t port)
{
    lab_detach(&lab, port);
    struct pvs_port_conf old = lab.port[port].conf, three[PORTS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < PORTS; i++)
        if (i != port)
            three[n++] = lab.port[i].conf;
    CHECK_EQ(lab_wait(&lab, pvs_publish(lab.sw, three, n, &lab.conf.bridge, 1)), 0);
    CHECK_EQ(pvs_port_destroy(lab.port[port].port), 0);
    CHECK_EQ(pvs_port_create(lab.sw, 1, &lab.port[port].port), 0);
    lab.port[port].conf = old;
    lab.port[port].conf.port = lab.port[port].port;
    lab_publish(&lab);
    lab_reset(&lab, port);
    lab_attach(&lab, port);
    lab_fill(&lab, port, 100);
}

/* It gets nothing that was meant for the first; nor is that kept, however often this happens. */
TEST_EACH_RING(a_port_in_the_place_of_one_that_is_gone_gets_its_own)
{
    enum { ROUNDS = 80, WAITING = 19 };
    _Static_assert(ROUNDS * WAITING > 1024, "more blocks than there may be for a port");

    open_workers(1, 0);
    shape(TO);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t salt = 0; salt <= WAITING; salt++) /* its addresses were another's: they are flooded */
            send(FROM, LAB_MAC(TO), round * 256 + salt);
        lab_poll(&lab, 1);
        expect(TO, LAB_MAC(TO), FROM, round * 256);
        CHECK_EQ(lab_counters(&lab, TO).tx_drop[PVS_DROP_shaped], 0);
        replace(TO);
        lab_fill(&lab, OTHER, 100);
        received(OTHER);
    }
    for (uint32_t salt = 50; salt < 53; salt++)
        send(FROM, LAB_MAC(TO), salt);
    lab_poll(&lab, 1);
    step_ms(60);
    for (uint32_t salt = 50; salt < 53; salt++)
        expect(TO, LAB_MAC(TO), FROM, salt);
    lab_expect_nothing(&lab, TO);
    lab_close(&lab);
}

TEST(a_switch_may_end_while_frames_wait)
{
    open_workers(2, 0);
    shape(TO);
    for (uint32_t salt = 0; salt < 50; salt++) {
        send(FROM, LAB_MAC(TO), salt);
        send(OTHER, LAB_MAC(TO), salt);
    }
    lab_poll(&lab, 1);
    CHECK_EQ(received(TO), 1);
    lab_close(&lab);
}

/* What waits goes on its way when the limit is gone. */
TEST_EACH_RING(shaping_that_is_taken_away_leaves_nothing_behind)
{
    open_workers(1, 0);
    shape(TO);
    for (uint32_t salt = 0; salt < 10; salt++)
        send(FROM, LAB_MAC(TO), salt);
    lab_poll(&lab, 1);
    lab.port[TO].conf.shaping = (struct pvs_limit){ 0 };
    lab_publish(&lab);
    step_ms(12);
    for (uint32_t salt = 0; salt < 10; salt++)
        expect(TO, LAB_MAC(TO), FROM, salt);
    lab_close(&lab);
}

/* ---- floods, GSO frames, two workers ---- */

TEST_EACH_RING(a_flood_waits_only_where_it_has_to)
{
    open_workers(1, 0);
    shape(TO);
    for (uint32_t salt = 0; salt < 20; salt++)
        send(FROM, LAB_BROADCAST, salt);
    lab_poll(&lab, 1);
    for (uint32_t salt = 0; salt < 20; salt++) {
        expect(0, LAB_BROADCAST, FROM, salt);
        expect(3, LAB_BROADCAST, FROM, salt);
    }
    expect(TO, LAB_BROADCAST, FROM, 0);
    lab_expect_nothing(&lab, TO);
    step_ms(25);
    for (uint32_t salt = 1; salt < 20; salt++)
        expect(TO, LAB_BROADCAST, FROM, salt);
    lab_close(&lab);
}

/* The longest wait is 100 ms: what would have to wait longer is dropped, and what has the time isn't. */
TEST_EACH_RING(nothing_waits_longer_than_100_ms)
{
    open_workers(1, 0);
    lab.port[TO].conf.shaping = (struct pvs_limit){ .per_second = 100 * LEN, .depth = LEN };
    lab_publish(&lab);
    for (uint32_t salt = 0; salt < 20; salt++)
        send(FROM, LAB_MAC(TO), salt);
    lab_poll(&lab, 1);
    CHECK_EQ(lab_counters(&lab, TO).tx_drop[PVS_DROP_shaped], 20 - 11);
    step_ms(99);
    CHECK_EQ(received(TO), 10);
    step_ms(2);
    CHECK_EQ(received(TO), 1);
    lab_close(&lab);
}

/* A queue that has become empty fills again, and what comes when a frame is due doesn't overtake it. */
TEST_EACH_RING(frames_that_wait_are_not_overtaken)
{
    enum {
        ROUNDS = 600
    }; /* two wait in each: if they weren't given back, there would be no more blocks for the port */
    uint8_t small[60];

    open_workers(1, 0);
    shape(TO);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        lab_fill(&lab, TO, 3);
        send(FROM, LAB_MAC(TO), 1);
        send(FROM, LAB_MAC(TO), 2);
        lab_poll(&lab, 1);
        lab.now_ns += 12 * LAB_STEP_NS;
        lab_frame(small, LAB_MAC(TO), LAB_MAC(FROM), sizeof small, 3);
        lab_send(&lab, FROM, small, sizeof small);
        lab_poll(&lab, 1);
        expect(TO, LAB_MAC(TO), FROM, 1);
        expect(TO, LAB_MAC(TO), FROM, 2);
        lab_expect(&lab, TO, small, sizeof small);
        CHECK_EQ(lab_counters(&lab, TO).tx_drop[PVS_DROP_shaped], 0);
        step_ms(10);
    }
    lab_close(&lab);
}

/* A frame that is to be cut waits as one, of its whole length, and is cut when it leaves. */
static void
wait_in_one_piece(uint64_t features, bool taken)
{
    static const struct recipe tcp = { .payload = 20000, .seq = 77, .flags = ACK };
    static struct cooked big, segment;
    enum { MSS = 1400, N = 15 };

    open_workers(1, 1U << VIRTIO_NET_F_CSUM | 1U << VIRTIO_NET_F_HOST_TSO4 | features);
    lab.port[TO].conf.shaping = (struct pvs_limit){ .per_second = 1000000, .depth = 21000 };
    lab_publish(&lab);
    cook(&tcp, PSEUDO, &big);
    struct virtio_net_hdr header = header_for(&tcp, &big, MSS);
    uint8_t hdr[16] = { 0 };
    memcpy(hdr, &header, sizeof header);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQ(pvd_tx(lab.port[FROM].guest, 0, hdr, big.bytes, big.len, NULL), 0);
        CHECK(pvd_kick(lab.port[FROM].guest, 1) >= 0);
    }
    lab_poll(&lab, 2);
    for (uint32_t i = 0; i < 3; i++) {
        for (uint32_t k = 0; k < (taken ? 1 : N); k++) {
            struct recipe r = segment_recipe(&tcp, MSS, k, N);
            struct pvd_rx_info info;
            cook(taken ? &tcp : &r, taken ? PSEUDO : FINISHED, &segment);
            CHECK_EQ(pvd_rx(lab.port[TO].guest, 0, got, sizeof got, &info), segment.len);
            CHECK(memcmp(got, segment.bytes, segment.len) == 0);
            CHECK_EQ(info.gso_type, taken ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_NONE);
        }
        lab_expect_nothing(&lab, TO);
        step_ms(i == 0 ? 21 : 20);
    }
    lab_close(&lab);
}

TEST_EACH_RING(a_gso_frame_waits_in_one_piece)
{
    wait_in_one_piece(0, false);
    wait_in_one_piece(1U << VIRTIO_NET_F_GUEST_CSUM | 1U << VIRTIO_NET_F_GUEST_TSO4, true);
}

/* A storm is counted in the frames that it is on a wire. */
TEST(a_gso_frame_is_many_in_a_storm)
{
    static const struct recipe tcp = { .payload = 14000, .flags = ACK };
    static struct cooked big;

    open_workers(1, 1U << VIRTIO_NET_F_CSUM | 1U << VIRTIO_NET_F_HOST_TSO4);
    lab.port[FROM].conf.storm[PVS_STORM_UNKNOWN] = (struct pvs_limit){ .per_second = 1, .depth = 25 };
    lab_publish(&lab);
    cook(&tcp, PSEUDO, &big);
    big.bytes[5] = 77;
    struct virtio_net_hdr header = header_for(&tcp, &big, 1400);
    uint8_t hdr[16] = { 0 };
    memcpy(hdr, &header, sizeof header);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQ(pvd_tx(lab.port[FROM].guest, 0, hdr, big.bytes, big.len, NULL), 0);
        CHECK(pvd_kick(lab.port[FROM].guest, 1) >= 0);
    }
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, FROM).rx_drop[PVS_DROP_storm_control], 1);
    CHECK_EQ(received(TO), 20);
    lab_close(&lab);
}

/* Two workers share a port's rate, each with frames of its own that wait. */
TEST_EACH_RING(two_workers_share_a_rate)
{
    uint32_t n = 0, next[PORTS] = { 0 };

    open_workers(2, 0);
    shape(TO);
    for (uint32_t ms = 0; ms < 500; ms++) {
        for (uint32_t k = 0; k < 4; k++)
            for (uint32_t from = 0; from <= FROM; from++)
                send(from, LAB_MAC(TO), 4 * ms + k);
        step_ms(1);
        while (pvd_rx(lab.port[TO].guest, 0, got, sizeof got, NULL) == LEN) {
            uint32_t from = got[11], at = next[from];
            static uint8_t wanted[LEN];
            do
                lab_frame(wanted, LAB_MAC(TO), LAB_MAC(from), LEN, at++);
            while (memcmp(got, wanted, LEN) != 0 && at < 2000);
            CHECK(at < 2000 || ms > 490); /* in order, of each */
            next[from] = at;
            n++;
        }
        lab_fill(&lab, TO, 20);
    }
    CHECK(n >= 495 && n <= 502);
    CHECK(lab_counters(&lab, TO).tx_drop[PVS_DROP_shaped] >= 2 * 4 * 500 - 502 - 210);
    lab_close(&lab);
}

/* ---- how many addresses ---- */

static void
hello(uint32_t salt)
{
    uint8_t frame[60];
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0x100 + salt), sizeof frame, salt);
    lab_send(&lab, FROM, frame, sizeof frame);
    lab_poll(&lab, 2);
}

TEST_EACH_RING(a_port_has_as_many_addresses_as_it_may)
{
    open_workers(1, 0);
    lab.port[FROM].conf.secure = true;
    lab.port[FROM].conf.max_macs = 3; /* one of them was learned before */
    lab_publish(&lab);
    for (uint32_t salt = 0; salt < 5; salt++)
        hello(salt);
    CHECK_EQ(received(TO), 2);
    CHECK_EQ(lab_counters(&lab, FROM).rx_drop[PVS_DROP_port_security], 3);
    lab.now_ns += 400 * SECOND; /* they have grown old, and nobody has swept yet */
    hello(1);
    hello(0);
    CHECK_EQ(received(TO), 2);
    hello(4);
    CHECK_EQ(received(TO), 0);
    lab_close(&lab);
}

/* Who may not send is not heard by control, either. */
TEST_EACH_RING(a_port_that_may_not_send_is_not_punted)
{
    struct pvs_punt punt;

    open_workers(1, 0);
    lab.conf.bridge.punt_bpdu = lab.conf.bridge.forward_bpdu = true;
    lab.port[FROM].conf.secure = true;
    lab.port[FROM].conf.max_macs = 1;
    lab_publish(&lab);
    for (uint32_t mac = FROM; mac <= 0x100 + FROM; mac += 0x100) {
        uint8_t frame[60];
        lab_frame(frame, 0x0180c200000eULL, LAB_MAC(mac), sizeof frame, mac);
        lab_send(&lab, FROM, frame, sizeof frame);
        lab_poll(&lab, 2);
        CHECK_EQ(received(TO), mac == FROM);
        CHECK_EQ(pvs_punt_next(lab.sw, &punt, got, sizeof got), mac == FROM ? sizeof frame : 0);
    }
    lab_close(&lab);
}

/* A station that is somewhere for good can't be on a port with rules; elsewhere it is only not learned. */
TEST_EACH_RING(nobody_takes_a_sticky_address_over)
{
    open_workers(1, 0);
    lab.port[0].conf.secure = lab.port[0].conf.sticky = lab.port[FROM].conf.secure = true;
    lab_publish(&lab);
    uint8_t frame[60];
    for (uint32_t from = FROM; from <= 3; from += 2) {
        lab_frame(frame, LAB_MAC(TO), LAB_MAC(0), sizeof frame, from);
        lab_send(&lab, from, frame, sizeof frame);
        lab_poll(&lab, 2);
        CHECK_EQ(received(TO), from == 3);
        CHECK_EQ(lab_counters(&lab, from).rx_drop[PVS_DROP_port_security], from == FROM);
    }
    send(TO, LAB_MAC(0), 5);
    lab_poll(&lab, 2);
    expect(0, LAB_MAC(0), TO, 5);
    lab.port[0].conf.sticky = false; /* it may go now */
    lab_publish(&lab);
    lab_send(&lab, 3, frame, sizeof frame);
    lab_poll(&lab, 2);
    send(TO, LAB_MAC(0), 6);
    lab_poll(&lab, 2);
    expect(3, LAB_MAC(0), TO, 6);
    lab_expect_nothing(&lab, 0);
    lab_close(&lab);
}
