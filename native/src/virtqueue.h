/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtqueue.h - the state of one running ring, seen from the device, and the words in which a ring can be wrong.
 *
 * How it works: a ring is set up by the control thread while it is stopped, and from then on belongs to the worker that
 * serves it until it is stopped again. What the guest wrote is read once, into private memory, and only then checked.
 * There are two formats, chosen when the ring is set up: split (virtqueue_split.h) and packed (virtqueue_packed.h).
 * virtqueue_any.h is the one interface to both.
 *
 * Terms: a *chain* is one buffer of the guest (virtio 1.2, 2.7.5 and 2.8). A *position* says where in the ring something
 * stands: a free-running 16-bit index of chains (split), or the index of a descriptor with the wrap counter in bit 15
 * (packed). `next_avail` is where the next chain to be taken begins, `next_used` where the next one is given back,
 * `published_used` up to where the guest has been shown that. Chains are completed in order and none is held past a
 * burst.
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
    X(INDIRECT_NEXT, "a descriptor has both INDIRECT and NEXT set, or is linked to an indirect one")        \
    X(INDIRECT_ADDRESS, "an indirect table is not inside one region of the shared memory")                  \
    X(RX_READABLE, "a receive chain has device-readable descriptors")                                       \
    X(RX_TINY, "a receive chain is smaller than the virtio-net header")                                     \
    X(MEMORY_LOST, "the file behind the guest's memory was truncated")                                      \
    X(CALL_BLOCKED, "the front end's call descriptor blocks")                                               \
    X(ID_RANGE, "a packed descriptor has a buffer id beyond the ring's size")

enum pvs_broken {
#define X(name, text) PVS_BROKEN_##name,
    PVS_BROKEN_REASONS(X)
#undef X
        PVS_BROKEN_COUNT
};

/* Most segments of one frame or receive chain, and most descriptors. A 64 KiB frame in 4 KiB pages has 18. */
enum { PVS_MAX_SEGS = 1024 };

struct pvs_vq {
    bool packed;   /* the format */
    bool in_order; /* VIRTIO_F_IN_ORDER: a batch is given back by one used element */
    bool event_idx, indirect, mrg_rxbuf;
    uint8_t header_len;   /* of the virtio-net header: 10 or 12 */
    bool signalled_valid; /* false until the first call after a start */
    uint16_t next_avail;
    uint16_t seen_avail; /* how far the guest had got when it was last looked at */
    uint16_t next_used;
    _Atomic uint16_t published_used; /* control looks at it, too */
    uint16_t signalled_used;         /* split: published_used at the last call */
    uint16_t mask;                   /* split: num - 1 */
    uint32_t num;
    uint32_t region_hint;
    const struct pvs_memory *memory;
    union {
        struct {
            const struct vring_desc *desc;
            struct vring_avail *avail;
            struct vring_used *used;
            _Atomic uint16_t *used_event;  /* behind the avail ring: when the guest wants a call */
            _Atomic uint16_t *avail_event; /* behind the used ring: when we want a kick */
        };
        struct {
            struct vring_packed_desc *ring;
            struct vring_packed_event *driver_event; /* when the guest wants a call */
            struct vring_packed_event *device_event; /* when we want a kick */
            /* what was given back first of all that is not yet published: it is written last */
            uint64_t batch_rest;
            uint16_t batch_at;
            bool batch_open;
            uint32_t unsignalled; /* descriptors published since the guest was last considered for a call */
        };
    };
};

/* One chain, translated. */
struct pvs_chain {
    uint16_t id;          /* the guest's name for it: the head (split), or the buffer id (packed) */
    uint16_t next;        /* position behind it */
    bool wrong_direction; /* it has writable parts where readable ones belong, or the reverse */
    bool truncated;       /* more segments than there was room for: len and n count those that fitted */
    uint32_t n;           /* segments */
    uint32_t walked;      /* descriptors read */
    uint64_t len;
};

/* A descriptor as the guest may rewrite it while we look: volatile makes each of its words one read. */
struct pvs_desc_words {
    uint64_t addr, rest;
} __attribute__((packed, may_alias));

/*
 * Add what one descriptor points to. `seg` has `cap` places for the whole chain; `writable`: the device is to write it.
 * PVS_BROKEN_NONE, CHAIN_LONG or BAD_ADDRESS.
 */
static inline enum pvs_broken
pvs_chain_add(struct pvs_vq *vq, struct pvs_chain *chain, uint64_t addr, uint32_t len, bool is_writable, bool writable,
              struct pvs_seg *seg, uint32_t cap)
{
    if (++chain->walked > vq->num || chain->walked > PVS_MAX_SEGS)
        return PVS_BROKEN_CHAIN_LONG;
    chain->wrong_direction |= is_writable != writable;
    if (len == 0 || chain->truncated)
        return PVS_BROKEN_NONE;
    uint32_t room = cap - chain->n;
    uint32_t n = pvs_memory_translate(vq->memory, addr, len, &vq->region_hint, seg + chain->n, room);
    if (n == 0)
        return PVS_BROKEN_BAD_ADDRESS;
    if (n > room) {
        chain->truncated = true;
    } else {
        chain->n += n;
        chain->len += len;
    }
    return PVS_BROKEN_NONE;
}

#endif
