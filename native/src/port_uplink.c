/* SPDX-License-Identifier: Apache-2.0 */
/* port_uplink.c - see port_uplink.h for how it works and who may call it. */
#include "port_uplink.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/sock_diag.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "parse.h"

/* The kernel may ask for anything: what it segments and sums is checked as a guest's frames are. */
enum { EVERY_OFFLOAD = PVS_OFFLOAD_CSUM | PVS_OFFLOAD_TSO4 | PVS_OFFLOAD_TSO6 | PVS_OFFLOAD_ECN };
enum { EVERY_USO = PVS_OFFLOAD_USO4 | PVS_OFFLOAD_USO6 };
enum { PAGE = 4096 };

/* ---- life ---- */

/* Where each message of a burst is to be put; what a call changes is set anew by who receives. */
static void
lay_out(struct pvs_uplink_buffers *in, uint32_t kind)
{
    for (uint32_t i = 0; i < PVS_UPLINK_BURST; i++) {
        if (kind == PVS_ENDPOINT) {
            in->part[i][0] = (struct iovec){ .iov_base = in->slot[i], .iov_len = PVS_UPLINK_SLOT };
            in->message[i].msg_hdr = (struct msghdr){
                .msg_iov = in->part[i], .msg_iovlen = 1, .msg_control = in->control[i], .msg_name = &in->from[i]
            };
            continue;
        }
        in->part[i][0] = (struct iovec){ .iov_base = &in->header[i], .iov_len = PVS_UPLINK_HEADER };
        in->part[i][1] = (struct iovec){ .iov_base = in->frame[i].head, .iov_len = PVS_HEAD };
        in->part[i][2] = (struct iovec){ .iov_base = in->slot[i], .iov_len = PVS_UPLINK_SLOT };
        in->message[i].msg_hdr =
            (struct msghdr){ .msg_iov = in->part[i], .msg_iovlen = 3, .msg_control = in->control[i] };
    }
}

int
pvs_uplink_attach(struct pvs_uplink *u, const struct pvs_uplink_conf *conf)
{
    int flags = fcntl(conf->fd, F_GETFL);
    if (flags < 0)
        return -errno;
    if (conf->kind > PVS_ENDPOINT || conf->tunnel > PVS_GRE ||
        (flags & O_NONBLOCK) == 0) /* a worker must never block in it */
        return -EINVAL;
    void *map = mmap(NULL, sizeof *u->in, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return -errno;
    u->in = map;
    lay_out(u->in, conf->kind);
    u->fd = conf->fd;
    u->kind = (uint8_t)conf->kind;
    u->tunnel = (uint8_t)conf->tunnel;
    u->offloads = conf->kind == PVS_FILE ? 0 : EVERY_OFFLOAD | (conf->uso ? EVERY_USO : 0);
    u->n = u->done = 0;
    u->drained = u->lost_some = false;
    u->overrun_seen_s = u->overruns = 0;
    if (conf->kind == PVS_ENDPOINT)
        pvs_uplink_overrun(u); /* what was before isn't ours */
    atomic_store_explicit(&u->full_since_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&u->error, 0, memory_order_relaxed);
    return 0;
}

void
pvs_uplink_detach(struct pvs_uplink *u)
{
    if (u->in != NULL)
        munmap(u->in, sizeof *u->in);
    u->in = NULL;
    u->fd = -1;
}

static void
note_error(struct pvs_uplink *u, int error)
{
    atomic_store_explicit(&u->error, (uint32_t)error, memory_order_relaxed);
}

/* ---- from the kernel ---- */

/* IEEE 802.1Q, 9: put the tag back that the kernel took out. The head has room: it was filled up to PVS_HEAD. */
static void
restore_tag(struct pvs_frame *frame, struct virtio_net_hdr *header, uint16_t tpid, uint16_t tci)
{
    uint8_t *at = frame->head + 12;

    memmove(at + PVS_VLAN_HLEN, at, (size_t)(frame->head_len - 12));
    at[0] = (uint8_t)(tpid >> 8);
    at[1] = (uint8_t)tpid;
    at[2] = (uint8_t)(tci >> 8);
    at[3] = (uint8_t)tci;
    frame->head_len = (uint16_t)(frame->head_len + PVS_VLAN_HLEN);
    frame->len += PVS_VLAN_HLEN;
    header->csum_start = (uint16_t)(header->csum_start + PVS_VLAN_HLEN);
}

static void
restore_stripped_tag(struct pvs_frame *frame, struct virtio_net_hdr *header, struct msghdr *message)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL; c = CMSG_NXTHDR(message, c)) {
        struct tpacket_auxdata aux;
        if (c->cmsg_level != SOL_PACKET || c->cmsg_type != PACKET_AUXDATA || c->cmsg_len < CMSG_LEN(sizeof aux))
            continue;
        memcpy(&aux, CMSG_DATA(c), sizeof aux);
        if (aux.tp_status & TP_STATUS_VLAN_VALID)
            restore_tag(frame, header, aux.tp_status & TP_STATUS_VLAN_TPID_VALID ? aux.tp_vlan_tpid : ETHERTYPE_8021Q,
                        aux.tp_vlan_tci);
    }
}

/* Make frame `i` of what was received: `size` bytes, the header included. */
static void
take_frame(struct pvs_uplink *u, uint32_t i, size_t size)
{
    struct pvs_uplink_buffers *in = u->in;
    struct pvs_frame *frame = &in->frame[i];

    frame->chain = 0;
    frame->in_ref = u->queue.port->ref;
    frame->pair = (uint8_t)u->queue.index;
    frame->injected = false;
    frame->n_seg = 0;
    frame->seg = &in->tail[i];
    frame->len = size > PVS_UPLINK_HEADER ? (uint32_t)size - PVS_UPLINK_HEADER : 0;
    frame->malformed = frame->len < PVS_ETH_HLEN || frame->len > PVS_MAX_FRAME - PVS_VLAN_HLEN;
    if (frame->malformed) {
        frame->head_len = 0;
        return;
    }
    frame->head_len = (uint16_t)(frame->len < PVS_HEAD ? frame->len : PVS_HEAD);
    if (frame->len > PVS_HEAD) {
        in->tail[i] = (struct pvs_seg){ .base = in->slot[i], .len = frame->len - PVS_HEAD };
        frame->n_seg = 1;
    }
    if (u->kind == PVS_PACKET)
        restore_stripped_tag(frame, &in->header[i], &in->message[i].msg_hdr);
    frame->malformed = !pvs_parse(frame) || !pvs_offload_check(frame, &in->header[i], EVERY_OFFLOAD | EVERY_USO);
}

/* The kernel had a frame that it can't describe by a virtio-net header, like a tunnel's segments. It is lost. */
static void
take_nothing(struct pvs_uplink *u, uint32_t i)
{
    u->in->frame[i].malformed = true;
    u->in->frame[i].head_len = 0;
    u->in->frame[i].in_ref = u->queue.port->ref;
}

static uint32_t
read_tap(struct pvs_uplink *u)
{
    uint32_t n = 0;

    for (size_t bytes = 0; n < PVS_UPLINK_BURST && bytes < PVS_UPLINK_BYTES; n++) {
        ssize_t size = readv(u->fd, u->in->part[n], 3);
        if (size < 0 && errno == EINVAL) {
            take_nothing(u, n);
            continue;
        }
        if (size <= 0) {
            u->drained = true;
            if (size == 0 || errno != EAGAIN)
                note_error(u, size == 0 ? ENODEV : errno);
            break;
        }
        take_frame(u, n, (size_t)size);
        bytes += (size_t)size;
    }
    return n;
}

static int
receive(struct pvs_uplink *u)
{
    struct pvs_uplink_buffers *in = u->in;

    for (uint32_t i = 0; i < PVS_UPLINK_BURST; i++) {
        in->message[i].msg_hdr.msg_controllen = sizeof in->control[i];
        in->message[i].msg_hdr.msg_flags = 0;
    }
    return recvmmsg(u->fd, in->message, PVS_UPLINK_BURST, MSG_DONTWAIT, NULL);
}

static uint32_t
receive_messages(struct pvs_uplink *u)
{
    int n = receive(u);

    if (n < 0 && errno != EAGAIN && errno != EINVAL) {
        note_error(u, errno);
        n = receive(u); /* an error that a socket has told is over: there may be frames behind it */
    }
    if (n < 0 && errno == EINVAL) {
        take_nothing(u, 0);
        return 1;
    }
    u->drained = n < 0; /* a burst that isn't full may have been ended by an error, which the next call tells */
    u->lost_some |= n == PVS_UPLINK_BURST;
    for (int i = 0; i < n; i++)
        take_frame(u, (uint32_t)i, u->in->message[i].msg_len);
    return n < 0 ? 0 : (uint32_t)n;
}

uint32_t
pvs_uplink_fetch(struct pvs_uplink *u)
{
    u->drained = false;
    u->done = 0;
    u->n = u->kind == PVS_TAP ? read_tap(u) : receive_messages(u);
    return u->n;
}

/* Of a UDP or raw socket the kernel tells how many it has dropped in all, those with wrong checksums among them. */
static uint32_t
endpoint_overrun(struct pvs_uplink *u)
{
    uint32_t info[SK_MEMINFO_VARS] = { 0 }, before = u->overruns;
    socklen_t len = sizeof info;

    if (getsockopt(u->fd, SOL_SOCKET, SO_MEMINFO, info, &len) != 0)
        return 0;
    u->overruns = info[SK_MEMINFO_DROPS];
    return u->overruns - before;
}

uint32_t
pvs_uplink_overrun(struct pvs_uplink *u)
{
    struct tpacket_stats stats; /* since it was last read */
    socklen_t len = sizeof stats;

    u->lost_some = false;
    if (u->kind == PVS_ENDPOINT)
        return endpoint_overrun(u);
    if (u->kind != PVS_PACKET || getsockopt(u->fd, SOL_PACKET, PACKET_STATISTICS, &stats, &len) != 0)
        return 0;
    return stats.tp_drops;
}

/* ---- to the kernel ---- */

void
pvs_outbox_put(struct pvs_outbox *box, struct pvs_pieces *pieces)
{
    uint32_t i = box->n++;
    struct iovec *part = box->part[i];

    box->len[i] = pieces->len;
    box->frame[i] = pieces->frame;
    uint32_t parts = pvs_piece_parts(pieces, part + 2, PVS_OUTBOX_PARTS);
    if (parts <= PVS_OUTBOX_PARTS) {
        box->header[i] = pieces->header;
        memcpy(box->head[i], pieces->head, pieces->head_len);
        part[0] = (struct iovec){ .iov_base = &box->header[i], .iov_len = PVS_UPLINK_HEADER };
        part[1] = (struct iovec){ .iov_base = box->head[i], .iov_len = pieces->head_len };
        parts += 2;
    } else {
        struct pvs_seg all = { .base = box->bounce, .len = PVS_UPLINK_HEADER + pieces->len };
        struct pvs_cursor c = { .seg = &all, .n = 1 };
        pvs_piece_write(pieces, &c, PVS_UPLINK_HEADER);
        box->bounced = true;
        part[0] = (struct iovec){ .iov_base = box->bounce, .iov_len = all.len };
        parts = 1;
    }
    box->message[i].msg_hdr = (struct msghdr){ .msg_iov = part, .msg_iovlen = parts };
}

void
pvs_outbox_frame(const struct pvs_outbox *box, uint32_t i, struct pvs_frame *frame, struct pvs_seg *seg)
{
    const struct iovec *part = box->part[i], *end = part + box->message[i].msg_hdr.msg_iovlen;
    bool bounced = end - part == 1;
    uint32_t room = box->len[i] < PVS_HEAD ? box->len[i] : PVS_HEAD;
    uint32_t head_len = bounced ? room : (uint32_t)part[1].iov_len;

    pvs_frame_from_piece(frame, box->frame[i], bounced ? box->bounce + PVS_UPLINK_HEADER : box->head[i], head_len,
                         box->len[i]);
    /* what is bounced begins with the header, and that with its flags */
    frame->request.checksum = ((bounced ? box->bounce[0] : box->header[i].flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0;
    frame->seg = seg;
    if (bounced) {
        seg[0] = (struct pvs_seg){ .base = (uint8_t *)(uintptr_t)(box->bounce + PVS_UPLINK_HEADER + head_len),
                                   .len = box->len[i] - head_len };
        frame->n_seg = seg[0].len != 0;
    } else {
        frame->n_seg = pvs_frame_segs(seg, part + 2, (uint32_t)(end - part) - 2);
    }
}

/*
 * The kernel could not read a payload: the file behind its sender's memory was truncated. It doesn't say whose, so it is
 * read here, where the SIGBUS handler finds out (guest_memory.h).
 */
void
pvs_message_touch(const struct msghdr *message)
{
    for (size_t i = 0; i < message->msg_iovlen; i++) {
        const volatile uint8_t *base = message->msg_iov[i].iov_base;
        size_t len = message->msg_iov[i].iov_len;
        for (size_t at = 0; at < len; at += PAGE)
            (void)base[at];
        if (len != 0)
            (void)base[len - 1];
    }
}

enum pvs_drop
pvs_uplink_drop_of(int error)
{
    switch (error) {
    case EAGAIN:
    case ENOBUFS:
    case ENOMEM:
        return PVS_DROP_uplink_tx_full;
    case EIO: /* of a tap: it is not up */
    case EBADFD:
    case ENETDOWN:
    case ENODEV:
    case ENXIO:
        return PVS_DROP_link_down;
    case EMSGSIZE:
        return PVS_DROP_mtu_exceeded;
    case ENETUNREACH: /* of a socket of IP */
    case EHOSTUNREACH:
        return PVS_DROP_no_route;
    default:
        return PVS_DROP_uplink_refused;
    }
}

/* How many of `n` messages were sent; -1 with errno when the first was not. A tap has no call for several. */
static int
send_messages(const struct pvs_uplink *u, struct mmsghdr *message, uint32_t n)
{
    if (u->kind != PVS_TAP)
        return sendmmsg(u->fd, message, n, MSG_DONTWAIT);
    return writev(u->fd, message->msg_hdr.msg_iov, (int)message->msg_hdr.msg_iovlen) < 0 ? -1 : 1;
}

enum pvs_drop
pvs_outbox_send(struct pvs_outbox *box)
{
    struct pvs_uplink *u = box->uplink;
    bool again = u->kind == PVS_PACKET; /* a socket may tell an error that belongs to an earlier call, once */

    box->stuck = false;
    while (box->sent < box->n) {
        struct mmsghdr *message = &box->message[box->sent];
        int n = send_messages(u, message, box->n - box->sent);
        if (n >= 0) {
            box->sent += (uint32_t)n;
            continue;
        }
        int error = errno;
        enum pvs_drop drop = pvs_uplink_drop_of(error);
        if (error == EFAULT) {
            pvs_message_touch(&message->msg_hdr);
        } else if (again && (drop == PVS_DROP_link_down || drop == PVS_DROP_uplink_refused)) {
            again = false;
            continue;
        }
        box->stuck = error == EAGAIN || drop == PVS_DROP_link_down;
        if (drop == PVS_DROP_link_down)
            note_error(u, error);
        return drop;
    }
    return PVS_DROP_none;
}
