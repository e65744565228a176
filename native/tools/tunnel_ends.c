/* SPDX-License-Identifier: Apache-2.0 */
/* tunnel_ends.c - see tunnel_ends.h. */
#include "tunnel_ends.h"

#include <arpa/inet.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef UDP_GRO
#define UDP_GRO 104 /* linux/udp.h */
#endif

enum { BUFFER = 4 << 20, VNI = 100 };

static struct {
    pvs_port *endpoint, *port;
    pvs_tunnel *tunnel;
    struct sockaddr_in address;
    int fd;
} end[TUNNEL_ENDS];

static void
open_socket(uint32_t i)
{
    int one = 1, buffer = BUFFER;
    socklen_t len = sizeof end[i].address;

    end[i].address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + i) };
    end[i].fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    CHECK_EQ(bind(end[i].fd, (struct sockaddr *)&end[i].address, len), 0);
    CHECK_EQ(getsockname(end[i].fd, (struct sockaddr *)&end[i].address, &len), 0);
    CHECK_EQ(setsockopt(end[i].fd, IPPROTO_UDP, UDP_GRO, &one, sizeof one), 0);
    CHECK_EQ(setsockopt(end[i].fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer), 0);
}

/* Each sends by the socket that it receives by, to the other one. */
static void
make_tunnel(struct lab *lab, uint32_t i)
{
    uint32_t far = 1 - i, number;
    uint16_t flood;
    uint8_t address[16] = { [10] = 0xff, [11] = 0xff };
    struct pvs_segment_conf segment = { .vni = VNI, .vid = PVS_UNMAPPED };
    struct pvs_tunnel_conf conf = { .kind = PVS_VXLAN,
                                    .endpoint = end[i].endpoint,
                                    .learning = true,
                                    .segmentation = true,
                                    .tos = -1,
                                    .dst_port = ntohs(end[far].address.sin_port),
                                    .n_sockets = 1,
                                    .sockets = &end[i].fd,
                                    .n_segments = 1,
                                    .segments = &segment };

    memcpy(address + 12, &end[far].address.sin_addr, 4);
    CHECK_EQ(pvs_tunnel_port_create(lab->sw, &end[i].port), 0);
    CHECK_EQ(pvs_tunnel_create(lab->sw, &conf, &end[i].tunnel), 0);
    CHECK_EQ(pvs_vtep_add(lab->sw, address, &number), 0);
    flood = (uint16_t)number;
    CHECK_EQ(lab_wait(lab, pvs_tunnel_set_remotes(end[i].tunnel, 0, &flood, 1, NULL, 0)), 0);
}

void
tunnel_ends_open(struct lab *lab, struct pvs_port_conf *ports)
{
    for (uint32_t i = 0; i < TUNNEL_ENDS; i++) {
        open_socket(i);
        struct pvs_uplink_conf conf = { .kind = PVS_ENDPOINT, .fd = end[i].fd, .tunnel = PVS_VXLAN, .worker = -1 };
        CHECK_EQ(pvs_uplink_create(lab->sw, 1, &end[i].endpoint), 0);
        CHECK_EQ(lab_wait(lab, pvs_uplink_start(end[i].endpoint, 0, &conf)), 0);
    }
    for (uint32_t i = 0; i < TUNNEL_ENDS; i++) {
        make_tunnel(lab, i);
        ports[i] = (struct pvs_port_conf){
            .port = end[i].port, .bridge = (uint16_t)i, .enabled = true, .tunnel = end[i].tunnel
        };
    }
}

void
tunnel_ends_close(struct lab *lab)
{
    for (uint32_t i = 0; i < TUNNEL_ENDS; i++) {
        pvs_tunnel_destroy(end[i].tunnel);
        CHECK_EQ(pvs_port_destroy(end[i].port), 0);
        CHECK_EQ(lab_wait(lab, pvs_uplink_stop(end[i].endpoint, 0)), 0);
        CHECK_EQ(pvs_port_destroy(end[i].endpoint), 0);
        close(end[i].fd);
    }
}
