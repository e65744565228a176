/* SPDX-License-Identifier: Apache-2.0 */
/* tunnel_lab.c - see tunnel_lab.h. */
#include "tunnel_lab.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103 /* linux/udp.h */
#define UDP_GRO     104
#endif

enum { BUFFER = 4 << 20 };

uint16_t far_source_port;
uint32_t far_cut;

static struct sockaddr_in
host(uint32_t last, uint16_t port)
{
    return (struct sockaddr_in){ .sin_family = AF_INET,
                                 .sin_port = htons(port),
                                 .sin_addr.s_addr = htonl(0x7f000000 | last) };
}

static void
option(int fd, int level, int name, int value)
{
    CHECK_EQ(setsockopt(fd, level, name, &value, sizeof value), 0);
}

/* A socket, bound; -EADDRINUSE, or -EPERM. */
static int
open_socket(const struct tunnel_lab *t, uint32_t last, uint16_t port)
{
    bool gre = t->conf.kind == PVS_GRE;
    struct sockaddr_in address = host(last, port);
    int fd = socket(AF_INET, (gre ? SOCK_RAW : SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, gre ? IPPROTO_GRE : 0);

    if (fd < 0)
        return -errno;
    option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    option(fd, SOL_SOCKET, SO_RCVBUFFORCE, BUFFER);
    option(fd, SOL_SOCKET, SO_SNDBUFFORCE, BUFFER);
    option(fd, IPPROTO_IP, IP_RECVTOS, 1);
    option(fd, IPPROTO_IP, IP_PKTINFO, 1);
    if (last == 0)
        address.sin_addr.s_addr = 0;
    if (bind(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    int error = errno;
    close(fd);
    return -error;
}

static uint16_t
port_of(int fd)
{
    struct sockaddr_in address;
    socklen_t len = sizeof address;

    CHECK_EQ(getsockname(fd, (struct sockaddr *)&address, &len), 0);
    return ntohs(address.sin_port);
}

static bool
open_sockets(struct tunnel_lab *t)
{
    bool gre = t->conf.kind == PVS_GRE;

    t->fd = open_socket(t, 1, 0);
    if (t->fd < 0 && (t->fd == -EPERM || t->fd == -EACCES)) {
        fprintf(stderr, "skipped, since raw sockets are not ours to open (run as root)\n");
        CHECK(getenv("CI") == NULL);
        return false;
    }
    CHECK(t->fd >= 0);
    t->port = gre ? 0 : port_of(t->fd);
    for (uint32_t i = 0; i < SOURCES; i++)
        CHECK((t->source[i] = open_socket(t, 1, 0)) >= 0);
    for (uint32_t i = 0; i < FARS; i++)
        CHECK((t->far[i].fd = open_socket(t, t->conf.wide && i == 0 ? 0 : 2 + i, t->port)) >= 0);
    if (!gre && !t->conf.no_gro)
        option(t->fd, IPPROTO_UDP, UDP_GRO, 1);
    for (uint32_t i = 0; !gre && t->conf.far_gro && i < FARS; i++)
        option(t->far[i].fd, IPPROTO_UDP, UDP_GRO, 1);
    return true;
}

bool
tunnel_lab_open(struct tunnel_lab *t, const struct lab_conf *lab, const struct tunnel_lab_conf *conf)
{
    *t = (struct tunnel_lab){ .conf = *conf, .worker = -1 };
    if (!open_sockets(t))
        return false;
    lab_open(&t->lab, lab);
    CHECK_EQ(pvs_uplink_create(t->lab.sw, 1, &t->endpoint), 0);
    tunnel_lab_start(t);
    for (uint32_t i = 0; i < FARS; i++)
        t->far[i].number = tunnel_lab_vtep(t, i);
    return true;
}

void
tunnel_lab_start(struct tunnel_lab *t)
{
    struct pvs_uplink_conf conf = { .kind = PVS_ENDPOINT, .fd = t->fd, .tunnel = t->conf.kind, .worker = t->worker };

    CHECK_EQ(lab_wait(&t->lab, pvs_uplink_start(t->endpoint, 0, &conf)), 0);
    t->running = true;
}

void
tunnel_lab_stop(struct tunnel_lab *t)
{
    CHECK_EQ(lab_wait(&t->lab, pvs_uplink_stop(t->endpoint, 0)), 0);
    t->running = false;
}

void
tunnel_lab_close(struct tunnel_lab *t)
{
    while (t->lab.n_others != 0)
        tunnel_lab_remove(t);
    if (t->running)
        tunnel_lab_stop(t);
    lab_check_records(&t->lab, t->endpoint);
    CHECK_EQ(pvs_port_destroy(t->endpoint), 0);
    for (uint32_t i = 0; i < t->lab.conf.n_ports; i++)
        lab_check_port(&t->lab, i);
    lab_close(&t->lab);
    close(t->fd);
    for (uint32_t i = 0; i < SOURCES; i++)
        close(t->source[i]);
    for (uint32_t i = 0; i < FARS; i++)
        close(t->far[i].fd);
}

/* ---- tunnels ---- */

struct pvs_tunnel_conf
tunnel_lab_tunnel(const struct tunnel_lab *t, uint32_t n_segments, const struct pvs_segment_conf *segments)
{
    return (struct pvs_tunnel_conf){ .kind = t->conf.kind,
                                     .endpoint = t->endpoint,
                                     .learning = true,
                                     .segmentation = true,
                                     .dst_port = t->port,
                                     .n_sockets = SOURCES,
                                     .sockets = t->source,
                                     .n_segments = n_segments,
                                     .segments = segments };
}

uint32_t
tunnel_lab_add_conf(struct tunnel_lab *t, const struct pvs_tunnel_conf *conf)
{
    uint32_t i = t->lab.n_others++;

    CHECK(i < TUNNELS);
    CHECK_EQ(pvs_tunnel_port_create(t->lab.sw, &t->tunnel[i].port), 0);
    CHECK_EQ(pvs_tunnel_create(t->lab.sw, conf, &t->tunnel[i].tunnel), 0);
    t->tunnel[i].conf = &t->lab.other[i];
    t->lab.other[i] =
        (struct pvs_port_conf){ .port = t->tunnel[i].port, .enabled = true, .tunnel = t->tunnel[i].tunnel };
    return i;
}

uint32_t
tunnel_lab_add(struct tunnel_lab *t, uint32_t vni)
{
    struct pvs_segment_conf segment = { .vni = vni, .vid = PVS_UNMAPPED };
    struct pvs_tunnel_conf conf = tunnel_lab_tunnel(t, 1, &segment);

    return tunnel_lab_add_conf(t, &conf);
}

void
tunnel_lab_remove(struct tunnel_lab *t)
{
    uint32_t i = --t->lab.n_others;

    lab_publish(&t->lab);
    pvs_tunnel_destroy(t->tunnel[i].tunnel);
    lab_check_records(&t->lab, t->tunnel[i].port);
    CHECK_EQ(pvs_port_destroy(t->tunnel[i].port), 0);
}

void
tunnel_lab_flood(struct tunnel_lab *t, uint32_t tunnel, uint32_t segment, uint32_t n)
{
    uint16_t flood[FARS];

    for (uint32_t i = 0; i < n; i++)
        flood[i] = t->far[i].number;
    CHECK_EQ(lab_wait(&t->lab, pvs_tunnel_set_remotes(t->tunnel[tunnel].tunnel, segment, flood, n, NULL, 0)), 0);
}

const uint8_t *
tunnel_lab_address(uint32_t i)
{
    static uint8_t address[16] = { [10] = 0xff, [11] = 0xff, [12] = 127 };

    address[14] = (uint8_t)((2 + i) >> 8);
    address[15] = (uint8_t)(2 + i);
    return address;
}

uint16_t
tunnel_lab_vtep(struct tunnel_lab *t, uint32_t i)
{
    uint32_t number;

    CHECK_EQ(pvs_vtep_add(t->lab.sw, tunnel_lab_address(i), &number), 0);
    return (uint16_t)number;
}

/* ---- the far side ---- */

void
far_send_bytes(struct tunnel_lab *t, uint32_t far, const uint8_t *packet, uint32_t len, uint16_t cut, int tos)
{
    _Alignas(16) uint8_t control[64] = { 0 };
    struct sockaddr_in to = host(1, t->port);
    struct iovec part = { .iov_base = (void *)(uintptr_t)packet, .iov_len = len };
    struct msghdr m = { .msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &part, .msg_iovlen = 1 };

    m.msg_control = control;
    m.msg_controllen = sizeof control;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){ .cmsg_level = IPPROTO_IP, .cmsg_type = IP_TOS, .cmsg_len = CMSG_LEN(sizeof tos) };
    memcpy(CMSG_DATA(c), &tos, sizeof tos);
    m.msg_controllen = CMSG_SPACE(sizeof tos);
    if (cut != 0) {
        c = (struct cmsghdr *)(void *)(control + m.msg_controllen);
        *c = (struct cmsghdr){ .cmsg_level = IPPROTO_UDP, .cmsg_type = UDP_SEGMENT, .cmsg_len = CMSG_LEN(sizeof cut) };
        memcpy(CMSG_DATA(c), &cut, sizeof cut);
        m.msg_controllen += CMSG_SPACE(sizeof cut);
    }
    CHECK_EQ(sendmsg(t->far[far].fd, &m, 0), len);
}

void
far_send(struct tunnel_lab *t, uint32_t far, uint64_t vni, const uint8_t *frame, uint32_t len)
{
    static uint8_t packet[OUTER_MOST + PVS_MAX_FRAME];
    uint32_t header = pvs_outer_write(t->conf.kind, vni, packet);

    memcpy(packet + header, frame, len);
    far_send_bytes(t, far, packet, header + len, 0, 0);
}

static void
read_control(struct msghdr *m, uint8_t *tos, uint16_t *to)
{
    far_cut = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
        struct in_pktinfo info;
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS && tos != NULL)
            *tos = *CMSG_DATA(c);
        if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO)
            memcpy(&far_cut, CMSG_DATA(c), sizeof(int));
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO && to != NULL) {
            memcpy(&info, CMSG_DATA(c), sizeof info);
            *to = (uint16_t)ntohl(info.ipi_addr.s_addr);
        }
    }
}

int
far_receive(struct tunnel_lab *t, uint32_t far, uint8_t *packet, uint32_t cap, uint8_t *tos, uint16_t *to)
{
    static uint8_t received[OUTER_MOST + PVS_MAX_FRAME];
    _Alignas(16) uint8_t control[128];
    struct sockaddr_in from;
    struct iovec part = { .iov_base = received, .iov_len = sizeof received };
    struct msghdr m = { .msg_name = &from,
                        .msg_namelen = sizeof from,
                        .msg_iov = &part,
                        .msg_iovlen = 1,
                        .msg_control = control,
                        .msg_controllen = sizeof control };
    ssize_t n = recvmsg(t->far[far].fd, &m, 0);

    CHECK(n >= 0 || errno == EAGAIN);
    if (n < 0)
        return -EAGAIN;
    uint32_t skip = t->conf.kind == PVS_GRE ? (received[0] & 0xfU) * 4 : 0;
    CHECK((uint32_t)n >= skip && (uint32_t)n - skip <= cap);
    memcpy(packet, received + skip, (uint32_t)n - skip);
    CHECK_EQ(ntohl(from.sin_addr.s_addr), 0x7f000001);
    far_source_port = ntohs(from.sin_port);
    read_control(&m, tos, to);
    return (int)n - (int)skip;
}

void
far_expect(struct tunnel_lab *t, uint32_t far, uint64_t vni, const uint8_t *frame, uint32_t len)
{
    static uint8_t got[OUTER_MOST + PVS_MAX_FRAME];
    uint8_t header[OUTER_MOST];
    uint32_t header_len = pvs_outer_write(t->conf.kind, vni, header);

    CHECK_EQ(far_receive(t, far, got, sizeof got, NULL, NULL), header_len + len);
    CHECK(memcmp(got, header, header_len) == 0);
    CHECK(memcmp(got + header_len, frame, len) == 0);
}

void
far_expect_nothing(struct tunnel_lab *t, uint32_t far)
{
    static uint8_t got[OUTER_MOST + PVS_MAX_FRAME];

    CHECK_EQ(far_receive(t, far, got, sizeof got, NULL, NULL), -EAGAIN);
}

struct lab_counters
tunnel_lab_counters(const struct tunnel_lab *t, uint32_t tunnel)
{
    return lab_counters_of(t->tunnel[tunnel].port);
}

struct lab_counters
tunnel_lab_endpoint(const struct tunnel_lab *t)
{
    return lab_counters_of(t->endpoint);
}
