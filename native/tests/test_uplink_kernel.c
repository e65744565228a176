/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_uplink_kernel.c - uplinks on a real tap and a real packet socket, in a network namespace of the test's own: what
 * the kernel alone does, so that no stand-in shows it.
 *
 * How it works: one tap interface, and on it a packet socket. One is the uplink's descriptor, the other the wire: what
 * is written to the tap is received by the socket, and what the socket sends is read from the tap. Both have virtio-net
 * headers. Guests 0 and 1 are ports beside the uplink. Without the right to make a namespace the tests are skipped.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "offload_lab.h"
#include "uplink_lab.h"

enum { UP, HEADER = 10, ETH_ALL = 0x0003, HOST_TSO4 = 11, HOST_TSO6 = 12, HOST_USO = 56 };
/* linux/if_tun.h of kernel 6.2 and later */
enum { TAP_USO = 0x20 | 0x40, TAP_OFFLOADS = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN };

static const char NAME[] = "pvsct0";
static const struct recipe tcp4 = { .payload = 10000, .flags = ACK | PSH | FIN, .seq = 0xfffffc00, .id = 65534 };
static const struct recipe tcp6 = { .v6 = true, .payload = 50000, .flags = ACK | CWR };
static const struct recipe udp4 = { .udp = true, .payload = 6000 };
static const struct recipe udp6 = { .udp = true, .v6 = true, .payload = 6000 };
static const struct recipe *const recipes[] = { &tcp4, &tcp6, &udp4, &udp6 };

static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME], got[PVS_MAX_FRAME];
static struct cooked c;
static int tap, packet;

/* ---- the namespace ---- */

static void
write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return; /* a kernel without IPv6 */
    CHECK_EQ(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static bool
skip(const char *what)
{
    fprintf(stderr, "skipped, since %s: %s (run as root, or allow user namespaces)\n", what, strerror(errno));
    CHECK(getenv("CI") == NULL);
    return false;
}

static void
set_flags(short on, short off)
{
    struct ifreq request = { 0 };
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    CHECK(fd >= 0);
    memcpy(request.ifr_name, NAME, sizeof NAME);
    CHECK_EQ(ioctl(fd, SIOCGIFFLAGS, &request), 0);
    request.ifr_flags = (short)((request.ifr_flags | on) & ~off);
    CHECK_EQ(ioctl(fd, SIOCSIFFLAGS, &request), 0);
    close(fd);
}

static void
open_packet(void)
{
    const int one = 1;
    struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_ALL) };

    packet = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK(packet >= 0);
    CHECK_EQ(setsockopt(packet, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one), 0);
    CHECK_EQ(setsockopt(packet, SOL_PACKET, PACKET_AUXDATA, &one, sizeof one), 0);
    CHECK_EQ(setsockopt(packet, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one), 0);
    at.sll_ifindex = (int)if_nametoindex(NAME);
    CHECK_EQ(bind(packet, (const struct sockaddr *)&at, sizeof at), 0);
}

/* The tap and the socket on it, where nobody else sends. False: skipped. */
static bool
open_interface(bool offloads)
{
    struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };

    if (unshare(CLONE_NEWNET) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0)
        return skip("there can be no network namespace");
    write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (tap < 0)
        return skip("/dev/net/tun can't be opened");
    memcpy(request.ifr_name, NAME, sizeof NAME);
    if (ioctl(tap, TUNSETIFF, &request) != 0)
        return skip("there can be no tap");
    CHECK_EQ(ioctl(tap, TUNSETVNETHDRSZ, &(int){ HEADER }), 0);
    if (offloads && ioctl(tap, TUNSETOFFLOAD, (unsigned long)(TAP_OFFLOADS | TAP_USO)) != 0)
        CHECK_EQ(ioctl(tap, TUNSETOFFLOAD, (unsigned long)TAP_OFFLOADS), 0);
    set_flags(IFF_UP, 0);
    open_packet();
    return true;
}

/* Two guests, and an uplink on the one or the other. False: skipped. */
static bool
open_with(enum pvs_uplink_kind kind, uint64_t features, bool offloads)
{
    struct lab_conf conf = lab_conf_default(2);

    if (!open_interface(offloads))
        return false;
    conf.guest.tx_buf_size = PVS_MAX_FRAME + 12;
    conf.guest.features |= features;
    lab_open(&lab, &conf);
    lab_uplink_add_real(&lab, kind, kind == PVS_TAP ? tap : packet, kind == PVS_TAP ? packet : tap);
    lab_know_all(&lab);
    for (uint32_t i = 0; i < 2; i++)
        lab_fill(&lab, i, 256);
    return true;
}

/* ---- helpers ---- */

/* The next frame for guest 1: the kernel may take its time. */
static uint32_t
receive_down(void)
{
    uint64_t deadline = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL;
    int n;
    do {
        lab_poll(&lab, 1);
        n = pvd_rx(lab.port[1].guest, 0, got, sizeof got, NULL);
        CHECK(lab_clock_ns() < deadline);
    } while (n == -EAGAIN);
    CHECK(n > 0);
    lab_fill(&lab, 1, 256);
    return (uint32_t)n;
}

static void
expect_down(const uint8_t *bytes, uint32_t len)
{
    CHECK_EQ(receive_down(), len);
    CHECK(memcmp(got, bytes, len) == 0);
}

static void
expect_up(const struct virtio_net_hdr *asked, const uint8_t *bytes, uint32_t len)
{
    struct virtio_net_hdr header = { 0 };
    struct pollfd p = { .fd = lab.uplink[UP].wire[0], .events = POLLIN };

    CHECK_EQ(poll(&p, 1, LAB_DEADLINE_MS), 1);
    CHECK_EQ(lab_wire_receive(&lab, UP, &header, got, sizeof got), len);
    CHECK(memcmp(got, bytes, len) == 0);
    CHECK_EQ(header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM, asked->flags);
    CHECK_EQ(header.gso_type, asked->gso_type);
    CHECK_EQ(header.gso_size, asked->gso_size);
    CHECK(asked->flags == 0 || header.csum_start == asked->csum_start);
    CHECK(asked->flags == 0 || header.csum_offset == asked->csum_offset);
}

static const struct virtio_net_hdr nothing;

static void
cook_for(const struct recipe *recipe, enum field field, uint64_t dst, uint64_t src)
{
    cook(recipe, field, &c);
    pvs_mac_store(c.bytes, dst);
    pvs_mac_store(c.bytes + 6, src);
}

static void
guest_sends(const struct virtio_net_hdr *header, const uint8_t *bytes, uint32_t len)
{
    CHECK(pvd_tx_reap(lab.port[0].guest, 0) >= 0);
    CHECK_EQ(pvd_tx(lab.port[0].guest, 0, header, bytes, len, NULL), 0);
    CHECK(pvd_kick(lab.port[0].guest, 1) >= 0);
    lab_poll(&lab, 3);
}

/* ---- frames ---- */

static void
both_ways(enum pvs_uplink_kind kind)
{
    if (!open_with(kind, 0, true))
        return;
    static const uint32_t size[] = { 15, 60, 128, 129, 200, 1514 };
    for (uint32_t i = 0; i < 200; i++) {
        uint32_t len = size[i % 6];
        lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), len, i);
        guest_sends(NULL, frame, len);
        expect_up(&nothing, frame, len);
        lab_frame(frame, LAB_MAC(1), LAB_FAR(UP), len, i);
        lab_wire_send(&lab, UP, NULL, frame, len);
        expect_down(frame, len);
    }
    CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_rx_packets], 200);
    CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_tx_packets], 200);
    CHECK_EQ(lab_uplink_status(&lab, UP, 0).error, 0);
    lab_uplink_close(&lab);
}

TEST_EACH_RING(uplink_tap_carries_frames_both_ways)
{
    both_ways(PVS_TAP);
}

TEST_EACH_RING(uplink_socket_carries_frames_both_ways)
{
    both_ways(PVS_PACKET);
}

/* The kernel takes our requests for what they are: an interface without
 * offloads shows what it makes of them. */
TEST_EACH_RING(uplink_requests_are_finished_by_the_kernel)
{
    if (!open_with(PVS_PACKET, 1 | 1ULL << HOST_TSO4 | 1ULL << HOST_TSO6 | 1ULL << HOST_USO, false))
        return;
    for (uint32_t i = 0; i < 4; i++) {
        const struct recipe *r = recipes[i];
        uint32_t n = (r->payload + 1399) / 1400;
        cook_for(r, PSEUDO, LAB_FAR(UP), LAB_MAC(0));
        struct virtio_net_hdr header = header_for(r, &c, 1400);
        guest_sends(&header, c.bytes, c.len);
        if (lab_uplink_counters(&lab, UP).tx_drop[PVS_DROP_uplink_refused] != 0 && r->udp)
            continue; /* before 6.2 */
        for (uint32_t s = 0; s < n; s++) {
            struct recipe segment = segment_recipe(r, 1400, s, n);
            cook_for(&segment, FINISHED, LAB_FAR(UP), LAB_MAC(0));
            expect_up(&nothing, c.bytes, c.len);
        }
        struct recipe small = *r;
        small.payload = 999;
        cook_for(&small, PSEUDO, LAB_FAR(UP), LAB_MAC(0));
        header = header_for(&small, &c, 0);
        guest_sends(&header, c.bytes, c.len);
        cook_for(&small, FINISHED, LAB_FAR(UP), LAB_MAC(0));
        expect_up(&nothing, c.bytes, c.len);
    }
    lab_uplink_close(&lab);
}

static void
whole(enum pvs_uplink_kind kind)
{
    if (!open_with(kind, 1 | 1ULL << HOST_TSO4 | 1ULL << HOST_TSO6, true))
        return;
    for (uint32_t i = 0; i < 2; i++) {
        const struct recipe *r = recipes[i];
        uint32_t n = (r->payload + 1399) / 1400;
        cook_for(r, PSEUDO, LAB_FAR(UP), LAB_MAC(0));
        struct virtio_net_hdr header = header_for(r, &c, 1400);
        guest_sends(&header, c.bytes, c.len);
        expect_up(&header, c.bytes, c.len);

        cook_for(r, PSEUDO, LAB_MAC(1), LAB_FAR(UP));
        header.hdr_len = (uint16_t)c.hdr_len;
        lab_wire_send(&lab, UP, &header, c.bytes, c.len);
        for (uint32_t s = 0; s < n; s++) {
            struct recipe segment = segment_recipe(r, 1400, s, n);
            cook_for(&segment, FINISHED, LAB_MAC(1), LAB_FAR(UP));
            expect_down(c.bytes, c.len);
        }
    }
    lab_uplink_close(&lab);
}

TEST_EACH_RING(uplink_tap_passes_segments_whole)
{
    whole(PVS_TAP);
}

TEST_EACH_RING(uplink_socket_passes_segments_whole)
{
    whole(PVS_PACKET);
}

/* ---- tags ---- */

/* A tagged frame to guest 1, of which the kernel takes the outer tag out before a packet socket sees it. */
static void
send_tagged(uint16_t tpid, uint16_t tci, uint32_t len)
{
    lab_frame(frame, LAB_MAC(1), LAB_FAR(UP), len, len);
    put16(frame + 12, tpid);
    put16(frame + 14, tci);
    put16(frame + 16, 0x88b5);
    lab_wire_send(&lab, UP, NULL, frame, len);
}

TEST_EACH_RING(uplink_socket_puts_tags_back)
{
    if (!open_with(PVS_PACKET, 0, true))
        return;
    static const uint32_t size[] = { 20, 60, 127, 128, 129, 131, 132, 133, 200, 1518 };
    static const uint16_t tci[] = { 5, 0, 0xe000, 0xffff };
    for (uint32_t i = 0; i < 40; i++) {
        send_tagged(i % 2 == 0 ? ETHERTYPE_8021Q : ETHERTYPE_8021AD, tci[i / 10], size[i % 10]);
        expect_down(frame, size[i % 10]);
    }
    for (uint8_t tags = 1; tags <= 2; tags++) { /* and what is asked for moves with the headers */
        for (uint32_t i = 0; i < 2; i++) {
            struct recipe r = *recipes[i];
            r.tags = tags;
            uint32_t n = (r.payload + 1399) / 1400;
            cook_for(&r, PSEUDO, LAB_MAC(1), LAB_FAR(UP));
            struct virtio_net_hdr header = header_for(&r, &c, 1400);
            header.hdr_len = (uint16_t)c.hdr_len;
            lab_wire_send(&lab, UP, &header, c.bytes, c.len);
            for (uint32_t s = 0; s < n; s++) {
                struct recipe segment = segment_recipe(&r, 1400, s, n);
                cook_for(&segment, FINISHED, LAB_MAC(1), LAB_FAR(UP));
                expect_down(c.bytes, c.len);
            }
            struct recipe small = r;
            small.payload = 77;
            cook_for(&small, PSEUDO, LAB_MAC(1), LAB_FAR(UP));
            header = header_for(&small, &c, 0);
            lab_wire_send(&lab, UP, &header, c.bytes, c.len);
            cook_for(&small, FINISHED, LAB_MAC(1), LAB_FAR(UP));
            expect_down(c.bytes, c.len);
        }
    }
    CHECK_EQ(lab_sum(lab_uplink_counters(&lab, UP).rx_drop), 0);
    lab_uplink_close(&lab);
}

/* ---- what the kernel loses or refuses ---- */

/* A datagram to be fragmented (UFO) fits no virtio-net header: it is lost, and
 * what came behind it is not forgotten. */
TEST_EACH_RING(uplink_socket_goes_on_behind_a_frame_it_cannot_have)
{
    if (!open_with(PVS_PACKET, 0, true))
        return;
    struct recipe r = udp4;
    cook_for(&r, PSEUDO, LAB_MAC(1), LAB_FAR(UP));
    struct virtio_net_hdr header = header_for(&r, &c, 1400);
    header.gso_type = VIRTIO_NET_HDR_GSO_UDP;
    header.hdr_len = (uint16_t)c.hdr_len;
    for (uint32_t i = 0; i < 3; i++) {
        lab_frame(frame, LAB_MAC(1), LAB_FAR(UP), 100, i);
        lab_wire_send(&lab, UP, NULL, frame, 100);
        if (i < 2)
            lab_wire_send(&lab, UP, &header, c.bytes, c.len);
    }
    for (uint32_t i = 0; i < 3; i++) {
        lab_frame(frame, LAB_MAC(1), LAB_FAR(UP), 100, i);
        expect_down(frame, 100);
    }
    CHECK_EQ(lab_uplink_counters(&lab, UP).rx_drop[PVS_DROP_malformed], 2);
    lab_uplink_close(&lab);
}

enum { SENT = 2000 };

static void
overrun(void)
{
    CHECK_EQ(setsockopt(packet, SOL_SOCKET, SO_RCVBUF, &(int){ 65536 }, sizeof(int)), 0);
    for (uint32_t i = 0; i < SENT; i++) {
        lab_frame(frame, LAB_MAC(1), LAB_FAR(UP), 1000, i);
        lab_wire_send(&lab, UP, NULL, frame, 1000);
    }
}

TEST_EACH_RING(uplink_socket_that_overruns_counts_what_was_lost)
{
    if (!open_with(PVS_PACKET, 0, true))
        return;
    overrun();
    uint64_t deadline = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL, lost = 0, taken = 0;
    while (taken + lost != SENT) {
        CHECK(lab_clock_ns() < deadline);
        lab_poll(&lab, 5);
        lost = lab_uplink_counters(&lab, UP).rx_drop[PVS_DROP_uplink_rx_full];
        taken = lab_uplink_counters(&lab, UP).value[PVS_C_rx_packets];
    }
    CHECK(lost != 0 && taken != 0);
    lab_check_uplink(&lab, UP);
    lab_close(&lab);
}

/* Without a turn between the loss and the stop. */
TEST_EACH_RING(uplink_socket_that_stops_counts_what_was_lost)
{
    if (!open_with(PVS_PACKET, 0, true))
        return;
    overrun();
    lab_uplink_stop(&lab, UP, 0);
    CHECK(lab_uplink_counters(&lab, UP).rx_drop[PVS_DROP_uplink_rx_full] != 0);
    lab_close(&lab);
}

TEST_EACH_RING(uplink_socket_drops_what_exceeds_the_interface)
{
    if (!open_with(PVS_PACKET, 0, true))
        return;
    lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), 3000, 1);
    guest_sends(NULL, frame, 3000);
    CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_mtu_exceeded), 1);
    lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), 1514, 2);
    guest_sends(NULL, frame, 1514);
    expect_up(&nothing, frame, 1514);
    lab_uplink_close(&lab);
}

/* ---- links ---- */

static void
delete_interface(void)
{
    struct {
        struct nlmsghdr header;
        struct ifinfomsg info;
    } request = {
        .header = { .nlmsg_len = sizeof request, .nlmsg_type = RTM_DELLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK },
        .info = { .ifi_index = (int)if_nametoindex(NAME) }
    };
    uint8_t answer[512];
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

    CHECK(fd >= 0);
    CHECK_EQ(send(fd, &request, sizeof request, 0), sizeof request);
    CHECK(recv(fd, answer, sizeof answer, 0) > 0); /* when the kernel has done it */
    close(fd);
    CHECK_EQ(if_nametoindex(NAME), 0);
}

/* The worker has nothing more to do: what has gone away does not keep it busy. */
static void
expect_rest(void)
{
    lab_poll(&lab, 10);
    for (int i = 0; i < 10; i++) {
        lab.now_ns += LAB_STEP_NS;
        CHECK_EQ(pvs_poll_once(lab.sw, 0, lab.now_ns), 0);
    }
}

static void
without_link(enum pvs_uplink_kind kind)
{
    if (!open_with(kind, 0, true))
        return;
    lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), 200, 1);
    for (int i = 0; i < 3; i++) {
        guest_sends(NULL, frame, 200);
        expect_up(&nothing, frame, 200);
        set_flags(0, IFF_UP);
        for (int k = 0; k < 5; k++)
            guest_sends(NULL, frame, 200);
        CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_link_down), 5 * (i + 1));
        expect_rest();
        CHECK(lab_uplink_status(&lab, UP, 0).error != 0);
        set_flags(IFF_UP, 0);
        lab_frame(frame, LAB_MAC(1), LAB_FAR(UP), 200, 2);
        if (kind == PVS_TAP) /* the wire is a socket that has to be told */
            (void)recv(packet, got, sizeof got, 0);
        lab_wire_send(&lab, UP, NULL, frame, 200);
        expect_down(frame, 200);
        lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), 200, 1);
    }
    delete_interface();
    expect_rest();
    for (int k = 0; k < 5; k++)
        guest_sends(NULL, frame, 200);
    CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_link_down), 20);
    CHECK_EQ(lab_sum(lab_uplink_counters(&lab, UP).tx_drop), 20);
    expect_rest();
    lab_uplink_close(&lab);
}

TEST(uplink_tap_whose_interface_goes_down_or_away)
{
    without_link(PVS_TAP);
}

TEST(uplink_socket_whose_interface_goes_down_or_away)
{
    without_link(PVS_PACKET);
}
