/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_capture.c - captures: frames as they come by a port and as they leave by it, with what became of them. Step by step.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "uplink_lab.h"

enum { SENDER = 0, RECEIVER, OTHER, PORTS, LEN = 200, RING = 1 << 20 };

static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME], got[PVS_MAX_FRAME];
static struct pvs_captured seen;
static pvs_capture *capture;

static pvs_capture *
make(uint32_t snaplen, uint32_t ring, const struct pvs_bpf *filter, uint32_t n)
{
    const struct pvs_capture_conf conf = { .snaplen = snaplen, .ring_bytes = ring, .filter = filter, .n = n };
    pvs_capture *made;

    CHECK_EQ(pvs_capture_create(lab.sw, &conf, &made), 0);
    return made;
}

static void
open_with(uint64_t features)
{
    struct lab_conf conf = lab_conf_default(PORTS);
    conf.guest.features |= features;
    conf.guest.tx_buf_size = 70000;
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < PORTS; i++)
        lab_fill(&lab, i, 128);
    lab_learn_all(&lab);
    for (uint32_t i = 0; i < PORTS; i++)
        lab_fill(&lab, i, 128);
    capture = make(PVS_MAX_FRAME, RING, NULL, 0);
}

static void
open_it(void)
{
    open_with(0);
}

/* The ports let go of their captures, which are then gone. */
static void
close_it(void)
{
    for (uint32_t i = 0; i < PORTS; i++)
        lab.port[i].conf.capture_in = lab.port[i].conf.capture_out = 0;
    for (uint32_t i = 0; i < lab.n_uplinks; i++)
        lab.uplink[i].conf.capture_in = lab.uplink[i].conf.capture_out = 0;
    lab_publish(&lab);
    CHECK_EQ(pvs_capture_next(capture, 0, &seen, got, sizeof got), 0);
    pvs_capture_destroy(capture);
    lab_close(&lab);
}

static void
watch(struct pvs_port_conf *conf, enum pvs_direction direction)
{
    *(direction == PVS_INGRESS ? &conf->capture_in : &conf->capture_out) |= 1U << pvs_capture_slot(capture);
    lab_publish(&lab);
}

static void
send_to(uint64_t dst, uint32_t salt)
{
    lab_frame(frame, dst, LAB_MAC(SENDER), LEN, salt);
    lab_send(&lab, SENDER, frame, LEN);
}

static uint32_t
ref_of(uint32_t port)
{
    return pvs_port_ref(lab.port[port].port);
}

/* The next one is exactly this frame. */
static void
next_is(uint32_t port, enum pvs_direction direction, enum pvs_drop drop, const uint8_t *bytes, uint32_t len)
{
    CHECK_EQ(pvs_capture_next(capture, 0, &seen, got, sizeof got), 1);
    CHECK_EQ(seen.port_ref, ref_of(port));
    CHECK_EQ(seen.direction, direction);
    CHECK_EQ(seen.drop, drop);
    CHECK_EQ(seen.len, len);
    CHECK_EQ(seen.n_bytes, len);
    CHECK_EQ(seen.counter, PVS_NO_FLOW);
    CHECK_EQ(seen.lost, 0);
    CHECK(memcmp(got, bytes, len) == 0);
}

static void
nothing_more(void)
{
    CHECK_EQ(pvs_capture_next(capture, 0, &seen, got, sizeof got), 0);
}

/* ---- what comes in ---- */

TEST_EACH_RING(a_frame_that_comes_in_is_captured_with_its_verdict)
{
    open_it();
    watch(&lab.port[SENDER].conf, PVS_INGRESS);
    send_to(LAB_MAC(RECEIVER), 1);
    lab_poll(&lab, 1);
    next_is(SENDER, PVS_INGRESS, PVS_DROP_none, frame, LEN);
    CHECK_EQ(seen.peer_ref, ref_of(RECEIVER));
    CHECK_EQ(seen.copies, 1);
    CHECK(!seen.unfinished);
    send_to(LAB_BROADCAST, 2);
    lab_poll(&lab, 1);
    next_is(SENDER, PVS_INGRESS, PVS_DROP_none, frame, LEN);
    CHECK_EQ(seen.copies, 2);
    send_to(LAB_MAC(SENDER), 3);
    lab_poll(&lab, 1);
    next_is(SENDER, PVS_INGRESS, PVS_DROP_same_port, frame, LEN);
    CHECK_EQ(seen.peer_ref, 0);
    CHECK_EQ(seen.copies, 0);
    lab_frame(frame, LAB_MAC(RECEIVER), LAB_MAC(50), LEN, 4);
    CHECK_EQ(lab_wait(&lab, pvs_inject(lab.port[SENDER].port, PVS_INGRESS, frame, LEN)), 0);
    next_is(SENDER, PVS_INGRESS, PVS_DROP_none, frame, LEN);
    close_it();
}

TEST_EACH_RING(each_frame_of_a_burst_is_captured_in_order_and_no_later_than_the_one_before)
{
    enum { FRAMES = 150 };
    uint64_t before = 0;

    open_it();
    watch(&lab.port[SENDER].conf, PVS_INGRESS);
    watch(&lab.port[RECEIVER].conf, PVS_EGRESS);
    for (uint32_t i = 0; i < FRAMES; i++)
        send_to(LAB_MAC(RECEIVER), i);
    lab_poll(&lab, 10);
    uint32_t in = 0, out = 0;
    while (pvs_capture_next(capture, 0, &seen, got, sizeof got) == 1) {
        lab_frame(frame, LAB_MAC(RECEIVER), LAB_MAC(SENDER), LEN, seen.direction == PVS_INGRESS ? in++ : out++);
        CHECK(memcmp(got, frame, LEN) == 0);
        CHECK(seen.time_ns >= before);
        before = seen.time_ns;
    }
    CHECK_EQ(in, FRAMES);
    CHECK_EQ(out, FRAMES);
    close_it();
}

TEST_EACH_RING(a_frame_of_a_disabled_queue_is_captured_as_dropped)
{
    open_it();
    watch(&lab.port[SENDER].conf, PVS_INGRESS);
    CHECK_EQ(lab_wait(&lab, pvs_ring_enable(lab.port[SENDER].port, 1, false)), 0);
    send_to(LAB_MAC(RECEIVER), 1);
    lab_poll(&lab, 1);
    next_is(SENDER, PVS_INGRESS, PVS_DROP_queue_disabled, frame, LEN);
    CHECK(pvd_tx_reap(lab.port[SENDER].guest, 0) >= 0);
    CHECK_EQ(lab_wait(&lab, pvs_ring_enable(lab.port[SENDER].port, 1, true)), 0);
    CHECK_EQ(pvd_tx(lab.port[SENDER].guest, 0, NULL, frame, 13, NULL), 0);
    CHECK_EQ(pvd_tx(lab.port[SENDER].guest, 0, NULL, frame, 0, NULL), 0); /* of which there is nothing */
    CHECK(pvd_kick(lab.port[SENDER].guest, 1) >= 0);
    lab_poll(&lab, 2);
    next_is(SENDER, PVS_INGRESS, PVS_DROP_malformed, frame, 13);
    close_it();
}

/* ---- what goes out ---- */

TEST_EACH_RING(a_copy_is_captured_as_it_leaves)
{
    static const uint8_t tag[] = { 0x81, 0, 0, 7 };
    uint8_t tagged[LEN + 4];

    open_it();
    lab.port[SENDER].conf.vlan_mode = PVS_VLAN_ACCESS;
    lab.port[SENDER].conf.tag = 7;
    watch(&lab.port[RECEIVER].conf, PVS_EGRESS);
    for (uint32_t round = 0; round < 2; round++) { /* flooded, and known */
        send_to(LAB_MAC(RECEIVER), round);
        memcpy(tagged, frame, 12);
        memcpy(tagged + 12, tag, 4);
        memcpy(tagged + 16, frame + 12, LEN - 12);
        lab_poll(&lab, 2);
        lab_expect(&lab, RECEIVER, tagged, LEN + 4);
        next_is(RECEIVER, PVS_EGRESS, PVS_DROP_none, tagged, LEN + 4);
        CHECK_EQ(seen.vid, 7);
        CHECK_EQ(seen.peer_ref, ref_of(SENDER));
        lab_frame(frame, LAB_BROADCAST, LAB_MAC(RECEIVER), LEN, 0);
        memmove(frame + 16, frame + 12, LEN - 16);
        memcpy(frame + 12, tag, 4);
        lab_send(&lab, RECEIVER, frame, LEN);
        lab_poll(&lab, 2);
    }
    lab.port[RECEIVER].conf.mtu = 100;
    lab_publish(&lab);
    send_to(LAB_MAC(RECEIVER), 5);
    memcpy(tagged, frame, 12);
    memcpy(tagged + 12, tag, 4);
    memcpy(tagged + 16, frame + 12, LEN - 12);
    lab_poll(&lab, 2);
    next_is(RECEIVER, PVS_EGRESS, PVS_DROP_mtu_exceeded, tagged, LEN + 4);
    close_it();
}

TEST_EACH_RING(a_copy_that_a_full_guest_has_no_room_for_is_captured_as_dropped)
{
    enum { FRAMES = 20, ROOM = 12 };

    open_it();
    watch(&lab.port[RECEIVER].conf, PVS_EGRESS);
    CHECK(lab_ring_stop(&lab, RECEIVER, 0) >= 0);
    send_to(LAB_MAC(RECEIVER), 99);
    lab_poll(&lab, 2);
    next_is(RECEIVER, PVS_EGRESS, PVS_DROP_link_down, frame, LEN);
    lab_detach(&lab, RECEIVER);
    lab_reset(&lab, RECEIVER);
    lab_attach(&lab, RECEIVER);
    lab_fill(&lab, RECEIVER, ROOM);
    for (uint32_t i = 0; i < FRAMES; i++)
        send_to(LAB_MAC(RECEIVER), i);
    lab_poll(&lab, 4);
    for (uint32_t i = 0; i < FRAMES; i++) {
        lab_frame(frame, LAB_MAC(RECEIVER), LAB_MAC(SENDER), LEN, i);
        next_is(RECEIVER, PVS_EGRESS, i < ROOM ? PVS_DROP_none : PVS_DROP_guest_rx_full, frame, LEN);
    }
    close_it();
}

TEST_EACH_RING(a_frame_that_waits_is_captured_when_it_has_been_forwarded)
{
    open_it();
    lab.port[RECEIVER].conf.backpressure_ms = 1000;
    watch(&lab.port[SENDER].conf, PVS_INGRESS);
    watch(&lab.port[RECEIVER].conf, PVS_EGRESS);
    lab_detach(&lab, RECEIVER);
    lab_reset(&lab, RECEIVER);
    lab_attach(&lab, RECEIVER);
    send_to(LAB_MAC(RECEIVER), 1);
    lab_poll(&lab, 10);
    nothing_more();
    lab_fill(&lab, RECEIVER, 10);
    lab_poll(&lab, 3);
    next_is(RECEIVER, PVS_EGRESS, PVS_DROP_none, frame, LEN);
    next_is(SENDER, PVS_INGRESS, PVS_DROP_none, frame, LEN);
    lab_poll(&lab, 3);
    close_it();
}

TEST_EACH_RING(a_shaped_copy_is_captured_when_it_leaves_or_is_dropped)
{
    open_it();
    lab.port[RECEIVER].conf.shaping = (struct pvs_limit){ .per_second = 10 * LEN, .depth = LEN };
    watch(&lab.port[RECEIVER].conf, PVS_EGRESS);
    lab_poll(&lab, 1);
    for (uint32_t i = 0; i < 4; i++)
        send_to(LAB_MAC(RECEIVER), i);
    lab_poll(&lab, 1);
    lab_frame(frame, LAB_MAC(RECEIVER), LAB_MAC(SENDER), LEN, 2);
    next_is(RECEIVER, PVS_EGRESS, PVS_DROP_shaped, frame, LEN);
    lab_frame(frame, LAB_MAC(RECEIVER), LAB_MAC(SENDER), LEN, 3);
    next_is(RECEIVER, PVS_EGRESS, PVS_DROP_shaped, frame, LEN);
    lab_frame(frame, LAB_MAC(RECEIVER), LAB_MAC(SENDER), LEN, 0);
    next_is(RECEIVER, PVS_EGRESS, PVS_DROP_none, frame, LEN);
    nothing_more();
    lab.now_ns += 200000000;
    lab_poll(&lab, 2);
    lab_frame(frame, LAB_MAC(RECEIVER), LAB_MAC(SENDER), LEN, 1);
    next_is(RECEIVER, PVS_EGRESS, PVS_DROP_none, frame, LEN);
    close_it();
}

/* It is finished for a guest that wants it so, but not in the capture. */
TEST_EACH_RING(an_unfinished_frame_says_so)
{
    static const struct virtio_net_hdr header = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                                  .csum_start = 34,
                                                  .csum_offset = 6 };

    for (uint32_t takes = 0; takes < 2; takes++) {
        open_with(UINT64_C(1) << VIRTIO_NET_F_CSUM | (uint64_t)takes << PVD_F_GUEST_CSUM);
        watch(&lab.port[RECEIVER].conf, PVS_EGRESS);
        lab_udp(frame, LAB_MAC(RECEIVER), LAB_MAC(SENDER), 0, LEN);
        memset(frame + 42, 1, LEN - 42);
        CHECK_EQ(pvd_tx(lab.port[SENDER].guest, 0, &header, frame, LEN, NULL), 0);
        CHECK(pvd_kick(lab.port[SENDER].guest, 1) >= 0);
        lab_poll(&lab, 2);
        struct pvd_rx_info info;
        CHECK_EQ(pvd_rx(lab.port[RECEIVER].guest, 0, got, sizeof got, &info), LEN);
        CHECK_EQ(info.flags, takes ? VIRTIO_NET_HDR_F_NEEDS_CSUM : 0);
        next_is(RECEIVER, PVS_EGRESS, PVS_DROP_none, frame, LEN);
        CHECK(seen.unfinished);
        close_it();
    }
}

TEST_EACH_RING(what_an_uplink_sends_is_captured_when_it_has_been_sent)
{
    static const enum pvs_uplink_kind kinds[] = { PVS_TAP, PVS_PACKET, PVS_FILE };

    for (int k = 0; k < 3; k++) {
        open_it();
        uint32_t up = lab_uplink_add(&lab, kinds[k], 1);
        lab_uplink_room(&lab, up, 16384);
        lab_publish(&lab);
        lab_know_all(&lab);
        watch(&lab.uplink[up].conf, PVS_EGRESS);
        for (uint32_t i = 0; i < 100; i++)
            send_to(LAB_FAR(up), i);
        lab_poll(&lab, 5);
        struct lab_counters c = lab_uplink_counters(&lab, up);
        uint64_t sent = c.value[PVS_C_tx_packets];
        CHECK(sent != 0 && sent < 100);
        for (uint32_t i = 0; i < 100; i++) {
            lab_frame(frame, LAB_FAR(up), LAB_MAC(SENDER), LEN, i);
            CHECK_EQ(pvs_capture_next(capture, 0, &seen, got, sizeof got), 1);
            CHECK_EQ(seen.port_ref, pvs_port_ref(lab.uplink[up].port));
            CHECK_EQ(seen.peer_ref, ref_of(SENDER));
            CHECK_EQ(seen.drop, i < sent ? PVS_DROP_none : PVS_DROP_uplink_tx_full);
            CHECK_EQ(seen.n_bytes, LEN);
            CHECK(memcmp(got, frame, LEN) == 0);
        }
        close_it();
    }
}

/* ---- filters, lengths, room ---- */

TEST_EACH_RING(a_filter_and_a_length_choose_what_is_kept)
{
    static const struct pvs_bpf to_other[] = { /* ether[5] == 2 */
                                               { 0x30, 0, 0, 5 },
                                               { 0x15, 0, 1, OTHER },
                                               { 0x06, 0, 0, 0xffff },
                                               { 0x06, 0, 0, 0 }
    };

    open_it();
    pvs_capture *all = capture;
    capture = make(150, RING, to_other, 4); /* some of it behind the head */
    CHECK(pvs_capture_slot(capture) != pvs_capture_slot(all));
    lab.port[SENDER].conf.capture_in = 1U << pvs_capture_slot(all);
    watch(&lab.port[SENDER].conf, PVS_INGRESS);
    for (uint32_t i = 0; i < 10; i++)
        send_to(LAB_MAC(i % 2 == 0 ? RECEIVER : OTHER), i);
    lab_poll(&lab, 2);
    for (uint32_t i = 1; i < 10; i += 2) {
        lab_frame(frame, LAB_MAC(OTHER), LAB_MAC(SENDER), LEN, i);
        CHECK_EQ(pvs_capture_next(capture, 0, &seen, got, sizeof got), 1);
        CHECK_EQ(seen.len, LEN);
        CHECK_EQ(seen.n_bytes, 150);
        CHECK(memcmp(got, frame, 150) == 0);
    }
    nothing_more();
    for (uint32_t i = 0; i < 10; i++)
        CHECK_EQ(pvs_capture_next(all, 0, &seen, got, sizeof got), 1);
    lab.port[SENDER].conf.capture_in = 0;
    lab_publish(&lab);
    pvs_capture_destroy(capture);
    capture = all;
    close_it();
}

TEST_EACH_RING(what_finds_no_room_is_counted_and_goes_on_its_way)
{
    enum { FRAMES = 600 };
    uint32_t kept = 0;

    open_it();
    pvs_capture_destroy(capture);
    capture = make(PVS_MAX_FRAME, 64 * 1024, NULL, 0);
    watch(&lab.port[SENDER].conf, PVS_INGRESS);
    for (uint32_t i = 0; i < FRAMES; i++) {
        send_to(LAB_MAC(RECEIVER), i);
        if (i % 50 == 49) {
            lab_poll(&lab, 3);
            lab_fill(&lab, RECEIVER, 50);
        }
        while (pvd_rx(lab.port[RECEIVER].guest, 0, got, sizeof got, NULL) >= 0)
            ;
    }
    CHECK_EQ(lab_counters(&lab, SENDER).value[PVS_C_rx_packets], FRAMES + 1);
    CHECK_EQ(lab_sum(lab_counters(&lab, RECEIVER).tx_drop), 0);
    CHECK_EQ(pvs_capture_next(capture, 0, &seen, got, LEN - 1), -EMSGSIZE);
    while (pvs_capture_next(capture, 0, &seen, got, sizeof got) == 1)
        kept++;
    CHECK(kept > 200 && kept < FRAMES);
    CHECK_EQ(pvs_capture_lost(capture), FRAMES - kept);
    send_to(LAB_MAC(RECEIVER), 1);
    send_to(LAB_MAC(RECEIVER), 2);
    lab_poll(&lab, 2);
    CHECK_EQ(pvs_capture_next(capture, 0, &seen, got, sizeof got), 1);
    CHECK_EQ(seen.lost, FRAMES - kept);
    CHECK_EQ(pvs_capture_next(capture, 0, &seen, got, sizeof got), 1);
    CHECK_EQ(seen.lost, 0);
    CHECK_EQ(pvs_capture_next(capture, 1, &seen, got, sizeof got), 0); /* no such worker */
    close_it();
}

TEST_EACH_RING(what_is_captured_wakes_nobody)
{
    struct pollfd wake;

    open_it();
    watch(&lab.port[SENDER].conf, PVS_INGRESS);
    lab_poll(&lab, 3);
    pvs_wake_clear(lab.sw);
    wake = (struct pollfd){ .fd = pvs_wake_fd(lab.sw), .events = POLLIN };
    CHECK_EQ(poll(&wake, 1, 0), 0);
    send_to(LAB_MAC(RECEIVER), 1);
    lab_poll(&lab, 1);
    CHECK_EQ(poll(&wake, 1, 0), 0);
    next_is(SENDER, PVS_INGRESS, PVS_DROP_none, frame, LEN);
    close_it();
}

TEST(captures_that_cannot_be_are_refused)
{
    static const struct pvs_bpf bad[] = { { 0x05, 0, 0, 1 } };
    static const struct pvs_capture_conf wrong[] = {
        { .snaplen = 13, .ring_bytes = RING },       { .snaplen = PVS_MAX_FRAME + 1, .ring_bytes = RING },
        { .snaplen = 100, .ring_bytes = 32 * 1024 }, { .snaplen = 100, .ring_bytes = 32 * 1024 * 1024 },
        { .snaplen = 100, .ring_bytes = RING + 1 },  { .snaplen = 100, .ring_bytes = RING, .filter = bad, .n = 1 },
    };
    pvs_capture *all[PVS_MAX_CAPTURES], *more;

    open_it();
    for (uint32_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        CHECK_EQ(pvs_capture_create(lab.sw, &wrong[i], &more), -EINVAL);
    all[0] = capture;
    for (uint32_t i = 1; i < PVS_MAX_CAPTURES; i++)
        all[i] = make(100, 64 * 1024, NULL, 0);
    const struct pvs_capture_conf right = { .snaplen = 100, .ring_bytes = 64 * 1024 };
    CHECK_EQ(pvs_capture_create(lab.sw, &right, &more), -ENOSPC);
    uint32_t slot = pvs_capture_slot(all[5]);
    pvs_capture_destroy(all[5]);
    struct pvs_port_conf port = lab.port[SENDER].conf;
    port.capture_in = 1U << slot; /* of which there is none */
    CHECK_EQ(pvs_publish(lab.sw, &port, 1, &lab.conf.bridge, 1), -EINVAL);
    all[5] = make(100, 64 * 1024, NULL, 0);
    CHECK_EQ(pvs_capture_slot(all[5]), slot);
    for (uint32_t i = 1; i < PVS_MAX_CAPTURES; i++)
        pvs_capture_destroy(all[i]);
    close_it();
}
