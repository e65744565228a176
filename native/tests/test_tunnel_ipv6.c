/* SPDX-License-Identifier: Apache-2.0 */
/* test_tunnel_ipv6.c - tunnels over IPv6: addresses, traffic class, raw sockets. Both ends are ::1. Step by step. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include "offload_lab.h"
#include "tunnel_lab.h"

enum { VNI = 77 };

static const uint8_t LOOPBACK[16] = { [15] = 1 };
static struct tunnel_lab t;
static struct cooked c;
static int far;
static uint16_t far_port;

/* -1: there is no IPv6, or the socket isn't ours to open. */
static int
open_socket(bool raw, uint16_t port)
{
    struct sockaddr_in6 at = { .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_loopback };
    int fd = socket(AF_INET6, (raw ? SOCK_RAW : SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, raw ? IPPROTO_GRE : 0);
    int one = 1;

    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) != 0)
        return -1;
    CHECK_EQ(setsockopt(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, &one, sizeof one), 0);
    return fd;
}

static uint16_t
port_of(int fd)
{
    struct sockaddr_in6 at;
    socklen_t len = sizeof at;

    CHECK_EQ(getsockname(fd, (struct sockaddr *)&at, &len), 0);
    return ntohs(at.sin6_port);
}

/* False: skipped. The endpoint's socket, and what the tunnel sends by, are exchanged for some of IPv6. */
static bool
open_kind(enum pvs_tunnel_kind kind)
{
    struct lab_conf lab = lab_conf_default(1);
    struct tunnel_lab_conf conf = { .kind = kind };
    struct pvs_segment_conf segment = { .vni = VNI, .vid = PVS_UNMAPPED };
    uint32_t number;

    if (!tunnel_lab_open(&t, &lab, &conf))
        return false;
    far = open_socket(kind == PVS_GRE, 0);
    if (far < 0) {
        fprintf(stderr, "skipped, since there is no IPv6\n");
        tunnel_lab_close(&t);
        return false;
    }
    far_port = port_of(far);
    tunnel_lab_stop(&t);
    for (uint32_t i = 0; i < SOURCES + 1; i++) {
        int *fd = i == 0 ? &t.fd : &t.source[i - 1];
        close(*fd);
        CHECK((*fd = open_socket(kind == PVS_GRE, 0)) >= 0);
    }
    tunnel_lab_start(&t);
    struct pvs_tunnel_conf tunnel = tunnel_lab_tunnel(&t, 1, &segment);
    tunnel.ipv6 = true;
    tunnel.tos = -1;
    tunnel.dst_port = kind == PVS_GRE ? 4789 : far_port; /* GRE has none, whatever is asked for */
    tunnel_lab_add_conf(&t, &tunnel);
    lab_publish(&t.lab);
    CHECK_EQ(pvs_vtep_add(t.lab.sw, LOOPBACK, &number), 0);
    uint16_t flood = (uint16_t)number;
    CHECK_EQ(lab_wait(&t.lab, pvs_tunnel_set_remotes(t.tunnel[0].tunnel, 0, &flood, 1, NULL, 0)), 0);
    lab_fill(&t.lab, 0, 64);
    return true;
}

/* What has come to the far side next, with this traffic class, is the frame at hand. */
static void
far_has_frame(enum pvs_tunnel_kind kind, int class)
{
    _Alignas(16) uint8_t control[64];
    uint8_t got[2000], header[8];
    struct iovec part = { .iov_base = got, .iov_len = sizeof got };
    struct msghdr m = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    uint32_t header_len = pvs_outer_write(kind, VNI, header);
    int value = -1;

    CHECK_EQ(recvmsg(far, &m, 0), header_len + c.len);
    CHECK(memcmp(got, header, header_len) == 0);
    CHECK(memcmp(got + header_len, c.bytes, c.len) == 0);
    CHECK(CMSG_FIRSTHDR(&m) != NULL);
    memcpy(&value, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof value);
    CHECK_EQ(value, class);
}

static void
there(enum pvs_tunnel_kind kind)
{
    struct recipe r = { .v6 = true, .udp = true, .payload = 100 };

    for (int class = 0; class < 256; class += 51) {
        cook(&r, FINISHED, &c);
        c.bytes[14] = (uint8_t)(0x60 | class >> 4);
        c.bytes[15] = (uint8_t)(class << 4);
        lab_send(&t.lab, 0, c.bytes, c.len);
        lab_poll(&t.lab, 3);
        far_has_frame(kind, class);
    }
    CHECK_EQ(pvs_tunnel_error(t.tunnel[0].tunnel), 0);
    CHECK_EQ(lab_sum(tunnel_lab_counters(&t, 0).tx_drop), 0);
}

TEST(tunnel_vxlan_over_ipv6)
{
    uint8_t packet[300], mac[6];
    struct recipe r = { .v6 = true, .udp = true, .payload = 100 };
    struct sockaddr_in6 to = { .sin6_family = AF_INET6, .sin6_addr = in6addr_loopback };
    struct pvs_fdb_item item;
    struct pvs_vtep_info info;
    int class = 3;

    if (!open_kind(PVS_VXLAN))
        return;
    there(PVS_VXLAN);
    to.sin6_port = htons(port_of(t.fd)); /* and back, over a way that is congested */
    CHECK_EQ(setsockopt(far, IPPROTO_IPV6, IPV6_TCLASS, &class, sizeof class), 0);
    cook(&r, FINISHED, &c);
    c.bytes[11] = 0x55;
    c.bytes[15] = 0x20; /* ECT(0) */
    pvs_outer_write(PVS_VXLAN, VNI, packet);
    memcpy(packet + 8, c.bytes, c.len);
    CHECK_EQ(sendto(far, packet, 8 + c.len, 0, (struct sockaddr *)&to, sizeof to), 8 + c.len);
    lab_poll(&t.lab, 3);
    c.bytes[15] = 0x30; /* CE */
    lab_expect(&t.lab, 0, c.bytes, c.len);
    memcpy(mac, c.bytes + 6, 6);
    CHECK_EQ(pvs_fdb_lookup(t.lab.fdb, mac, 0, t.lab.now_ns, &item), 0);
    CHECK_EQ(pvs_vtep_info(t.lab.sw, item.vtep, t.lab.now_ns, &info), 0);
    CHECK(memcmp(info.address, LOOPBACK, 16) == 0);
    tunnel_lab_close(&t);
    close(far);
}

TEST(tunnel_gre_over_ipv6)
{
    if (!open_kind(PVS_GRE))
        return;
    there(PVS_GRE);
    /* the endpoint is ::1 as well, so all of it came back: from there no IP header is to be skipped */
    CHECK_EQ(tunnel_lab_endpoint(&t).rx_drop[PVS_DROP_tunnel_malformed], 0);
    CHECK_EQ(tunnel_lab_counters(&t, 0).value[PVS_C_rx_packets], 6);
    tunnel_lab_close(&t);
    close(far);
}
