/* SPDX-License-Identifier: Apache-2.0 */
/* port_endpoint.c - see port_endpoint.h. */
#include "port_endpoint.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>

#include "coalesce.h"
#include "parse.h"

/* A frame of 1,500 bytes of L3, for where nothing says what a tunnel carries. */
enum { USUAL = 1514 };

#ifndef UDP_GRO
#define UDP_GRO 104 /* linux/udp.h */
#endif

static void
receive(struct pvs_uplink *u)
{
    struct pvs_uplink_buffers *in = u->in;

    for (uint32_t i = 0; i < PVS_UPLINK_BURST; i++) {
        in->message[i].msg_hdr.msg_controllen = sizeof in->control[i];
        in->message[i].msg_hdr.msg_namelen = sizeof in->from[i];
        in->message[i].msg_hdr.msg_flags = 0;
    }
    int n = recvmmsg(u->fd, in->message, PVS_UPLINK_BURST, MSG_DONTWAIT, NULL);
    if (n < 0 && errno != EAGAIN) { /* told once: there may be packets behind it */
        atomic_store_explicit(&u->error, (uint32_t)errno, memory_order_relaxed);
        n = recvmmsg(u->fd, in->message, PVS_UPLINK_BURST, MSG_DONTWAIT, NULL);
    }
    u->drained = n < 0;
    u->lost_some |= n == PVS_UPLINK_BURST;
    in->n_messages = n < 0 ? 0 : (uint32_t)n;
    in->message_at = in->offset = 0;
}

/* What the kernel says of a message besides its bytes. */
static void
read_control(struct msghdr *message, uint32_t size, uint32_t *datagram, uint8_t *tos)
{
    *datagram = size;
    *tos = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL; c = CMSG_NXTHDR(message, c)) {
        int value = 0;
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
            *tos = *CMSG_DATA(c);
            continue;
        }
        if (c->cmsg_len < CMSG_LEN(sizeof value))
            continue;
        memcpy(&value, CMSG_DATA(c), sizeof value);
        if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS)
            *tos = (uint8_t)value;
        else if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO && value > 0 && (uint32_t)value < size)
            *datagram = (uint32_t)value;
    }
}

/* Make message number `message_at` the one at hand. */
static void
open_message(struct pvs_uplink_buffers *in, struct pvs_vteps *vteps, uint32_t now_s)
{
    struct mmsghdr *message = &in->message[in->message_at];
    const struct sockaddr_in6 *from = &in->from[in->message_at];

    read_control(&message->msg_hdr, message->msg_len, &in->datagram, &in->tos);
    if (from->sin6_family == AF_INET6) {
        memcpy(in->address, &from->sin6_addr, sizeof in->address);
    } else {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)(const void *)from;
        memset(in->address, 0, sizeof in->address);
        in->address[10] = in->address[11] = 0xff;
        memcpy(in->address + 12, &v4->sin_addr, sizeof v4->sin_addr);
    }
    in->vtep = pvs_vtep_seen(vteps, in->address, now_s);
}

/* A raw socket of IPv4 gives the IP header as well, which the kernel has checked. */
static uint32_t
skip_ip(const struct pvs_uplink *u, const struct pvs_uplink_buffers *in, const uint8_t *packet, uint32_t len)
{
    bool raw4 = u->tunnel == PVS_GRE && in->from[in->message_at].sin6_family == AF_INET;
    uint32_t header = raw4 && len != 0 ? (packet[0] & 0xfU) * 4 : 0;

    return header < len ? header : len;
}

static void
make_frame(struct pvs_frame *frame, struct pvs_seg *tail, uint8_t *bytes, uint32_t len)
{
    frame->chain = 0;
    frame->pair = 0;
    frame->injected = false;
    frame->n_seg = 0;
    frame->seg = tail;
    frame->len = len;
    frame->head_len = (uint16_t)(len < PVS_HEAD ? len : PVS_HEAD);
    frame->request = (struct pvs_request){ 0 };
    memcpy(frame->head, bytes, frame->head_len);
    if (len > PVS_HEAD) {
        *tail = (struct pvs_seg){ .base = bytes + PVS_HEAD, .len = len - PVS_HEAD };
        frame->n_seg = 1;
    }
    frame->malformed = false;
    pvs_parse(frame);
}

/* Keep a frame: with those before it, whose segment it is, or behind them. */
static void
keep(struct pvs_uplink *u, struct pvs_train *train, struct pvs_frame *frame, uint8_t *bytes)
{
    struct pvs_uplink_buffers *in = u->in;
    const struct pvs_frame *last = u->n == 0 ? NULL : &in->frame[u->n - 1];

    if (last != NULL && train->frame == last && frame->in_ref == last->in_ref && frame->vid == last->vid &&
        frame->vtep == last->vtep && in->n_seg < PVS_ENDPOINT_SEGS && pvs_train_add(train, frame, bytes)) {
        in->n_seg++;
        return;
    }
    pvs_train_end(train);
    in->n_seg++; /* what follows may be joined: its first tail has a place, whether there is one or not */
    u->n++;
    pvs_train_begin(train, frame, bytes);
}

/* Make a frame of a datagram, or say why there is none. */
static enum pvs_drop
take(struct pvs_uplink *u, const struct pvs_demux *demux, struct pvs_vteps *vteps, uint32_t now_s, uint8_t *packet,
     uint32_t len, struct pvs_train *train)
{
    struct pvs_uplink_buffers *in = u->in;
    struct pvs_frame *frame = &in->frame[u->n];
    struct pvs_outer outer;

    uint32_t skipped = skip_ip(u, in, packet, len);
    packet += skipped;
    len -= skipped;
    if (!pvs_outer_read((enum pvs_tunnel_kind)u->tunnel, packet, len, &outer))
        return PVS_DROP_tunnel_malformed;
    const struct pvs_network_entry *e = demux == NULL ? NULL : pvs_demux_find(demux, outer.vni);
    packet += outer.len;
    make_frame(frame, &in->seg[in->n_seg], packet, len - outer.len);
    frame->in_ref = e == NULL ? 0 : e->port_ref;
    if (e == NULL)
        return PVS_DROP_unknown_vni;
    frame->vid = e->segment->vid;
    frame->tun_id = e->segment->vni == PVS_NO_KEY ? 0 : (uint32_t)e->segment->vni;
    frame->vtep = in->vtep;
    if (frame->malformed) { /* counted at its port */
        pvs_train_end(train);
        u->n++;
        return PVS_DROP_none;
    }
    if (!pvs_ecn_inherit(frame, in->tos))
        return PVS_DROP_tunnel_ecn;
    if (frame->vtep == 0 && e->tunnel->learning) {
        frame->vtep = in->vtep = pvs_vtep_learn(vteps, in->address, now_s);
        if (frame->vtep != 0)
            in->fresh[in->n_fresh++] = frame->vtep;
    }
    pvs_unfinished(frame, e->room != 0 ? e->room : USUAL);
    keep(u, train, frame, packet);
    return PVS_DROP_none;
}

uint32_t
pvs_endpoint_fetch(struct pvs_uplink *u, const struct pvs_demux *demux, struct pvs_vteps *vteps, uint32_t now_s,
                   pvs_endpoint_dropped *dropped, void *context)
{
    struct pvs_uplink_buffers *in = u->in;

    struct pvs_train train = { 0 };
    uint32_t bytes = 0;

    u->n = u->done = in->n_fresh = in->n_seg = 0;
    u->drained = false;
    if (in->message_at == in->n_messages)
        receive(u);
    while (u->n < PVS_UPLINK_BURST && in->message_at < in->n_messages && bytes < PVS_ENDPOINT_BYTES &&
           in->n_seg < PVS_ENDPOINT_SEGS) {
        const struct mmsghdr *message = &in->message[in->message_at];
        if (in->offset == 0)
            open_message(in, vteps, now_s);
        uint32_t left = message->msg_len - in->offset, len = in->datagram < left ? in->datagram : left;
        enum pvs_drop drop = PVS_DROP_tunnel_malformed;
        if ((message->msg_hdr.msg_flags & MSG_TRUNC) == 0)
            drop = take(u, demux, vteps, now_s, in->slot[in->message_at] + in->offset, len, &train);
        if (drop != PVS_DROP_none)
            dropped(context, u, drop == PVS_DROP_tunnel_malformed ? NULL : &in->frame[u->n], drop);
        bytes += len;
        in->offset += len;
        if (in->offset == message->msg_len) {
            in->message_at++;
            in->offset = 0;
        }
    }
    pvs_train_end(&train);
    return u->n;
}

void
pvs_endpoint_forget(struct pvs_uplink *u, const struct pvs_vteps *vteps)
{
    struct pvs_uplink_buffers *in = u->in;

    for (uint32_t i = u->done; i < u->n; i++)
        if (!pvs_vtep_is_linked(vteps, in->frame[i].vtep))
            in->frame[i].vtep = 0;
    if (!pvs_vtep_is_linked(vteps, in->vtep))
        in->vtep = 0;
}

uint32_t
pvs_endpoint_run(const struct pvs_frame *frame, uint32_t n)
{
    uint32_t i = 1;

    while (i < n && frame[i].in_ref == frame->in_ref && frame[i].vid == frame->vid && frame[i].vtep == frame->vtep)
        i++;
    return n == 0 ? 0 : i;
}
