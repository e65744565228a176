/* SPDX-License-Identifier: Apache-2.0 */
/* uplink_lab.c - see uplink_lab.h. */
#include "uplink_lab.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "parse.h"

enum { HEADER = 10 };

static struct lab_uplink *
add(struct lab *lab, enum pvs_uplink_kind kind, uint32_t queues)
{
    CHECK(lab->n_uplinks < LAB_UPLINKS && queues <= LAB_QUEUES);
    struct lab_uplink *u = &lab->uplink[lab->n_uplinks++];

    *u = (struct lab_uplink){ .kind = kind, .worker = -1, .uso = true };
    CHECK_EQ(pvs_uplink_create(lab->sw, queues, &u->port), 0);
    u->conf = (struct pvs_port_conf){ .port = u->port, .enabled = true };
    lab_publish(lab);
    return u;
}

uint32_t
lab_uplink_add(struct lab *lab, enum pvs_uplink_kind kind, uint32_t queues)
{
    struct lab_uplink *u = add(lab, kind, queues);
    int type = kind == PVS_TAP ? SOCK_SEQPACKET : SOCK_DGRAM;

    CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR); /* a tap raises none, but the socket in its place does */
    for (uint32_t q = 0; q < queues; q++) {
        int pair[2];
        CHECK_EQ(socketpair(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
        u->fd[q] = pair[0];
        u->wire[q] = pair[1];
        u->open[q] = true;
        lab_uplink_start(lab, lab->n_uplinks - 1, q);
    }
    return lab->n_uplinks - 1;
}

uint32_t
lab_uplink_add_real(struct lab *lab, enum pvs_uplink_kind kind, int fd, int wire)
{
    struct lab_uplink *u = add(lab, kind, 1);

    u->fd[0] = fd;
    u->wire[0] = wire;
    u->open[0] = true;
    lab_uplink_start(lab, lab->n_uplinks - 1, 0);
    return lab->n_uplinks - 1;
}

void
lab_uplink_start(struct lab *lab, uint32_t uplink, uint32_t queue)
{
    struct lab_uplink *u = &lab->uplink[uplink];
    struct pvs_uplink_conf conf = { .kind = u->kind, .fd = u->fd[queue], .uso = u->uso, .worker = u->worker };

    CHECK_EQ(lab_wait(lab, pvs_uplink_start(u->port, queue, &conf)), 0);
    u->running[queue] = true;
}

void
lab_uplink_stop(struct lab *lab, uint32_t uplink, uint32_t queue)
{
    CHECK_EQ(lab_wait(lab, pvs_uplink_stop(lab->uplink[uplink].port, queue)), 0);
    lab->uplink[uplink].running[queue] = false;
}

void
lab_uplink_stop_all(struct lab *lab, uint32_t uplink)
{
    for (uint32_t q = 0; q < LAB_QUEUES; q++)
        if (lab->uplink[uplink].running[q])
            lab_uplink_stop(lab, uplink, q);
}

void
lab_uplink_destroy(struct lab *lab, uint32_t uplink)
{
    struct lab_uplink *u = &lab->uplink[uplink];

    lab_check_records(lab, u->port);
    CHECK_EQ(pvs_port_destroy(u->port), 0);
    for (uint32_t q = 0; q < LAB_QUEUES; q++) {
        if (!u->open[q])
            continue;
        close(u->fd[q]);
        close(u->wire[q]);
    }
}

void
lab_uplink_open(struct lab *lab, uint32_t workers, enum pvs_uplink_kind kind, uint64_t features)
{
    struct lab_conf conf = lab_conf_default(2);
    conf.workers = workers;
    conf.guest.tx_buf_size = 20000;
    conf.guest.features |= features;
    lab_open(lab, &conf);
    for (uint32_t i = 0; i < 2; i++) {
        lab_detach(lab, i);
        lab->port[i].worker = (int32_t)workers - 1;
        lab_attach(lab, i);
    }
    CHECK_EQ(lab_uplink_add(lab, kind, 1), 0);
    lab_know_all(lab);
}

void
lab_uplink_close(struct lab *lab)
{
    for (uint32_t i = 0; i < lab->n_uplinks; i++)
        lab_check_uplink(lab, i);
    lab_check_sums(lab);
    lab_close(lab);
}

void
lab_uplink_room(const struct lab *lab, uint32_t uplink, int bytes)
{
    CHECK_EQ(setsockopt(lab->uplink[uplink].fd[0], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes), 0);
}

void
lab_know_all(struct lab *lab)
{
    uint8_t mac[6];

    for (uint32_t i = 0; i < lab->conf.n_ports; i++) {
        pvs_mac_store(mac, LAB_MAC(i));
        CHECK_EQ(pvs_fdb_set_static(lab->fdb, mac, 0, pvs_port_ref(lab->port[i].port), 0), 0);
    }
    for (uint32_t i = 0; i < lab->n_uplinks; i++) {
        pvs_mac_store(mac, LAB_FAR(i));
        CHECK_EQ(pvs_fdb_set_static(lab->fdb, mac, 0, pvs_port_ref(lab->uplink[i].port), 0), 0);
    }
}

void
lab_wire_send(const struct lab *lab, uint32_t uplink, const struct virtio_net_hdr *header, const uint8_t *frame,
              uint32_t len)
{
    struct virtio_net_hdr nothing = { 0 };
    struct iovec part[2] = { { .iov_base = header != NULL ? (void *)(uintptr_t)header : &nothing, .iov_len = HEADER },
                             { .iov_base = (void *)(uintptr_t)frame, .iov_len = len } };

    CHECK_EQ(writev(lab->uplink[uplink].wire[0], part, 2), HEADER + len);
}

int
lab_wire_receive(const struct lab *lab, uint32_t uplink, struct virtio_net_hdr *header, uint8_t *frame, uint32_t cap)
{
    struct iovec part[2] = { { .iov_base = header, .iov_len = HEADER }, { .iov_base = frame, .iov_len = cap } };
    ssize_t n = readv(lab->uplink[uplink].wire[0], part, 2);

    CHECK(n >= HEADER || (n < 0 && errno == EAGAIN));
    return n < 0 ? -EAGAIN : (int)n - HEADER;
}

void
lab_wire_expect(const struct lab *lab, uint32_t uplink, const uint8_t *frame, uint32_t len)
{
    static uint8_t got[PVS_MAX_FRAME];
    struct virtio_net_hdr header;
    const struct virtio_net_hdr nothing = { 0 };

    CHECK_EQ(lab_wire_receive(lab, uplink, &header, got, sizeof got), len);
    CHECK(memcmp(got, frame, len) == 0);
    CHECK(memcmp(&header, &nothing, HEADER) == 0);
}

void
lab_wire_expect_nothing(const struct lab *lab, uint32_t uplink)
{
    static uint8_t got[PVS_MAX_FRAME];
    struct virtio_net_hdr header;

    CHECK_EQ(lab_wire_receive(lab, uplink, &header, got, sizeof got), -EAGAIN);
}

void
lab_send_up(struct lab *lab, uint32_t from, uint32_t number)
{
    uint8_t frame[LAB_NUMBERED];

    lab_frame(frame, LAB_FAR(0), LAB_MAC(from), sizeof frame, number);
    CHECK_EQ(pvd_tx(lab->port[from].guest, 0, NULL, frame, sizeof frame, NULL), 0);
    CHECK(pvd_kick(lab->port[from].guest, 1) >= 0);
}

void
lab_expect_up(const struct lab *lab, uint32_t from, uint32_t number)
{
    uint8_t frame[LAB_NUMBERED];

    lab_frame(frame, LAB_FAR(0), LAB_MAC(from), sizeof frame, number);
    lab_wire_expect(lab, 0, frame, sizeof frame);
}

void
lab_send_down(const struct lab *lab, uint32_t to, uint32_t number)
{
    uint8_t frame[LAB_NUMBERED];

    lab_frame(frame, LAB_MAC(to), LAB_FAR(0), sizeof frame, number);
    lab_wire_send(lab, 0, NULL, frame, sizeof frame);
}

void
lab_expect_down(struct lab *lab, uint32_t to, uint32_t number)
{
    uint8_t frame[LAB_NUMBERED];

    lab_frame(frame, LAB_MAC(to), LAB_FAR(0), sizeof frame, number);
    lab_expect(lab, to, frame, sizeof frame);
}

int
lab_taken_from(struct lab *lab, uint32_t port)
{
    return pvd_tx_reap(lab->port[port].guest, 0);
}

uint64_t
lab_sent_up(const struct lab *lab)
{
    return lab_uplink_counters(lab, 0).value[PVS_C_tx_packets];
}

uint64_t
lab_dropped_up(const struct lab *lab, enum pvs_drop why)
{
    return lab_uplink_counters(lab, 0).tx_drop[why];
}

struct lab_counters
lab_uplink_counters(const struct lab *lab, uint32_t uplink)
{
    return lab_counters_of(lab->uplink[uplink].port);
}

struct pvs_uplink_status
lab_uplink_status(const struct lab *lab, uint32_t uplink, uint32_t queue)
{
    struct pvs_uplink_status status;
    CHECK_EQ(pvs_uplink_status(lab->uplink[uplink].port, queue, &status), 0);
    return status;
}

void
lab_check_uplink(const struct lab *lab, uint32_t uplink)
{
    struct lab_counters c = lab_uplink_counters(lab, uplink);
    struct pvs_uplink_status sum = { 0 };

    for (uint32_t q = 0; q < LAB_QUEUES; q++) {
        if (!lab->uplink[uplink].open[q])
            continue;
        struct pvs_uplink_status s = lab_uplink_status(lab, uplink, q);
        sum.rx_packets += s.rx_packets;
        sum.rx_bytes += s.rx_bytes;
        sum.tx_packets += s.tx_packets;
        sum.tx_bytes += s.tx_bytes;
    }
    lab_check_sizes(&c);
    CHECK_EQ(sum.rx_packets, c.value[PVS_C_rx_packets]);
    CHECK_EQ(sum.rx_bytes, c.value[PVS_C_rx_bytes]);
    CHECK_EQ(sum.tx_packets, c.value[PVS_C_tx_packets]);
    CHECK_EQ(sum.tx_bytes, c.value[PVS_C_tx_bytes]);
    CHECK_EQ(pvs_port_broken(lab->uplink[uplink].port), 0);
}
