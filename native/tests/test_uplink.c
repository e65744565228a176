/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_uplink.c - what goes through an uplink and in which form, on sockets in the place of the kernel's descriptors
 * (uplink_lab.h): frames of all sizes, requests passed on or finished, floods, what is malformed.
 *
 * Ports 0 and 1 are guests, then comes an uplink; a second one where a test says so.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "offload_lab.h"
#include "uplink_lab.h"

enum { UP, UP2 };
enum { HEADER = 10, HOST_TSO4 = 11, HOST_TSO6 = 12, HOST_USO = 56, CSUM_BIT = 0 };
#define BIT(n)    (1ULL << (n))
#define SENDS_ALL (BIT(CSUM_BIT) | BIT(HOST_TSO4) | BIT(HOST_TSO6) | BIT(HOST_USO))
#define TAKES_ALL                                                                                    \
    (BIT(PVD_F_GUEST_CSUM) | BIT(PVD_F_GUEST_TSO4) | BIT(PVD_F_GUEST_TSO6) | BIT(PVD_F_GUEST_USO4) | \
     BIT(PVD_F_GUEST_USO6))

static const enum pvs_uplink_kind kinds[] = { PVS_TAP, PVS_PACKET };
static const struct recipe tcp4 = { .payload = 10000, .flags = ACK | PSH | FIN, .seq = 0xfffffc00, .id = 65534 };
static const struct recipe tcp6 = { .v6 = true, .payload = 60000, .flags = ACK };
static const struct recipe udp4 = { .udp = true, .payload = 6000, .tags = 1 };
static const struct recipe udp6 = { .udp = true, .v6 = true, .payload = 100000 / 16 };

static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME + 256], got[PVS_MAX_FRAME];
static struct cooked c;

/* Guests with room for the largest frames, that ask for and take what `features` say. */
static void
open_with(uint64_t features, enum pvs_uplink_kind kind, uint32_t uplinks)
{
    struct lab_conf conf = lab_conf_default(2);
    conf.guest.queue_size = 128;
    conf.guest.rx_buf_size = 4096;
    conf.guest.tx_buf_size = PVS_MAX_FRAME + 12;
    conf.guest.features |= features;
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < uplinks; i++)
        CHECK_EQ(lab_uplink_add(&lab, kind, 1), i);
    lab_know_all(&lab);
    for (uint32_t i = 0; i < 2; i++)
        lab_fill(&lab, i, 64);
}

static void
cook_for(const struct recipe *recipe, enum field field, uint64_t dst, uint64_t src)
{
    cook(recipe, field, &c);
    pvs_mac_store(c.bytes, dst);
    pvs_mac_store(c.bytes + 6, src);
}

static void
guest_asks(uint32_t port, uint16_t gso_size, const struct recipe *recipe)
{
    struct virtio_net_hdr header = header_for(recipe, &c, gso_size);
    CHECK(pvd_tx_reap(lab.port[port].guest, 0) >= 0);
    CHECK_EQ(pvd_tx(lab.port[port].guest, 0, &header, c.bytes, c.len, NULL), 0);
    CHECK(pvd_kick(lab.port[port].guest, 1) >= 0);
    lab_poll(&lab, 3);
}

/* What is cooked comes by the wire with this request. */
static void
expect_on_wire(uint32_t uplink, const struct recipe *recipe, uint16_t gso_size)
{
    struct virtio_net_hdr header, asked = header_for(recipe, &c, gso_size);

    CHECK_EQ(lab_wire_receive(&lab, uplink, &header, got, sizeof got), c.len);
    CHECK(memcmp(got, c.bytes, c.len) == 0);
    asked.hdr_len = gso_size != 0 ? (uint16_t)c.hdr_len : 0;
    CHECK(memcmp(&header, &asked, HEADER) == 0);
}

/* ---- plain frames ---- */

static void
sizes(enum pvs_uplink_kind kind, const struct pvd_layout *layout)
{
    static const uint32_t size[] = { 14,  15,  17,   60,   127,  128,   129,   130,   138,
                                     139, 140, 1514, 9000, 9014, 16384, 65535, 65550, PVS_MAX_FRAME - 4 };
    open_with(0, kind, 1);
    for (uint32_t i = 0; i < sizeof size / sizeof size[0]; i++) {
        lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), size[i], i);
        CHECK(pvd_tx_reap(lab.port[0].guest, 0) >= 0);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, size[i], layout), 0);
        pvd_kick(lab.port[0].guest, 1);
        lab_poll(&lab, 2);
        lab_wire_expect(&lab, UP, frame, size[i]);

        lab_frame(frame, LAB_MAC(1), LAB_FAR(UP), size[i], i + 100);
        lab_wire_send(&lab, UP, NULL, frame, size[i]);
        lab_poll(&lab, 2);
        lab_expect(&lab, 1, frame, size[i]);
        lab_fill(&lab, 1, 64);
    }
    lab_wire_expect_nothing(&lab, UP);
    struct lab_counters at = lab_uplink_counters(&lab, UP);
    CHECK_EQ(at.value[PVS_C_tx_packets], sizeof size / sizeof size[0]);
    CHECK_EQ(at.value[PVS_C_rx_packets], sizeof size / sizeof size[0]);
    CHECK_EQ(lab_sum(at.rx_drop) + lab_sum(at.tx_drop), 0);
    lab_uplink_close(&lab);
}

TEST_EACH_RING(uplink_frames_of_all_sizes_go_both_ways)
{
    for (int k = 0; k < 2; k++)
        sizes(kinds[k], NULL);
}

/* As many as a burst takes and more, in one go: their order and number. */
TEST_EACH_RING(uplink_bursts_keep_their_order)
{
    for (int k = 0; k < 2; k++) {
        open_with(0, kinds[k], 1);
        for (uint32_t i = 0; i < 63; i++) {
            lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), 60 + i, i);
            CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, 60 + i, NULL), 0);
            lab_frame(frame, LAB_MAC(1), LAB_FAR(UP), 60 + i, i + 70);
            lab_wire_send(&lab, UP, NULL, frame, 60 + i);
        }
        pvd_kick(lab.port[0].guest, 1);
        lab_poll(&lab, 4);
        for (uint32_t i = 0; i < 63; i++) {
            lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), 60 + i, i);
            lab_wire_expect(&lab, UP, frame, 60 + i);
            lab_frame(frame, LAB_MAC(1), LAB_FAR(UP), 60 + i, i + 70);
            lab_expect(&lab, 1, frame, 60 + i);
        }
        lab_uplink_close(&lab);
    }
}

/* Cuts after the head, one byte apart: the first tail part is what is left of the first segment. */
static struct pvd_layout
cuts_from(uint32_t first, uint32_t n)
{
    struct pvd_layout layout = { .n_cuts = n, .flags = PVD_LAYOUT_INDIRECT };
    for (uint32_t i = 0; i < n; i++)
        layout.cuts[i] = first + i;
    return layout;
}

/* One more part than a message has places for makes it put together; several of
 * them must not be in each other's way. */
TEST_EACH_RING(uplink_frames_in_many_parts_arrive_whole)
{
    for (int k = 0; k < 2; k++) {
        for (uint32_t n = PVD_MAX_CUTS - 2; n <= PVD_MAX_CUTS; n++) {
            struct pvd_layout layout = cuts_from(12 + 128 + 10, n);
            open_with(0, kinds[k], 1);
            for (uint32_t i = 0; i < 9; i++) {
                lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), 1000 + i, i);
                CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, 1000 + i, i % 4 == 3 ? NULL : &layout), 0);
            }
            pvd_kick(lab.port[0].guest, 1);
            lab_poll(&lab, 3);
            for (uint32_t i = 0; i < 9; i++) {
                lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), 1000 + i, i);
                lab_wire_expect(&lab, UP, frame, 1000 + i);
            }
            CHECK_EQ(pvd_tx_reap(lab.port[0].guest, 0), 9);
            lab_uplink_close(&lab);
        }
        struct pvd_layout layout = cuts_from(12 + 128 + 10, PVD_MAX_CUTS);
        sizes(kinds[k], &layout);
    }
}

/* ---- requests ---- */

TEST_EACH_RING(uplink_takes_requests_as_they_are)
{
    static const struct recipe *const recipe[] = { &tcp4, &tcp6, &udp4, &udp6 };
    for (int k = 0; k < 2; k++) {
        open_with(SENDS_ALL, kinds[k], 1);
        for (uint32_t i = 0; i < 4; i++) {
            cook_for(recipe[i], PSEUDO, LAB_FAR(UP), LAB_MAC(0));
            guest_asks(0, 0, recipe[i]);
            expect_on_wire(UP, recipe[i], 0);
            guest_asks(0, 1400, recipe[i]);
            expect_on_wire(UP, recipe[i], 1400);
            lab_wire_expect_nothing(&lab, UP);
        }
        CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_tx_packets], 8);
        lab_uplink_close(&lab);
    }
}

/* A GSO frame whose headers and payload lie in many parts is put together with
 * its request, and is captured so. */
TEST_EACH_RING(uplink_keeps_the_request_of_a_frame_in_many_parts)
{
    static const struct pvs_capture_conf whole = { .snaplen = PVS_MAX_FRAME, .ring_bytes = 1 << 20 };
    struct pvd_layout layout = cuts_from(300, PVD_MAX_CUTS);
    struct pvs_captured seen;
    pvs_capture *capture;

    open_with(SENDS_ALL, PVS_PACKET, 1);
    CHECK_EQ(pvs_capture_create(lab.sw, &whole, &capture), 0);
    lab.uplink[UP].conf.capture_out = 1U << pvs_capture_slot(capture);
    lab_publish(&lab);
    cook_for(&tcp4, PSEUDO, LAB_FAR(UP), LAB_MAC(0));
    struct virtio_net_hdr header = header_for(&tcp4, &c, 1400);
    CHECK_EQ(pvd_tx(lab.port[0].guest, 0, &header, c.bytes, c.len, &layout), 0);
    pvd_kick(lab.port[0].guest, 1);
    lab_poll(&lab, 2);
    CHECK_EQ(pvs_capture_next(capture, 0, &seen, got, sizeof got), 1);
    CHECK_EQ(seen.n_bytes, c.len);
    CHECK(memcmp(got, c.bytes, c.len) == 0);
    CHECK(seen.unfinished);
    expect_on_wire(UP, &tcp4, 1400);
    lab.uplink[UP].conf.capture_out = 0;
    lab_publish(&lab);
    pvs_capture_destroy(capture);
    lab_uplink_close(&lab);
}

/* Without UDP segmentation in the kernel each datagram goes by itself, its
 * checksum left to the kernel. */
TEST_EACH_RING(uplink_without_uso_gets_datagrams)
{
    for (int k = 0; k < 2; k++) {
        struct recipe recipe = udp4;
        recipe.payload = 50000;
        open_with(SENDS_ALL, kinds[k], 1);
        lab_uplink_stop(&lab, UP, 0);
        lab.uplink[UP].uso = false;
        lab_uplink_start(&lab, UP, 0);
        cook_for(&recipe, PSEUDO, LAB_FAR(UP), LAB_MAC(0));
        guest_asks(0, 1100, &recipe);
        uint32_t n = (50000 + 1099) / 1100;
        for (uint32_t i = 0; i < n; i++) {
            struct recipe segment = segment_recipe(&recipe, 1100, i, n);
            cook_for(&segment, PSEUDO, LAB_FAR(UP), LAB_MAC(0));
            expect_on_wire(UP, &segment, 0);
        }
        lab_wire_expect_nothing(&lab, UP);
        CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_tx_packets], n);
        cook_for(&tcp4, PSEUDO, LAB_FAR(UP), LAB_MAC(0)); /* TCP still goes whole */
        guest_asks(0, 1400, &tcp4);
        expect_on_wire(UP, &tcp4, 1400);
        lab_uplink_close(&lab);
    }
}

static void
wire_asks(uint32_t uplink, uint64_t dst, const struct recipe *recipe, uint16_t gso_size)
{
    cook_for(recipe, PSEUDO, dst, LAB_FAR(uplink));
    struct virtio_net_hdr header = header_for(recipe, &c, gso_size);
    header.hdr_len = (uint16_t)c.hdr_len;
    lab_wire_send(&lab, uplink, &header, c.bytes, c.len);
    lab_poll(&lab, 3);
}

TEST_EACH_RING(uplink_frames_are_finished_for_a_plain_guest)
{
    static const struct recipe *const recipe[] = { &tcp4, &tcp6, &udp4, &udp6 };
    for (int k = 0; k < 2; k++) {
        open_with(0, kinds[k], 1);
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t n = (recipe[i]->payload + 1399) / 1400;
            wire_asks(UP, LAB_MAC(1), recipe[i], 1400);
            for (uint32_t s = 0; s < n; s++) {
                struct recipe segment = segment_recipe(recipe[i], 1400, s, n);
                cook_for(&segment, FINISHED, LAB_MAC(1), LAB_FAR(UP));
                lab_expect(&lab, 1, c.bytes, c.len);
            }
            lab_fill(&lab, 1, 64);
            wire_asks(UP, LAB_MAC(1), recipe[i], 0);
            cook_for(recipe[i], FINISHED, LAB_MAC(1), LAB_FAR(UP));
            lab_expect(&lab, 1, c.bytes, c.len);
            lab_fill(&lab, 1, 64);
        }
        CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_rx_packets], 8);
        lab_uplink_close(&lab);
    }
}

TEST_EACH_RING(uplink_frames_go_whole_to_a_guest_that_takes_them)
{
    static const struct recipe *const recipe[] = { &tcp4, &tcp6, &udp4, &udp6 };
    struct pvd_rx_info info;
    for (int k = 0; k < 2; k++) {
        open_with(TAKES_ALL, kinds[k], 1);
        for (uint32_t i = 0; i < 4; i++) {
            wire_asks(UP, LAB_MAC(1), recipe[i], 1400);
            CHECK_EQ(pvd_rx(lab.port[1].guest, 0, got, sizeof got, &info), c.len);
            CHECK(memcmp(got, c.bytes, c.len) == 0);
            CHECK_EQ(info.gso_type, gso_type_of(recipe[i]));
            CHECK_EQ(info.gso_size, 1400);
            CHECK_EQ(info.hdr_len, c.hdr_len);
            CHECK_EQ(info.csum_start, c.l4);
            lab_fill(&lab, 1, 64);
        }
        lab_uplink_close(&lab);
    }
}

TEST_EACH_RING(uplink_to_uplink_passes_requests_on)
{
    static const struct recipe *const recipe[] = { &tcp4, &tcp6, &udp4, &udp6 };
    for (int k = 0; k < 2; k++) {
        open_with(0, kinds[k], 2);
        for (uint32_t i = 0; i < 4; i++) {
            wire_asks(UP, LAB_FAR(UP2), recipe[i], 1200);
            expect_on_wire(UP2, recipe[i], 1200);
            lab_wire_expect_nothing(&lab, UP);
        }
        CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_rx_packets], 4);
        CHECK_EQ(lab_uplink_counters(&lab, UP2).value[PVS_C_tx_packets], 4);
        lab_uplink_close(&lab);
    }
}

/* ---- to many ---- */

TEST_EACH_RING(floods_reach_guests_and_uplinks_alike)
{
    for (int k = 0; k < 2; k++) {
        open_with(0, kinds[k], 2);
        for (uint32_t i = 0; i < 40; i++) {
            lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), 2000, i);
            CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, 2000, NULL), 0);
        }
        pvd_kick(lab.port[0].guest, 1);
        lab_poll(&lab, 3);
        for (uint32_t i = 0; i < 40; i++) {
            lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), 2000, i);
            lab_expect(&lab, 1, frame, 2000);
            lab_wire_expect(&lab, UP, frame, 2000);
            lab_wire_expect(&lab, UP2, frame, 2000);
        }
        lab_frame(frame, LAB_MAC(99), LAB_FAR(UP2), 300, 7); /* nobody's, from an uplink */
        lab_wire_send(&lab, UP2, NULL, frame, 300);
        lab_poll(&lab, 2);
        lab_expect(&lab, 0, frame, 300);
        lab_expect(&lab, 1, frame, 300);
        lab_wire_expect(&lab, UP, frame, 300);
        lab_wire_expect_nothing(&lab, UP2);
        lab_uplink_close(&lab);
    }
}

/* A flow goes out by the queue it came in by, and others by whichever runs. */
TEST_EACH_RING(uplink_queues_are_chosen_by_flow)
{
    struct lab_conf conf = lab_conf_default(1);
    lab_open(&lab, &conf);
    CHECK_EQ(lab_uplink_add(&lab, PVS_TAP, 2), UP);
    lab_know_all(&lab);
    lab_fill(&lab, 0, 128);
    for (uint16_t flow = 0; flow < 32; flow++) {
        uint32_t queue = flow % 2;
        uint8_t record[HEADER + 60] = { 0 };
        lab_udp(record + HEADER, LAB_MAC(0), LAB_FAR(UP), flow, 60);
        CHECK_EQ(write(lab.uplink[UP].wire[queue], record, sizeof record), sizeof record);
        lab_poll(&lab, 2);
        lab_udp(frame, LAB_FAR(UP), LAB_MAC(0), flow, 60);
        lab_send(&lab, 0, frame, 60);
        lab_poll(&lab, 2);
        CHECK_EQ(read(lab.uplink[UP].wire[queue], record, sizeof record), sizeof record);
    }
    lab_uplink_stop(&lab, UP, 1);
    lab_udp(frame, LAB_FAR(UP), LAB_MAC(0), 1, 60);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    lab_wire_expect(&lab, UP, frame, 60);
    lab_uplink_close(&lab);
}

TEST_EACH_RING(control_injects_through_an_uplink)
{
    for (int k = 0; k < 2; k++) {
        open_with(0, kinds[k], 1);
        lab_frame(frame, LAB_FAR(UP), LAB_MAC(50), 3000, 1);
        CHECK_EQ(lab_wait(&lab, pvs_inject(lab.uplink[UP].port, PVS_EGRESS, frame, 3000)), 0);
        lab_wire_expect(&lab, UP, frame, 3000);
        CHECK_EQ(lab_wait(&lab, pvs_inject(lab.port[0].port, PVS_INGRESS, frame, 3000)), 0);
        lab_wire_expect(&lab, UP, frame, 3000);
        lab_frame(frame, LAB_MAC(1), LAB_FAR(UP), 3000, 2);
        CHECK_EQ(lab_wait(&lab, pvs_inject(lab.uplink[UP].port, PVS_INGRESS, frame, 3000)), 0);
        lab_expect(&lab, 1, frame, 3000);
        CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_rx_packets], 0);
        CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_tx_packets], 2);
        lab_uplink_close(&lab);
    }
}

/* ---- what is wrong ---- */

/* Nothing of it is forwarded, it is counted once, and the next good frame gets through. */
static void
expect_malformed(const struct virtio_net_hdr *header, uint32_t len)
{
    uint64_t before = lab_uplink_counters(&lab, UP).rx_drop[PVS_DROP_malformed];
    static uint8_t good[100];

    lab_wire_send(&lab, UP, header, frame, len);
    lab_frame(good, LAB_MAC(1), LAB_FAR(UP), sizeof good, len);
    lab_wire_send(&lab, UP, NULL, good, sizeof good);
    lab_poll(&lab, 2);
    lab_expect(&lab, 1, good, sizeof good);
    lab_expect_nothing(&lab, 1);
    CHECK_EQ(lab_uplink_counters(&lab, UP).rx_drop[PVS_DROP_malformed], before + 1);
    lab_fill(&lab, 1, 64);
}

static void
expect_lie(const struct virtio_net_hdr *header)
{
    memcpy(frame, c.bytes, c.len);
    expect_malformed(header, c.len);
}

TEST_EACH_RING(malformed_frames_of_an_uplink_go_nowhere)
{
    for (int k = 0; k < 2; k++) {
        open_with(0, kinds[k], 1);
        lab_frame(frame, LAB_MAC(1), LAB_FAR(UP), sizeof frame, 0);
        expect_malformed(NULL, 0);
        expect_malformed(NULL, 13);
        expect_malformed(NULL, PVS_MAX_FRAME - 3);
        expect_malformed(NULL, PVS_MAX_FRAME);
        expect_malformed(NULL, PVS_MAX_FRAME + 200);            /* longer than there are places */
        CHECK_EQ(send(lab.uplink[UP].wire[0], frame, 5, 0), 5); /* less than a header */
        lab_poll(&lab, 2);
        CHECK_EQ(lab_uplink_counters(&lab, UP).rx_drop[PVS_DROP_malformed], 6);

        cook_for(&tcp4, PSEUDO, LAB_MAC(1), LAB_FAR(UP));
        struct virtio_net_hdr right = header_for(&tcp4, &c, 1400), h;
        h = right, h.flags = 0, expect_lie(&h);
        h = right, h.gso_size = 0, expect_lie(&h);
        h = right, h.gso_size = 4, expect_lie(&h); /* more pieces than there may be */
        h = right, h.csum_start++, expect_lie(&h);
        h = right, h.csum_offset = 6, expect_lie(&h);
        h = right, h.gso_type = VIRTIO_NET_HDR_GSO_TCPV6, expect_lie(&h);
        h = right, h.gso_type = VIRTIO_NET_HDR_GSO_UDP, expect_lie(&h);
        h = right, h.gso_type = 99, expect_lie(&h);
        h = right, h.gso_type = 0, h.csum_start = 65535, expect_lie(&h);
        h = right, h.gso_type = 0, h.csum_start = 510, h.csum_offset = 1, expect_lie(&h);
        CHECK_EQ(lab_uplink_counters(&lab, UP).rx_drop[PVS_DROP_malformed], 16);
        CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_rx_packets], 15);
        lab_uplink_close(&lab);
    }
}

TEST_EACH_RING(uplink_calls_that_make_no_sense_are_refused)
{
    struct pvs_uplink_status status;
    struct pvs_ring_conf ring = { 0 };
    pvs_port *port;

    open_with(0, PVS_TAP, 1);
    CHECK_EQ(pvs_uplink_create(lab.sw, 0, &port), -EINVAL);
    CHECK_EQ(pvs_uplink_create(lab.sw, PVS_MAX_PAIRS + 1, &port), -EINVAL);
    port = lab.uplink[UP].port;
    struct pvs_uplink_conf conf = { .kind = PVS_TAP, .fd = lab.uplink[UP].fd[0], .worker = -1 };
    CHECK_EQ(pvs_uplink_start(port, 0, &conf), -EBUSY);
    CHECK_EQ(pvs_uplink_start(port, 1, &conf), -EINVAL);
    CHECK_EQ(pvs_uplink_start(lab.port[0].port, 0, &conf), -EINVAL);
    CHECK_EQ(pvs_uplink_stop(port, 1), -EINVAL);
    CHECK_EQ(pvs_uplink_stop(lab.port[0].port, 0), -EINVAL);
    CHECK_EQ(pvs_uplink_status(port, 1, &status), -EINVAL);
    CHECK_EQ(pvs_ring_start(port, 0, &ring), -EINVAL);
    CHECK_EQ(pvs_ring_stop(port, 0), -EINVAL);
    CHECK_EQ(pvs_ring_enable(port, 0, true), -EINVAL);
    CHECK_EQ(pvs_port_destroy(port), -EBUSY);
    CHECK(lab_uplink_status(&lab, UP, 0).running);
    lab_uplink_stop(&lab, UP, 0);
    CHECK(!lab_uplink_status(&lab, UP, 0).running);
    CHECK_EQ(pvs_uplink_stop(port, 0), -EINVAL);

    struct pvs_uplink_conf bad = conf;
    bad.kind = PVS_ENDPOINT + 1;
    CHECK_EQ(pvs_uplink_start(port, 0, &bad), -EINVAL);
    bad = conf, bad.fd = -1;
    CHECK_EQ(pvs_uplink_start(port, 0, &bad), -EBADF);
    int flags = fcntl(conf.fd, F_GETFL);
    CHECK_EQ(fcntl(conf.fd, F_SETFL, flags & ~O_NONBLOCK), 0); /* it would hang a worker */
    CHECK_EQ(pvs_uplink_start(port, 0, &conf), -EINVAL);
    CHECK_EQ(fcntl(conf.fd, F_SETFL, flags), 0);
    bad = conf, bad.worker = 1;
    CHECK_EQ(pvs_uplink_start(port, 0, &bad), -EINVAL);
    bad = conf,
    bad.fd = open("/proc/self/status", O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* nothing that can be waited for */
    CHECK(bad.fd >= 0);
    int64_t seq = pvs_uplink_start(port, 0, &bad);
    CHECK_EQ(lab_wait(&lab, seq), -EPERM);
    CHECK_EQ(pvs_uplink_stop(port, 0), -EINVAL);
    close(bad.fd);
    lab_uplink_start(&lab, UP, 0); /* and it still can be used */
    lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), 60, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    lab_wire_expect(&lab, UP, frame, 60);
    lab_uplink_close(&lab);
}
