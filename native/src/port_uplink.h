/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port_uplink.h - an uplink: a tap or a packet socket of the kernel, or a socket to a file's reader and writer; and the
 * two movements of a frame through it.
 *
 * How it works: all kinds hand over and take frames behind a virtio-net header of 10 bytes, so that checksums and
 * segments are left to whoever can do them best (linux/if_tun.h IFF_VNET_HDR, linux/if_packet.h PACKET_VNET_HDR).
 * Frames come in bursts into the queue's own buffers: the head straight into the frame's private head, the rest into a
 * slot, from where it is copied once into a guest's buffers. A frame that has to wait stays there. On the way out an
 * *outbox* collects a burst for one queue; the kernel reads head and payload where they are, the payload in the sending
 * guest's memory: nothing is copied in user space. A packet socket takes and gives a burst by one system call; a tap has
 * none for that (its batching is segmentation).
 * A packet socket strips the outer VLAN tag of what it receives and tells it in PACKET_AUXDATA: it is put back.
 * A file's socket is served as a packet socket is, but for what only those have. What goes to a file is never left
 * unfinished: nobody behind it would sum or cut it.
 *
 * Who may call: a queue is fetched from by its worker. Any worker may send to it; the kernel takes care of that. An
 * outbox is a worker's own. The descriptors are control's, open from start to stop.
 */
#ifndef PVS_PORT_UPLINK_H
#define PVS_PORT_UPLINK_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "counters.h"
#include "offload.h"
#include "port.h"

/* The largest part of a frame that is not in its head, with room to see that it was larger; or a packet of a tunnel. */
enum { PVS_UPLINK_SLOT = PVS_MAX_FRAME, PVS_UPLINK_BURST = 32, PVS_UPLINK_HEADER = 10 };
/* How many bytes are fetched from a tap before they are forwarded: what fits a cache. */
enum { PVS_UPLINK_BYTES = 256 * 1024 };
/* Segments of TCP that one burst of an endpoint joins, and how many bytes it takes. */
enum { PVS_ENDPOINT_SEGS = 1024, PVS_ENDPOINT_BYTES = 512 * 1024 };
/* Parts of one message; a frame in more of them is put together first. */
enum { PVS_OUTBOX_PARTS = 64, PVS_OUTBOX_BURST = 32 };

/* What one queue fetches into; mapped when it is started, touched as far as it is needed. */
struct pvs_uplink_buffers {
    struct pvs_frame frame[PVS_UPLINK_BURST];
    struct pvs_seg tail[PVS_UPLINK_BURST];
    struct virtio_net_hdr header[PVS_UPLINK_BURST];
    struct mmsghdr message[PVS_UPLINK_BURST];
    struct iovec part[PVS_UPLINK_BURST][3];
    _Alignas(16) uint8_t control[PVS_UPLINK_BURST][64];
    /* of an endpoint (port_endpoint.h): */
    struct sockaddr_in6 from[PVS_UPLINK_BURST];
    uint32_t n_messages, message_at; /* received; the one at hand, */
    uint32_t offset, datagram;       /* where its next datagram begins, how long they are, */
    uint8_t tos, address[16];        /* and who sent it, */
    uint16_t vtep;                   /* by number */
    uint32_t n_fresh;                /* VTEPs that this burst has taught */
    uint16_t fresh[PVS_UPLINK_BURST];
    uint32_t n_seg; /* tails of its frames, each of one or several */
    struct pvs_seg seg[PVS_ENDPOINT_SEGS];
    _Alignas(64) uint8_t slot[PVS_UPLINK_BURST][PVS_UPLINK_SLOT];
};

struct pvs_uplink {
    struct pvs_queue queue;
    int fd;
    uint8_t kind;     /* enum pvs_uplink_kind */
    uint8_t tunnel;   /* enum pvs_tunnel_kind, of an endpoint */
    uint8_t offloads; /* PVS_OFFLOAD_*: what the kernel takes as it is */
    struct pvs_uplink_buffers *in;
    uint32_t n, done;                      /* frames fetched, and those of them that are forwarded */
    bool drained;                          /* nothing was left when it was last fetched from */
    bool lost_some;                        /* its last burst was full: the socket may have overrun */
    uint32_t overrun_seen_s;               /* when the socket was last asked how often it has overrun */
    uint32_t overruns;                     /* of an endpoint: what it said then */
    _Atomic uint64_t full_since_ns;        /* the kernel took nothing, and has not since; 0: it takes */
    _Atomic uint64_t rx_packets, rx_bytes; /* its worker's */
    _Atomic uint64_t tx_packets, tx_bytes; /* of all workers */
    _Atomic uint32_t error;                /* errno of what last went wrong */
};

/* Frames on their way to one queue; `sent` of `n` have gone. */
struct pvs_outbox {
    struct pvs_uplink *uplink;
    uint32_t n, sent;
    struct mmsghdr message[PVS_OUTBOX_BURST];
    struct virtio_net_hdr header[PVS_OUTBOX_BURST];
    uint32_t len[PVS_OUTBOX_BURST];
    const struct pvs_frame *frame[PVS_OUTBOX_BURST]; /* that each is, or is a piece of */
    uint8_t head[PVS_OUTBOX_BURST][PVS_HEAD_EDITED];
    struct iovec part[PVS_OUTBOX_BURST][2 + PVS_OUTBOX_PARTS];
    bool bounced; /* the last frame lies in `bounce`: there is no room for another */
    bool stuck;   /* what kept the next frame from going keeps those behind it as well */
    uint8_t bounce[PVS_UPLINK_HEADER + PVS_MAX_FRAME + PVS_VLAN_HLEN];
};

static inline struct pvs_uplink *
pvs_uplink_of(struct pvs_queue *queue)
{
    return (struct pvs_uplink *)(void *)queue;
}

/* -EINVAL: of no known kind, or it would block; -EBADF, -ENOMEM. The queue is stopped. */
int pvs_uplink_attach(struct pvs_uplink *uplink, const struct pvs_uplink_conf *conf);
void pvs_uplink_detach(struct pvs_uplink *uplink);

/* Fetch a burst of frames, checked and parsed, in the place of the last one, which is done with. How many. */
uint32_t pvs_uplink_fetch(struct pvs_uplink *uplink);

/* How many frames the kernel has dropped since it was last asked, because they were not fetched in time. */
uint32_t pvs_uplink_overrun(struct pvs_uplink *uplink);

static inline bool
pvs_outbox_full(const struct pvs_outbox *box)
{
    return box->n == PVS_OUTBOX_BURST || box->bounced;
}

/* Put the piece at hand in; the outbox is not full. What it points to must stay until it has been sent. */
void pvs_outbox_put(struct pvs_outbox *box, struct pvs_pieces *pieces);

/* What message number `i` carries, as a frame over its bytes; `seg` has room for PVS_OUTBOX_PARTS. */
void pvs_outbox_frame(const struct pvs_outbox *box, uint32_t i, struct pvs_frame *frame, struct pvs_seg *seg);

/* Why something was dropped that the kernel would not send; and find out whose memory it could not read (EFAULT). */
enum pvs_drop pvs_uplink_drop_of(int error);
void pvs_message_touch(const struct msghdr *message);

/* Send what is left. none: all have gone; else why the first of those that are left has not. */
enum pvs_drop pvs_outbox_send(struct pvs_outbox *box);

#endif
