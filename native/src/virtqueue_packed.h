/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtqueue_packed.h - the packed ring format (virtio 1.2, section 2.8), device side.
 *
 * How it works: there is one ring of descriptors. The guest makes a chain available by writing its descriptors one after
 * the other, the flags of the first one last; we give it back by writing one descriptor where the chain began, and skip
 * the rest of it. Whether a descriptor is available or used is told by two bits of its flags and by how often each side
 * has gone round (its wrap counter). What is given back until the next pvs_packed_publish shows together: its first
 * descriptor is written last.
 *
 * A position is an index with the wrap counter in bit 15. They move by comparison with the ring's size, which need not be
 * a power of two. The order of calls in a burst is that of virtqueue_split.h.
 * Called by the worker that owns the ring, except pvs_packed_attach (control, while the ring is stopped).
 */
#ifndef PVS_VIRTQUEUE_PACKED_H
#define PVS_VIRTQUEUE_PACKED_H

#include "virtqueue.h"

/*
 * Bind a stopped ring to guest memory; what both formats have in common is set already. It goes on at conf->base. -EINVAL:
 * bad size, base or alignment; -EFAULT: a part isn't mapped.
 */
int pvs_packed_attach(struct pvs_vq *vq, const struct pvs_ring_conf *conf);

static inline uint16_t
pvs_packed_index(uint16_t at)
{
    return at & (VRING_PACKED_WRAP - 1);
}

/* The position `n` descriptors behind `at`, at most one time round. */
static inline uint16_t
pvs_packed_advance(const struct pvs_vq *vq, uint16_t at, uint32_t n)
{
    uint32_t index = pvs_packed_index(at) + n, wrap = at & VRING_PACKED_WRAP;

    if (index >= vq->num) {
        index -= vq->num;
        wrap ^= VRING_PACKED_WRAP;
    }
    return (uint16_t)(index | wrap);
}

/* How many descriptors further than `from` `to` is: less than two times round. */
static inline uint32_t
pvs_packed_distance(const struct pvs_vq *vq, uint16_t from, uint16_t to)
{
    uint32_t begin = pvs_packed_index(from) + ((from & VRING_PACKED_WRAP) != 0 ? 0 : vq->num);
    uint32_t end = pvs_packed_index(to) + ((to & VRING_PACKED_WRAP) != 0 ? 0 : vq->num);

    return end >= begin ? end - begin : end + 2 * vq->num - begin;
}

/* Is this second word that of an available descriptor at `at`? (virtio 1.2, 2.8.1) */
static inline bool
pvs_packed_is_available(uint64_t rest, uint16_t at)
{
    bool wrap = (at & VRING_PACKED_WRAP) != 0;
    bool avail = (rest >> 48 & VRING_PACKED_AVAIL) != 0, used = (rest >> 48 & VRING_PACKED_USED) != 0;

    return avail == wrap && used != wrap;
}

/* The second word of the descriptor at `at`. */
static inline uint64_t
pvs_packed_rest(const struct pvs_vq *vq, uint16_t at)
{
    /* acquire: pairs with the guest's release of the flags, so that the rest of the chain is visible */
    return atomic_load_explicit(&vq->ring[pvs_packed_index(at)].rest, memory_order_acquire);
}

static inline bool
pvs_packed_ready(const struct pvs_vq *vq, uint16_t at)
{
    return pvs_packed_is_available(pvs_packed_rest(vq, at), at);
}

/* The rest of pvs_packed_chain, whose first descriptor has the second word `rest`. */
enum pvs_broken pvs_packed_chain_from(struct pvs_vq *vq, uint16_t at, uint64_t rest, bool writable, struct pvs_seg *seg,
                                      uint32_t cap, struct pvs_chain *chain);

/*
 * Walk the chain that begins at `at`, where an available descriptor with this second word was seen, into at most `cap`
 * segments that the device reads (or, with `writable`, writes). Most chains are one descriptor.
 */
static inline enum pvs_broken
pvs_packed_chain(struct pvs_vq *vq, uint16_t at, uint64_t rest, bool writable, struct pvs_seg *seg, uint32_t cap,
                 struct pvs_chain *chain)
{
    uint16_t flags = (uint16_t)(rest >> 48);

    *chain = (struct pvs_chain){ .id = (uint16_t)(rest >> 32), .next = pvs_packed_advance(vq, at, 1) };
    if (__builtin_expect((flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT)) != 0, 0))
        return pvs_packed_chain_from(vq, at, rest, writable, seg, cap, chain);
    if (chain->id >= vq->num)
        return PVS_BROKEN_ID_RANGE;
    /* relaxed: ordered behind the acquire load of the second word */
    uint64_t addr = atomic_load_explicit(&vq->ring[pvs_packed_index(at)].addr, memory_order_relaxed);
    return pvs_chain_add(vq, chain, addr, (uint32_t)rest, (flags & VRING_DESC_F_WRITE) != 0, writable, seg, cap);
}

/*
 * Give a chain back, of which `len` bytes were written; `next` is the position behind it. With IN_ORDER it may be the last
 * of several that begin where the last one given back ended, none of them written into (virtio 1.2, 2.8.8).
 */
static inline void
pvs_packed_give(struct pvs_vq *vq, uint16_t id, uint16_t next, uint32_t len)
{
    uint16_t at = vq->next_used;
    uint64_t flags = (at & VRING_PACKED_WRAP) != 0 ? VRING_PACKED_AVAIL | VRING_PACKED_USED : 0;
    uint64_t rest = len | (uint64_t)id << 32 | (flags | (len != 0 ? VRING_DESC_F_WRITE : 0)) << 48;

    if (vq->batch_open) {
        /* relaxed: the guest looks at it only after the first one of the batch */
        atomic_store_explicit(&vq->ring[pvs_packed_index(at)].rest, rest, memory_order_relaxed);
    } else {
        vq->batch_open = true;
        vq->batch_at = at;
        vq->batch_rest = rest;
    }
    vq->next_used = next;
}

/* Show the guest what was given back since the last time. */
static inline void
pvs_packed_publish(struct pvs_vq *vq)
{
    if (vq->batch_open) {
        /* release: frame data and all other descriptors of the batch are visible before the first one */
        atomic_store_explicit(&vq->ring[pvs_packed_index(vq->batch_at)].rest, vq->batch_rest, memory_order_release);
        vq->batch_open = false;
        uint16_t before = atomic_load_explicit(&vq->published_used, memory_order_relaxed);
        if (vq->unsignalled <= vq->num) /* more need not be told apart */
            vq->unsignalled += pvs_packed_distance(vq, before, vq->next_used);
    }
    atomic_store_explicit(&vq->published_used, vq->next_used, memory_order_relaxed);
}

/* As pvs_split_wants_call: there is a full fence between pvs_packed_publish and this. */
bool pvs_packed_wants_call(struct pvs_vq *vq);

/* Ask for no kicks. */
void pvs_packed_kick_suppress(struct pvs_vq *vq);
/* Ask for a kick when a chain is made available at `at`; fences, and returns true if there is one already. */
bool pvs_packed_kick_arm(struct pvs_vq *vq, uint16_t at);

#endif
