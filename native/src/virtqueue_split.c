/* SPDX-License-Identifier: Apache-2.0 */
/* virtqueue_split.c - see virtqueue_split.h for how it works and who may call it. */
#include "virtqueue_split.h"

#include <errno.h>

int
pvs_split_attach(struct pvs_vq *vq, const struct pvs_ring_conf *conf)
{
    const struct pvs_memory *memory = vq->memory;
    uint32_t num = conf->num;

    if (num == 0 || num > 32768 || (num & (num - 1)) != 0)
        return -EINVAL;
    /* the alignments that virtio 1.2, 2.7 demands */
    if (conf->desc_uva % 16 != 0 || conf->avail_uva % 2 != 0 || conf->used_uva % 4 != 0)
        return -EINVAL;
    uint64_t event = vq->event_idx ? 2 : 0;
    void *desc = memory != NULL ? pvs_memory_from_uva(memory, conf->desc_uva, 16ULL * num) : NULL;
    void *avail = memory != NULL ? pvs_memory_from_uva(memory, conf->avail_uva, 4 + 2ULL * num + event) : NULL;
    void *used = memory != NULL ? pvs_memory_from_uva(memory, conf->used_uva, 4 + 8ULL * num + event) : NULL;
    if (desc == NULL || avail == NULL || used == NULL)
        return -EFAULT;
    /* guest memory is mapped page aligned, but a region's offset in its file need not be */
    if ((uintptr_t)desc % 8 != 0 || (uintptr_t)avail % 2 != 0 || (uintptr_t)used % 4 != 0)
        return -EINVAL;

    vq->num = num;
    vq->mask = (uint16_t)(num - 1);
    vq->desc = desc;
    vq->avail = avail;
    vq->used = used;
    vq->used_event = &vq->avail->ring[num];
    vq->avail_event = (_Atomic uint16_t *)(void *)&vq->used->ring[num];
    /*
     * We complete rings in order and hold nothing past a burst, so what the guest has been given back is what was taken:
     * used->idx is the truth. The base that a front end sends is the same number, or stale after a switch that died
     * between taking and giving; those chains are then simply taken again.
     */
    uint16_t used_idx = atomic_load_explicit(&vq->used->idx, memory_order_relaxed);
    vq->next_avail = vq->seen_avail = vq->next_used = used_idx;
    atomic_store_explicit(&vq->published_used, used_idx, memory_order_relaxed);
    return 0;
}

uint32_t
pvs_split_available(struct pvs_vq *vq, enum pvs_broken *broken)
{
    /* acquire: pairs with the guest's release, so that ring entries and descriptors behind the index are visible */
    vq->seen_avail = atomic_load_explicit(&vq->avail->idx, memory_order_acquire);
    uint16_t n = (uint16_t)(vq->seen_avail - vq->next_avail);
    if (n > vq->num) {
        vq->seen_avail = vq->next_avail; /* nothing that can be used */
        *broken = PVS_BROKEN_AVAIL_JUMP;
        return 0;
    }
    return n;
}

/* A table of descriptors being walked: the ring's own, or an indirect one. */
struct table {
    const void *base;
    uint32_t size;
    bool indirect;
};

/* Check an indirect descriptor and turn `table` to what it points to (virtio 1.2, 2.7.5.3). WRITE on it is ignored. */
static enum pvs_broken
enter_indirect(struct pvs_vq *vq, const struct vring_desc *d, struct table *table)
{
    struct pvs_seg seg;

    if (!vq->indirect || table->indirect)
        return PVS_BROKEN_INDIRECT_REFUSED;
    if (d->flags & VRING_DESC_F_NEXT)
        return PVS_BROKEN_INDIRECT_NEXT;
    if (d->len == 0 || d->len % sizeof *d != 0 || d->len / sizeof *d > vq->num)
        return PVS_BROKEN_INDIRECT_SIZE;
    if (pvs_memory_translate(vq->memory, d->addr, d->len, &vq->region_hint, &seg, 1) != 1)
        return PVS_BROKEN_INDIRECT_ADDRESS;
    *table = (struct table){ .base = seg.base, .size = d->len / (uint32_t)sizeof *d, .indirect = true };
    return PVS_BROKEN_NONE;
}

enum pvs_broken
pvs_split_chain_from(struct pvs_vq *vq, struct vring_desc d, bool writable, struct pvs_seg *seg, uint32_t cap,
                     struct pvs_chain *chain)
{
    struct table table = { .base = vq->desc, .size = vq->num, .indirect = false };

    for (;;) {
        enum pvs_broken broken;
        if (d.flags & VRING_DESC_F_INDIRECT) { /* at most once: tables don't nest */
            broken = enter_indirect(vq, &d, &table);
            if (broken != PVS_BROKEN_NONE)
                return broken;
            d = pvs_split_desc(table.base, 0);
            continue;
        }
        broken = pvs_chain_add(vq, chain, d.addr, d.len, (d.flags & VRING_DESC_F_WRITE) != 0, writable, seg, cap);
        if (broken != PVS_BROKEN_NONE || !(d.flags & VRING_DESC_F_NEXT))
            return broken;
        if (d.next >= table.size)
            return PVS_BROKEN_NEXT_RANGE;
        d = pvs_split_desc(table.base, d.next);
    }
}

bool
pvs_split_wants_call(struct pvs_vq *vq)
{
    uint16_t now = atomic_load_explicit(&vq->published_used, memory_order_relaxed);
    bool wanted;

    if (vq->event_idx) {
        uint16_t event = atomic_load_explicit(vq->used_event, memory_order_relaxed);
        /* vring_need_event of virtio 1.2, 2.7.7.2: did the index pass `event` since the last call? */
        wanted = !vq->signalled_valid || (uint16_t)(now - event - 1) < (uint16_t)(now - vq->signalled_used);
        vq->signalled_used = now;
        vq->signalled_valid = true;
    } else {
        wanted = !(atomic_load_explicit(&vq->avail->flags, memory_order_relaxed) & VRING_AVAIL_F_NO_INTERRUPT);
    }
    return wanted;
}

void
pvs_split_kick_suppress(struct pvs_vq *vq)
{
    /* With EVENT_IDX an avail_event that stays behind is silence enough; the flag is for guests without it. */
    if (!vq->event_idx)
        atomic_store_explicit(&vq->used->flags, VRING_USED_F_NO_NOTIFY, memory_order_relaxed);
}

bool
pvs_split_kick_arm(struct pvs_vq *vq, uint16_t at)
{
    if (vq->event_idx)
        atomic_store_explicit(vq->avail_event, at, memory_order_relaxed);
    else
        atomic_store_explicit(&vq->used->flags, 0, memory_order_relaxed);
    /* full fence: our wish for a kick is visible before we look at avail->idx for the last time */
    atomic_thread_fence(memory_order_seq_cst);
    return atomic_load_explicit(&vq->avail->idx, memory_order_acquire) != at;
}
