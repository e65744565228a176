/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtqueue_split.h - the split ring format (virtio 1.2, section 2.7), device side.
 *
 * The order of calls in a burst: pvs_split_available, then for each chain pvs_split_chain (looking ahead, taking
 * nothing), pvs_split_take for as many as were used, pvs_split_give for each of them, and at the end of the burst one
 * pvs_split_publish. Dropping out before pvs_split_take leaves the ring as it was: that is the whole of rewinding.
 * Called by the worker that owns the ring, except pvs_split_attach (control, while the ring is stopped).
 */
#ifndef PVS_VIRTQUEUE_SPLIT_H
#define PVS_VIRTQUEUE_SPLIT_H

#include "copy.h"
#include "virtqueue.h"

/*
 * Bind a stopped ring to guest memory; what both formats have in common is set already. -EINVAL: bad size or alignment;
 * -EFAULT: a part isn't mapped.
 */
int pvs_split_attach(struct pvs_vq *vq, const struct pvs_ring_conf *conf);

/* Chains that the guest has made available and we have not taken; with AVAIL_JUMP in *broken, 0. */
uint32_t pvs_split_available(struct pvs_vq *vq, enum pvs_broken *broken);

/* Head of the chain `ahead` places from the next, read once. It may be out of range: pvs_split_chain checks. */
static inline uint16_t
pvs_split_head(const struct pvs_vq *vq, uint32_t ahead)
{
    /* relaxed: ordered behind the acquire load of avail->idx in pvs_split_available */
    return atomic_load_explicit(&vq->avail->ring[(vq->next_avail + ahead) & vq->mask], memory_order_relaxed);
}

static inline struct vring_desc
pvs_split_desc(const void *table, uint32_t i)
{
    const volatile struct pvs_desc_words *w = (const volatile struct pvs_desc_words *)table + i;
    uint64_t addr = w->addr, rest = w->rest;
    return (struct vring_desc){
        .addr = addr,
        .len = (uint32_t)rest,
        .flags = (uint16_t)(rest >> 32),
        .next = (uint16_t)(rest >> 48),
    };
}

/* The rest of pvs_split_chain: the chain's first descriptor has been read. */
enum pvs_broken pvs_split_chain_from(struct pvs_vq *vq, struct vring_desc first, bool writable, struct pvs_seg *seg,
                                     uint32_t cap, struct pvs_chain *chain);

/*
 * Walk the chain at `head` into at most `cap` segments that the device reads (or, with `writable`, writes). Most chains
 * are one descriptor.
 */
static inline enum pvs_broken
pvs_split_chain(struct pvs_vq *vq, uint16_t head, bool writable, struct pvs_seg *seg, uint32_t cap,
                struct pvs_chain *chain)
{
    *chain = (struct pvs_chain){ .id = head };
    if (head >= vq->num)
        return PVS_BROKEN_HEAD_RANGE;
    struct vring_desc d = pvs_split_desc(vq->desc, head);
    if (__builtin_expect((d.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT)) != 0, 0))
        return pvs_split_chain_from(vq, d, writable, seg, cap, chain);
    return pvs_chain_add(vq, chain, d.addr, d.len, (d.flags & VRING_DESC_F_WRITE) != 0, writable, seg, cap);
}

static inline void
pvs_split_take(struct pvs_vq *vq, uint32_t n)
{
    vq->next_avail = (uint16_t)(vq->next_avail + n);
}

/* Give a chain back: `len` bytes were written into it. Seen by the guest only after pvs_split_publish. */
static inline void
pvs_split_give(struct pvs_vq *vq, uint16_t head, uint32_t len)
{
    /* one store of both fields */
    *(pvs_u64 *)&vq->used->ring[vq->next_used & vq->mask] = head | (uint64_t)len << 32;
    vq->next_used++;
}

/*
 * With IN_ORDER: give `n` chains back, the last of which has this head, by one used element (virtio 1.2, 2.7.9: at the
 * place of the first). Not for chains that were written into, whose lengths the guest must know.
 */
static inline void
pvs_split_give_batch(struct pvs_vq *vq, uint16_t last, uint32_t n)
{
    vq->used->ring[vq->next_used & vq->mask] = (struct vring_used_elem){ .id = last, .len = 0 };
    vq->next_used = (uint16_t)(vq->next_used + n);
}

static inline void
pvs_split_publish(struct pvs_vq *vq)
{
    /* release: used elements and frame data are visible before the index that announces them */
    atomic_store_explicit(&vq->used->idx, vq->next_used, memory_order_release);
    atomic_store_explicit(&vq->published_used, vq->next_used, memory_order_relaxed);
}

/*
 * Does the guest want a call for what was published since the last one? The caller has put a full fence between
 * pvs_split_publish and this: the guest writes its event index, fences and looks at used->idx; we do the reverse.
 */
bool pvs_split_wants_call(struct pvs_vq *vq);

/* Ask for no kicks. */
void pvs_split_kick_suppress(struct pvs_vq *vq);
/*
 * Ask for a kick when the avail index goes beyond `at`, where it was last seen; fences, and returns true if it has gone on
 * in the meantime (no kick may follow then).
 */
bool pvs_split_kick_arm(struct pvs_vq *vq, uint16_t at);

#endif
