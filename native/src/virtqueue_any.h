/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtqueue_any.h - one interface to both ring formats (virtqueue.h has their state and the terms).
 *
 * The order of calls in a burst: pvs_vq_look for each chain, from pvs_vq's next_avail on, which takes nothing; then
 * pvs_vq_take up to behind the last chain that was used, and pvs_vq_give for each of them in order; at the end of the burst
 * one pvs_vq_publish. Dropping out before pvs_vq_take leaves the ring as it was: that is the whole of rewinding.
 * The format is one flag, which stays as it is as long as the ring runs: every branch on it is foreseen.
 * Called by the worker that owns the ring, except pvs_vq_attach (control, while the ring is stopped).
 */
#ifndef PVS_VIRTQUEUE_ANY_H
#define PVS_VIRTQUEUE_ANY_H

#include "copy.h"
#include "virtqueue_packed.h"
#include "virtqueue_split.h"

/* Bind a stopped ring to guest memory. -EINVAL: bad size, base or alignment; -EFAULT: a part isn't mapped. */
static inline int
pvs_vq_attach(struct pvs_vq *vq, const struct pvs_memory *memory, const struct pvs_ring_conf *conf)
{
    uint64_t features = conf->features;
    bool packed = (features >> VIRTIO_F_RING_PACKED & 1) != 0, mrg = (features >> VIRTIO_NET_F_MRG_RXBUF & 1) != 0;
    bool modern = packed || mrg || (features >> VIRTIO_F_VERSION_1 & 1) != 0;

    *vq = (struct pvs_vq){
        .memory = memory,
        .packed = packed,
        .in_order = (features >> VIRTIO_F_IN_ORDER & 1) != 0,
        .event_idx = (features >> VIRTIO_F_EVENT_IDX & 1) != 0,
        .indirect = (features >> VIRTIO_F_INDIRECT_DESC & 1) != 0,
        .mrg_rxbuf = mrg,
        .header_len = modern ? sizeof(struct virtio_net_hdr) : VIRTIO_NET_HDR_LEGACY,
    };
    return packed ? pvs_packed_attach(vq, conf) : pvs_split_attach(vq, conf);
}

/* For what is compiled once for each format: `packed` is a constant there, and nothing is asked for each frame. */
#define PVS_FOR_EACH_FORMAT static inline __attribute__((always_inline))

/*
 * What nearly all chains are: one descriptor with these flags, in the region `span` with this index. False: look closer, by
 * pvs_vq_look. The chain at `at` is there (split: that is known already).
 */
PVS_FOR_EACH_FORMAT bool
pvs_vq_look_plain(const struct pvs_vq *vq, bool packed, uint16_t at, uint16_t flags, const struct pvs_span *span,
                  uint32_t region, struct pvs_seg *seg, uint16_t *id)
{
    uint64_t addr, rest;
    uint32_t len;

    if (packed) {
        const struct vring_packed_desc *desc = &vq->ring[pvs_packed_index(at)];
        rest = atomic_load_explicit(&desc->rest, memory_order_acquire); /* as pvs_packed_rest */
        addr = atomic_load_explicit(&desc->addr, memory_order_relaxed);
        *id = (uint16_t)(rest >> 32);
        if (!pvs_packed_is_available(rest, at) || *id >= vq->num)
            return false;
        len = (uint32_t)rest;
        rest >>= 48;
    } else {
        *id = atomic_load_explicit(&vq->avail->ring[at & vq->mask], memory_order_relaxed); /* as pvs_split_head */
        if (*id >= vq->num)
            return false;
        struct vring_desc d = pvs_split_desc(vq->desc, *id);
        addr = d.addr;
        rest = d.flags;
        len = d.len;
    }
    uint64_t offset = addr - span->gpa;
    if ((rest & (VRING_DESC_F_NEXT | VRING_DESC_F_WRITE | VRING_DESC_F_INDIRECT)) != flags || len == 0 ||
        offset >= span->size || len > span->size - offset)
        return false;
    *seg = (struct pvs_seg){ .base = span->host + offset, .len = len, .region = region };
    return true;
}

/*
 * Look at the chain at position `at`: walk it into at most `cap` segments. False when there is none (yet), or when the ring
 * is wrong, and then *broken says how.
 */
static inline bool
pvs_vq_look(struct pvs_vq *vq, uint16_t at, bool writable, struct pvs_seg *seg, uint32_t cap, struct pvs_chain *chain,
            enum pvs_broken *broken)
{
    if (vq->packed) {
        uint64_t rest = pvs_packed_rest(vq, at);
        if (!pvs_packed_is_available(rest, at)) {
            vq->seen_avail = at;
            return false;
        }
        *broken = pvs_packed_chain(vq, at, rest, writable, seg, cap, chain);
    } else {
        uint32_t ahead = (uint16_t)(at - vq->next_avail);
        if (at == vq->seen_avail) {
            uint32_t n = pvs_split_available(vq, broken);
            if (n < ahead) /* behind what was there before */
                *broken = PVS_BROKEN_AVAIL_JUMP;
            if (n <= ahead)
                return false;
        }
        *broken = pvs_split_chain(vq, pvs_split_head(vq, ahead), writable, seg, cap, chain);
        chain->next = (uint16_t)(at + 1);
    }
    return *broken == PVS_BROKEN_NONE;
}

/*
 * How many chains there may be from next_avail on, at most `max`: split knows; packed says `max` when there is one. Their
 * descriptors, and the places where they are given back, are on their way into the cache.
 */
static inline uint32_t
pvs_vq_expect(struct pvs_vq *vq, uint32_t max, enum pvs_broken *broken)
{
    if (vq->packed) {
        uint32_t index = pvs_packed_index(vq->next_avail);
        if (!pvs_packed_ready(vq, vq->next_avail))
            return 0;
        /* four descriptors in a line; beyond the ring's end is its beginning, whose lines come when they are needed */
        for (uint32_t i = index; i < index + max && i < vq->num; i += 4)
            pvs_prefetch_write(&vq->ring[i]);
        return max;
    }
    uint32_t n = (uint16_t)(vq->seen_avail - vq->next_avail);
    if (n < max)
        n = pvs_split_available(vq, broken);
    n = n < max ? n : max;
    for (uint32_t i = 0; i < n; i++)
        __builtin_prefetch(&vq->desc[pvs_split_head(vq, i) & vq->mask]);
    for (uint32_t i = 0; i < n; i += 8) /* used elements in a line */
        pvs_prefetch_write(&vq->used->ring[(vq->next_used + i) & vq->mask]);
    return n;
}

/* Have what pvs_vq_expect looks at first fetched. */
static inline void
pvs_vq_prefetch(const struct pvs_vq *vq)
{
    if (vq->packed) {
        pvs_prefetch_write(&vq->ring[pvs_packed_index(vq->next_avail)]);
    } else {
        __builtin_prefetch(&vq->avail->ring[vq->next_avail & vq->mask]);
        __builtin_prefetch(&vq->avail->ring[(vq->next_avail + 32) & vq->mask]);
    }
}

/* Take all chains before position `next`. */
static inline void
pvs_vq_take(struct pvs_vq *vq, uint16_t next)
{
    vq->next_avail = next;
}

/* Give a chain back, of which `len` bytes were written; `next` is the position behind it. */
static inline void
pvs_vq_give(struct pvs_vq *vq, uint16_t id, uint16_t next, uint32_t len)
{
    if (vq->packed)
        pvs_packed_give(vq, id, next, len);
    else
        pvs_split_give(vq, id, len);
}

/* With IN_ORDER: give all `n` chains up to this one back at once; none of them was written into. */
static inline void
pvs_vq_give_batch(struct pvs_vq *vq, uint16_t last, uint16_t next, uint32_t n)
{
    if (vq->packed)
        pvs_packed_give(vq, last, next, 0);
    else
        pvs_split_give_batch(vq, last, n);
}

/* Show the guest what was given back. */
static inline void
pvs_vq_publish(struct pvs_vq *vq)
{
    if (vq->packed)
        pvs_packed_publish(vq);
    else
        pvs_split_publish(vq);
}

/*
 * Does the guest want a call for what was published since the last one? The caller has put a full fence between
 * pvs_vq_publish and this: the guest writes when it wants one, fences and looks at what is used; we do the reverse.
 */
static inline bool
pvs_vq_wants_call(struct pvs_vq *vq)
{
    return vq->packed ? pvs_packed_wants_call(vq) : pvs_split_wants_call(vq);
}

/* Ask for no kicks. */
static inline void
pvs_vq_kick_suppress(struct pvs_vq *vq)
{
    if (vq->packed)
        pvs_packed_kick_suppress(vq);
    else
        pvs_split_kick_suppress(vq);
}

/*
 * Ask for a kick when the guest goes on beyond `at`, where it was last seen; fences, and returns true if it has gone on in
 * the meantime (no kick may follow then).
 */
static inline bool
pvs_vq_kick_arm(struct pvs_vq *vq, uint16_t at)
{
    return vq->packed ? pvs_packed_kick_arm(vq, at) : pvs_split_kick_arm(vq, at);
}

/* What GET_VRING_BASE answers for a stopped ring: where to go on. */
static inline uint32_t
pvs_vq_base(const struct pvs_vq *vq)
{
    return vq->packed ? vq->next_avail | (uint32_t)vq->next_used << 16 : vq->next_avail;
}

/* As the guest's memory says now: where it has got to, and what it has been given back. Any thread, while it is mapped. */
static inline void
pvs_vq_progress(const struct pvs_vq *vq, uint16_t *avail, uint16_t *used)
{
    if (vq->packed) {
        uint16_t at = atomic_load_explicit(&vq->published_used, memory_order_relaxed); /* what is taken is given back */
        *used = at;
        *avail = pvs_packed_ready(vq, at) ? pvs_packed_advance(vq, at, 1) : at;
    } else {
        *avail = atomic_load_explicit(&vq->avail->idx, memory_order_relaxed);
        *used = atomic_load_explicit(&vq->used->idx, memory_order_relaxed);
    }
}

#endif
