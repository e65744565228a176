/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coalesce.h - segments of TCP that came one behind the other become one frame again, and sums that were left undone are known as such.
 *
 * How it works: what Linux does as generic receive offload (tcp_gro_receive), for frames that come by tunnels: a guest that takes large
 * frames has much less to do for one of 64 KiB than for 45 segments. A segment is joined to those before it when it
 * differs only in what follows from its place, when it is the next one, and when its checksum is right: it is not told any more. The result
 * asks to be cut, as if a guest had sent it (offload.h).
 *
 * A kernel on the other side of a veth leaves inner checksums (and segments) to a device that never does them. Then the checksum
 * field holds the sum of the pseudo header. That is told from its value: should it be a finished checksum by chance, finishing it gives the
 * same value again.
 *
 * Pure functions; called by who fetches from endpoints. A frame's bytes lie in one piece here, in the switch's own memory.
 */
#ifndef PVS_COALESCE_H
#define PVS_COALESCE_H

#include "offload.h"

/* The segments of the frame at the end of a burst. */
struct pvs_train {
    struct pvs_frame *frame; /* the first one, which grows; NULL: none that others could follow */
    uint8_t *bytes;          /* its own, */
    uint32_t len;            /* as it came */
    uint32_t n;              /* segments */
    uint32_t l4, headers;    /* where TCP begins, and its payload */
    uint32_t payload;        /* of the first segment */
    uint32_t next;           /* the sequence number behind the last one */
    uint8_t flags;           /* of the last one */
};

/*
 * A frame that has been parsed, with its bytes. If its checksum was left undone it asks for it from now on; and for being cut, if it is of TCP and longer
 * than `room`.
 */
void pvs_unfinished(struct pvs_frame *frame, uint32_t room);

/* Begin with a frame that others may follow, if it is one of TCP. */
void pvs_train_begin(struct pvs_train *train, struct pvs_frame *frame, uint8_t *bytes);

/* Does `next` follow? Its payload is appended then: train->frame->seg has room for one more. */
bool pvs_train_add(struct pvs_train *train, const struct pvs_frame *next, uint8_t *bytes);

/* No more follow: several segments are one frame now, which asks to be cut. */
void pvs_train_end(struct pvs_train *train);

#endif
