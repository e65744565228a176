/* SPDX-License-Identifier: Apache-2.0 */
/* port_tunnel.c - see port_tunnel.h. */
#include "port_tunnel.h"

#include <errno.h>
#include <netinet/udp.h>
#include <string.h>

#include "port_uplink.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103 /* linux/udp.h */
#endif

/* ---- into the outbox ---- */

/* The payload's parts; of one that lies in too many, it is put together. */
static uint32_t
take_payload(struct pvs_tunnel_outbox *box, struct pvs_pieces *pieces)
{
    struct iovec *part = box->part + box->n_parts;
    uint32_t n = pvs_piece_parts(pieces, part, PVS_PACKET_PARTS);

    if (n <= PVS_PACKET_PARTS)
        return n;
    struct pvs_seg all = { .base = box->bounce, .len = pieces->len };
    struct pvs_cursor c = { .seg = &all, .n = 1 };
    pvs_piece_write(pieces, &c, 0);
    box->bounced = true;
    *part = (struct iovec){ .iov_base = box->bounce + pieces->head_len, .iov_len = pieces->len - pieces->head_len };
    return 1;
}

void
pvs_tunnel_put(struct pvs_tunnel_outbox *box, struct pvs_tunnel *tunnel, const struct pvs_segment *segment,
               uint16_t port, struct pvs_pieces *pieces, const uint16_t *vtep, uint32_t n, uint32_t source)
{
    struct pvs_packet *p = &box->packet[box->n_packets];
    uint32_t outer = pvs_outer_write(tunnel->kind, segment->vni, p->head);

    box->frame[box->n_packets++] = pieces->frame;
    p->tunnel = tunnel;
    p->port = port;
    p->len = pieces->len;
    p->tos = pvs_outer_tos(pieces->frame, tunnel->tos);
    p->part = (uint16_t)box->n_parts;
    p->n_parts = (uint16_t)take_payload(box, pieces);
    box->n_parts += p->n_parts;
    /* after the payload: its sum belongs into the head */
    memcpy(p->head + outer, pieces->head, pieces->head_len);
    p->head_len = (uint16_t)(outer + pieces->head_len);
    p->size = outer + pieces->len;
    p->fd = tunnel->socket[source % tunnel->n_sockets];
    p->n_vteps = n;
    p->one = vtep[0];
    p->vtep = n == 1 ? &p->one : vtep;
}

void
pvs_packet_frame(const struct pvs_tunnel_outbox *box, const struct pvs_packet *packet, struct pvs_frame *frame,
                 struct pvs_seg *seg)
{
    uint32_t outer = packet->size - packet->len;

    pvs_frame_from_piece(frame, box->frame[packet - box->packet], packet->head + outer, packet->head_len - outer,
                         packet->len);
    frame->seg = seg;
    frame->n_seg = pvs_frame_segs(seg, box->part + packet->part, packet->n_parts);
}

/* ---- out of it ---- */

static bool
go_together(const struct pvs_packet *a, const struct pvs_packet *b)
{
    return a->fd == b->fd && a->n_vteps == b->n_vteps && (a->n_vteps == 1 ? a->one == b->one : a->vtep == b->vtep);
}

/* Put those together that go by one socket to the same VTEPs, as they came; the group whose first one came first goes first. */
static void
sort(struct pvs_tunnel_outbox *box)
{
    const struct pvs_packet *p = box->packet;
    uint8_t leader[PVS_PACKETS];
    uint32_t n = 0;

    for (uint8_t i = 0; i < box->n_packets; i++) {
        uint8_t first = i != 0 && go_together(&p[i - 1], &p[i]) ? leader[i - 1] : 0;
        while (first < i && !go_together(&p[first], &p[i]))
            first++;
        leader[i] = first;
    }
    for (uint32_t i = 0; i < box->n_packets; i++)
        for (uint32_t k = i; leader[i] == i && k < box->n_packets; k++)
            if (leader[k] == i)
                box->order[n++] = (uint8_t)k;
}

static const struct pvs_packet *
packet_at(const struct pvs_tunnel_outbox *box, uint32_t place)
{
    return &box->packet[box->order[place]];
}

/* May the packet at `end` be in one message with those from `first` on, which have `size` bytes? */
static bool
goes_with(const struct pvs_tunnel_outbox *box, uint32_t first, uint32_t end, uint32_t size)
{
    const struct pvs_packet *p = packet_at(box, end), *before = packet_at(box, end - 1), *q = packet_at(box, first);

    return p->tunnel == q->tunnel && p->tos == q->tos && before->size == q->size && p->size <= q->size &&
           end - first < PVS_CUT_MAX && size + p->size <= PVS_DATAGRAM_MAX;
}

/* Name the bytes of the packets from `first` to `end`, one message after the other; how many these are. */
static uint32_t
make_runs(struct pvs_tunnel_outbox *box, uint32_t first, uint32_t end)
{
    bool together = atomic_load_explicit(&packet_at(box, first)->tunnel->segmentation, memory_order_relaxed);
    uint32_t n = 0, n_parts = 0, size = 0;

    for (uint32_t i = first; i < end; i++) {
        const struct pvs_packet *p = packet_at(box, i);
        struct pvs_run *run = n == 0 ? NULL : &box->run[n - 1];
        if (run == NULL || !together || !goes_with(box, run->first, i, size)) {
            run = &box->run[n++];
            *run = (struct pvs_run){ .first = i, .part = n_parts };
            size = 0;
        }
        run->end = i + 1;
        run->n_parts += 1U + p->n_parts;
        size += p->size;
        box->gathered[n_parts++] = (struct iovec){ .iov_base = (void *)(uintptr_t)p->head, .iov_len = p->head_len };
        memcpy(box->gathered + n_parts, box->part + p->part, p->n_parts * sizeof box->part[0]);
        n_parts += p->n_parts;
    }
    return n;
}

static void
control_add(struct msghdr *header, int level, int type, const void *value, size_t len)
{
    struct cmsghdr *c = (struct cmsghdr *)(void *)((uint8_t *)header->msg_control + header->msg_controllen);

    c->cmsg_level = level;
    c->cmsg_type = type;
    c->cmsg_len = CMSG_LEN(len);
    memcpy(CMSG_DATA(c), value, len);
    header->msg_controllen += CMSG_SPACE(len);
}

/* What differs from the socket's own: the TOS, and into how large pieces the kernel is to cut (0: it isn't). */
static void
set_control(struct msghdr *header, uint8_t *control, const struct pvs_packet *p, uint16_t cut)
{
    int tos = p->tos;

    header->msg_control = control;
    header->msg_controllen = 0;
    if (tos != 0 && p->tunnel->ipv6)
        control_add(header, IPPROTO_IPV6, IPV6_TCLASS, &tos, sizeof tos);
    else if (tos != 0)
        control_add(header, IPPROTO_IP, IP_TOS, &tos, sizeof tos);
    if (cut != 0)
        control_add(header, IPPROTO_UDP, UDP_SEGMENT, &cut, sizeof cut);
    if (header->msg_controllen == 0)
        header->msg_control = NULL;
}

/* Make message number `i` of these packets, for a VTEP with this address. */
static void
make_message(struct pvs_tunnel_outbox *box, uint32_t i, const struct pvs_run *run, const uint8_t *to)
{
    struct msghdr *header = &box->message[i].msg_hdr;
    const struct pvs_packet *p = packet_at(box, run->first);
    const struct pvs_tunnel *tunnel = p->tunnel;
    /* GRE has no ports, and a raw socket of IPv6 takes one for a protocol */
    uint16_t port = tunnel->kind == PVS_GRE ? 0 : __builtin_bswap16(tunnel->dst_port);

    *header =
        (struct msghdr){ .msg_iov = box->gathered + run->part, .msg_iovlen = run->n_parts, .msg_name = &box->to[i] };
    if (tunnel->ipv6) {
        box->to[i].v6 = (struct sockaddr_in6){ .sin6_family = AF_INET6, .sin6_port = port };
        memcpy(&box->to[i].v6.sin6_addr, to, PVS_ADDRESS);
        header->msg_namelen = sizeof(struct sockaddr_in6);
    } else {
        box->to[i].v4 = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = port };
        memcpy(&box->to[i].v4.sin_addr, to + 12, sizeof box->to[i].v4.sin_addr);
        header->msg_namelen = sizeof(struct sockaddr_in);
    }
    set_control(header, box->control[i], p, run->end - run->first > 1 ? (uint16_t)p->size : 0);
}

/* Packets on their way to one list of VTEPs, and who is told. */
struct sending {
    struct pvs_tunnel_outbox *box;
    const struct pvs_vteps *vteps;
    pvs_tunnel_told *told;
    void *context;
};

static void
tell(const struct sending *s, const struct pvs_run *run, uint16_t vtep, enum pvs_drop drop)
{
    for (uint32_t i = run->first; i < run->end; i++)
        s->told(s->context, packet_at(s->box, i), vtep, drop);
}

/* The kernel would not take several as one: it can't, or not of this size on this way; or one of them is in memory that has gone. */
static bool
refused_together(int error)
{
    return error == EFAULT || error == EINVAL || error == EMSGSIZE || error == EIO || error == EOPNOTSUPP ||
           error == ENOPROTOOPT;
}

/* One message was refused: its packets go nowhere, or each by itself. */
static void
refused(const struct sending *s, const struct pvs_run *run, uint16_t vtep, const struct msghdr *message, int error)
{
    struct pvs_tunnel_outbox *box = s->box;
    struct pvs_tunnel *tunnel = packet_at(box, run->first)->tunnel;
    struct pvs_run one = { .part = run->part };

    if (error == EFAULT)
        pvs_message_touch(message);
    if (run->end - run->first == 1 || !refused_together(error)) {
        atomic_store_explicit(&tunnel->error, (uint32_t)error, memory_order_relaxed);
        tell(s, run, vtep, pvs_uplink_drop_of(error));
        return;
    }
    if (error == EIO || error == EOPNOTSUPP || error == ENOPROTOOPT)
        atomic_store_explicit(&tunnel->segmentation, false, memory_order_relaxed);
    for (one.first = run->first; one.first < run->end; one.first++, one.part += one.n_parts) {
        const struct pvs_packet *p = packet_at(box, one.first);
        one.end = one.first + 1;
        one.n_parts = 1U + p->n_parts;
        make_message(box, 0, &one, pvs_vtep_address(s->vteps, vtep));
        if (sendmsg(p->fd, &box->message[0].msg_hdr, MSG_DONTWAIT) >= 0)
            tell(s, &one, vtep, PVS_DROP_none);
        else
            refused(s, &one, vtep, &box->message[0].msg_hdr, errno);
    }
}

/* Send the packets from `first` to `end`, which go by one socket to the same VTEPs. */
static void
send_group(const struct sending *s, uint32_t first, uint32_t end)
{
    struct pvs_tunnel_outbox *box = s->box;
    const struct pvs_packet *p = packet_at(box, first);
    uint32_t n_runs = make_runs(box, first, end);

    for (uint64_t done = 0, total = (uint64_t)n_runs * p->n_vteps; done < total;) {
        uint32_t n = total - done < PVS_SENT_AT_ONCE ? (uint32_t)(total - done) : PVS_SENT_AT_ONCE;
        for (uint32_t i = 0; i < n; i++)
            make_message(box, i, &box->run[(done + i) % n_runs],
                         pvs_vtep_address(s->vteps, p->vtep[(done + i) / n_runs]));
        int sent = sendmmsg(p->fd, box->message, n, MSG_DONTWAIT), error = errno;
        for (int i = 0; i < sent; i++, done++)
            tell(s, &box->run[done % n_runs], p->vtep[done / n_runs], PVS_DROP_none);
        if (sent > 0)
            continue;
        /* with a full socket those behind it have no chance either */
        uint64_t lost = error == EAGAIN ? total : done + 1;
        for (; done < lost; done++)
            refused(s, &box->run[done % n_runs], p->vtep[done / n_runs], &box->message[0].msg_hdr, error);
    }
}

void
pvs_tunnel_send(struct pvs_tunnel_outbox *box, const struct pvs_vteps *vteps, pvs_tunnel_told *told, void *context)
{
    const struct sending s = { .box = box, .vteps = vteps, .told = told, .context = context };

    sort(box);
    for (uint32_t first = 0, end; first < box->n_packets; first = end) {
        const struct pvs_packet *p = packet_at(box, first);
        for (end = first + 1; end < box->n_packets; end++)
            if (!go_together(p, packet_at(box, end)))
                break;
        send_group(&s, first, end);
    }
}
