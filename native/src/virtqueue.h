/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtqueue.h - the state of one running ring, seen from the device, and the words in which a ring can be wrong.
 *
 * How it works: a ring is set up by the control thread while it is stopped, and from then on belongs to the worker that
 * serves it until it is stopped again. What the guest wrote is read once, into private memory, and only then checked.
 * Terms: a *chain* is one buffer of the guest (virtio 1.2, 2.7.5); `next_avail` counts chains taken, `next_used` chains
 * given back, `published_used` those that the guest has been shown. All three are free-running 16-bit indices.
 */
#ifndef PVS_VIRTQUEUE_H
#define PVS_VIRTQUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "guest_memory.h"
#include "virtio_abi.h"

/* Why a port is latched broken. The text is what a user reads: say what the guest did. */
#define PVS_BROKEN_REASONS(X)                                                                               \
    X(NONE, "not broken")                                                                                   \
    X(AVAIL_JUMP, "the avail index moved by more than the ring's size")                                     \
    X(HEAD_RANGE, "the avail ring names a descriptor beyond the ring's size")                               \
    X(NEXT_RANGE, "a descriptor's next field is beyond the table's size")                                   \
    X(CHAIN_LONG, "a descriptor chain is longer than the ring or 1024, or loops")                           \
    X(BAD_ADDRESS, "a descriptor points outside the memory that the front end shared")                      \
    X(INDIRECT_REFUSED, "an indirect descriptor was used without the feature, or inside an indirect table") \
    X(INDIRECT_SIZE, "an indirect table is empty, too long, or not a multiple of 16 bytes")                 \
    X(INDIRECT_NEXT, "a descriptor has both INDIRECT and NEXT set")                                         \
    X(INDIRECT_ADDRESS, "an indirect table is not inside one region of the shared memory")                  \
    X(RX_READABLE, "a receive chain has device-readable descriptors")                                       \
    X(RX_TINY, "a receive chain is smaller than the virtio-net header")                                     \
    X(MEMORY_LOST, "the file behind the guest's memory was truncated")                                      \
    X(CALL_BLOCKED, "the front end's call descriptor blocks")

enum pvs_broken {
#define X(name, text) PVS_BROKEN_##name,
    PVS_BROKEN_REASONS(X)
#undef X
        PVS_BROKEN_COUNT
};

/* Most segments of one frame or receive chain, and most descriptors. A 64 KiB frame in 4 KiB pages has 18. */
enum { PVS_MAX_SEGS = 1024 };

struct pvs_vq {
    const struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    _Atomic uint16_t *used_event;  /* behind the avail ring: when the guest wants a call */
    _Atomic uint16_t *avail_event; /* behind the used ring: when we want a kick */
    const struct pvs_memory *memory;
    uint32_t num;
    uint32_t region_hint;
    uint16_t mask;
    uint16_t next_avail;
    uint16_t seen_avail; /* avail->idx as last read */
    uint16_t next_used;
    uint16_t published_used;
    uint16_t signalled_used; /* published_used at the last call */
    bool signalled_valid;    /* false until the first call after a start */
    bool event_idx, indirect, mrg_rxbuf;
    uint8_t header_len; /* of the virtio-net header: 10 or 12 */
};

/* One chain, translated. */
struct pvs_chain {
    uint16_t head;
    bool wrong_direction; /* it has writable parts where readable ones belong, or the reverse */
    bool truncated;       /* more segments than there was room for: len and n count those that fitted */
    uint32_t n;           /* segments */
    uint32_t walked;      /* descriptors read */
    uint64_t len;
};

#endif
