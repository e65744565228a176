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

#include "virtqueue.h"

/* Bind a stopped ring to guest memory. -EINVAL: bad size or alignment; -EFAULT: a part isn't mapped. */
int pvs_split_attach(struct pvs_vq *vq, const struct pvs_memory *memory, const struct pvs_ring_conf *conf);

/* Chains that the guest has made available and we have not taken; with AVAIL_JUMP in *broken, 0. */
uint32_t pvs_split_available(struct pvs_vq *vq, enum pvs_broken *broken);

/* Head of the chain `ahead` places from the next, read once. It may be out of range: pvs_split_chain checks. */
static inline uint16_t
pvs_split_head(const struct pvs_vq *vq, uint32_t ahead)
{
    /* relaxed: ordered behind the acquire load of avail->idx in pvs_split_available */
    return atomic_load_explicit(&vq->avail->ring[(vq->next_avail + ahead) & vq->mask], memory_order_relaxed);
}

/* Walk the chain at `head` into at most `cap` segments that the device reads (or, with `writable`, writes). */
enum pvs_broken pvs_split_chain(struct pvs_vq *vq, uint16_t head, bool writable, struct pvs_seg *seg, uint32_t cap,
                                struct pvs_chain *chain);

static inline void
pvs_split_take(struct pvs_vq *vq, uint32_t n)
{
    vq->next_avail = (uint16_t)(vq->next_avail + n);
}

/* Give a chain back: `len` bytes were written into it. Seen by the guest only after pvs_split_publish. */
static inline void
pvs_split_give(struct pvs_vq *vq, uint16_t head, uint32_t len)
{
    vq->used->ring[vq->next_used & vq->mask] = (struct vring_used_elem){ .id = head, .len = len };
    vq->next_used++;
}

static inline void
pvs_split_publish(struct pvs_vq *vq)
{
    /* release: used elements and frame data are visible before the index that announces them */
    atomic_store_explicit(&vq->used->idx, vq->next_used, memory_order_release);
    vq->published_used = vq->next_used;
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
