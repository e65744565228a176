/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offload.h - checksums and segments that a sender left to us, finished for receivers that don't take them as they are.
 *
 * How it works: pvs_offload_check looks once, at ingress, whether what the virtio-net header asks for is possible: it
 * parses up to L4 (pulling up to PVS_HEAD_MAX bytes), and a request that it lets through is exact: csum_start is where
 * the L4 header begins, hdr_len is what the headers really take. At egress, for each receiver, a frame becomes *pieces*:
 * one, passed through or with its checksum filled in, or the segments that it is cut into (RFC 9293, RFC 768; what Linux's
 * tcp_gso_segment and __udp_gso_segment do). Checksums of payload are computed while it is copied, so a guest that
 * changes it meanwhile damages only its own frame.
 *
 * Pure functions over a frame; called by the worker. Nothing is allocated.
 */
#ifndef PVS_OFFLOAD_H
#define PVS_OFFLOAD_H

#include <sys/uio.h>

#include "frame.h"

/* What a guest may ask for when it sends, or takes as it is when it receives. */
enum {
    PVS_OFFLOAD_CSUM = 1,
    PVS_OFFLOAD_TSO4 = 2,
    PVS_OFFLOAD_TSO6 = 4,
    PVS_OFFLOAD_ECN = 8,
    PVS_OFFLOAD_USO4 = 16,
    PVS_OFFLOAD_USO6 = 32,
};

/* More segments than any sender's MSS asks for: 48 bytes (Linux's TCP_MIN_SND_MSS) make 1,364 of the largest frame. */
enum { PVS_MAX_PIECES = 2048 };

/* By negotiated features: what its guest may ask for (CSUM, HOST_*), and what it takes (GUEST_*). */
uint8_t pvs_offloads_sent(uint64_t features);
uint8_t pvs_offloads_taken(uint64_t features);

/*
 * Check what `header` asks for against `allowed` and the parsed frame, and fill frame->request. False: malformed.
 * A GSO frame that already fits one segment becomes a checksum request. Flags other than NEEDS_CSUM are ignored, and so
 * is hdr_len. After it the head is immutable.
 */
bool pvs_offload_check_request(struct pvs_frame *frame, const struct virtio_net_hdr *header, uint8_t allowed);

/* As pvs_offload_check_request; most frames ask for nothing. */
static inline bool
pvs_offload_check(struct pvs_frame *frame, const struct virtio_net_hdr *header, uint8_t allowed)
{
    frame->request = (struct pvs_request){ 0 };
    if ((header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0)
        return header->gso_type == VIRTIO_NET_HDR_GSO_NONE; /* virtio 1.2, 5.1.6.2.1: GSO needs NEEDS_CSUM */
    return pvs_offload_check_request(frame, header, allowed);
}

/* What the virtio-net header says of a frame that is passed on with its request; num_buffers is left to the ring. */
static inline struct virtio_net_hdr
pvs_request_header(const struct pvs_request *r)
{
    return (struct virtio_net_hdr){
        .flags = r->checksum ? VIRTIO_NET_HDR_F_NEEDS_CSUM : 0,
        .gso_type = r->gso_type,
        .hdr_len = r->hdr_len,
        .gso_size = r->gso_size,
        .csum_start = r->csum_start,
        .csum_offset = r->csum_offset,
    };
}

/* Does a receiver take this frame as it is? The frame has a request. */
bool pvs_request_taken(const struct pvs_frame *frame, uint8_t taken);

/* A frame on its way to one receiver. */
struct pvs_pieces {
    const struct pvs_frame *frame;
    uint32_t n;    /* pieces in all */
    uint32_t next; /* index of the piece at hand; n when none is left */
    /* the piece at hand */
    struct virtio_net_hdr header; /* num_buffers is left to the ring */
    uint32_t len;                 /* bytes of the frame, without virtio-net header */
    const uint8_t *head;          /* its first head_len bytes */
    uint32_t head_len;
    bool sum;          /* the L4 checksum is computed while copying */
    uint16_t gso_size; /* payload bytes of one segment, of a frame that is cut */
    /* where its payload begins */
    struct pvs_cursor source;
    uint8_t scratch[PVS_HEAD_EDITED];
};

/* Begin with piece number `first` for a receiver that takes `taken`. False when there is none (first >= n). */
bool pvs_pieces_begin(struct pvs_pieces *pieces, const struct pvs_frame *frame, uint8_t taken, uint32_t first);
/*
 * The same from the first piece on, finished, and none of them longer than `room`, for a frame that fits (pvs_pieces_fit): segments
 * of TCP may be cut smaller than their sender asked for.
 */
void pvs_pieces_begin_within(struct pvs_pieces *pieces, const struct pvs_frame *frame, uint32_t room);
/* Can a frame be finished so that no piece, with `longer` bytes more, is longer than `room`? */
bool pvs_pieces_fit(const struct pvs_frame *frame, int32_t longer, uint32_t room);
/* Write the piece at hand to `to`, which has room for header_len + len bytes, virtio-net header first. */
void pvs_piece_write(struct pvs_pieces *pieces, struct pvs_cursor *to, uint32_t header_len);
/*
 * In the place of pvs_piece_write, for who gathers by itself: the payload behind the head, as it lies there; with `sum` it is
 * read, and the head is complete then. How many parts; more than `cap`: it would take more, and nothing was done.
 */
uint32_t pvs_piece_parts(struct pvs_pieces *pieces, struct iovec *part, uint32_t cap);
/* Make the next piece the one at hand; this one was written, or its parts named. False when it was the last. */
bool pvs_pieces_next(struct pvs_pieces *pieces);

#endif
