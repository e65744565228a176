/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port_tunnel.h - frames on their way out by tunnels: bursts of datagrams.
 *
 * How it works: an outbox collects *packets*: a piece of a frame behind its outer header (head copied, payload named where it lies), with the
 * VTEPs that get it; a flood to many is one packet. When it is sent, those that go by one socket to the same VTEPs are put together, where those of
 * a flow stay in theirs. Neighbours of one size become one message that the kernel cuts (UDP_SEGMENT), once for each VTEP, and the messages of a
 * socket go by as few system calls as can be. The kernel adds UDP and IP headers, and finds the way.
 *
 * Who may call: a worker, on its own outbox. Sockets are shared; the kernel takes care of that.
 */
#ifndef PVS_PORT_TUNNEL_H
#define PVS_PORT_TUNNEL_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "counters.h"
#include "offload.h"
#include "tunnel.h"
#include "vtep.h"

enum { PVS_PACKETS = 64, PVS_PACKET_PARTS = 64, PVS_TUNNEL_PARTS = 1024 };
/* UDP over IPv4 holds no more (RFC 768, RFC 791); of one message the kernel makes no more datagrams. */
enum { PVS_DATAGRAM_MAX = 65507, PVS_CUT_MAX = 64, PVS_SENT_AT_ONCE = 64 };

struct pvs_packet {
    struct pvs_tunnel *tunnel;
    const uint16_t *vtep; /* who gets it: the list of a segment, or */
    uint16_t one;         /* this one */
    uint16_t port;        /* its index */
    uint32_t n_vteps;
    uint32_t len;           /* of the frame in it */
    uint32_t size;          /* of the whole */
    int fd;                 /* the socket it goes by */
    uint16_t part, n_parts; /* of the payload, in `part` of the outbox */
    uint16_t head_len;
    uint8_t tos;
    uint8_t head[PVS_OUTER + PVS_HEAD_EDITED];
};

/* Packets that go as one message. */
struct pvs_run {
    uint32_t first, end;    /* by their place in the order */
    uint32_t part, n_parts; /* in `gathered` */
};

struct pvs_tunnel_outbox {
    uint32_t n_packets, n_parts;
    bool bounced; /* the last packet's payload lies in `bounce`: there is no room for another one */
    struct pvs_packet packet[PVS_PACKETS];
    const struct pvs_frame *frame[PVS_PACKETS]; /* that is in each, or a piece of it */
    struct iovec part[PVS_TUNNEL_PARTS];
    /* while it is sent */
    uint8_t order[PVS_PACKETS];
    struct pvs_run run[PVS_PACKETS];
    struct iovec gathered[PVS_TUNNEL_PARTS + PVS_PACKETS]; /* heads, and what is behind them */
    struct mmsghdr message[PVS_SENT_AT_ONCE];
    union {
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } to[PVS_SENT_AT_ONCE];
    _Alignas(16) uint8_t control[PVS_SENT_AT_ONCE][64];
    uint8_t bounce[PVS_MAX_FRAME + PVS_VLAN_HLEN];
};

/* Is there room for one more packet? */
static inline bool
pvs_tunnel_outbox_takes(const struct pvs_tunnel_outbox *box)
{
    return box->n_packets < PVS_PACKETS && !box->bounced && box->n_parts + PVS_PACKET_PARTS <= PVS_TUNNEL_PARTS;
}

/*
 * Put the piece at hand in, for these VTEPs; there is room. `source`: a number that is the same for all frames of a flow. What it
 * points to, and a list of several VTEPs, must stay until it has been sent.
 */
void pvs_tunnel_put(struct pvs_tunnel_outbox *box, struct pvs_tunnel *tunnel, const struct pvs_segment *segment,
                    uint16_t port, struct pvs_pieces *pieces, const uint16_t *vtep, uint32_t n, uint32_t source);

/* What became of a packet that was to go to a VTEP; none: it has gone. */
typedef void pvs_tunnel_told(void *context, const struct pvs_packet *packet, uint16_t vtep, enum pvs_drop drop);

/* The frame in a packet, over its bytes; `seg` has room for PVS_PACKET_PARTS. */
void pvs_packet_frame(const struct pvs_tunnel_outbox *box, const struct pvs_packet *packet, struct pvs_frame *frame,
                      struct pvs_seg *seg);

/* Try to send all, and tell of each. The outbox is the caller's to clear. */
void pvs_tunnel_send(struct pvs_tunnel_outbox *box, const struct pvs_vteps *vteps, pvs_tunnel_told *told,
                     void *context);

static inline void
pvs_tunnel_outbox_clear(struct pvs_tunnel_outbox *box)
{
    box->n_packets = box->n_parts = 0;
    box->bounced = false;
}

#endif
