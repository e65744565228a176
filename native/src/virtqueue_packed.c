/* SPDX-License-Identifier: Apache-2.0 */
/* virtqueue_packed.c - see virtqueue_packed.h for how it works and who may call it. */
#include "virtqueue_packed.h"

#include <errno.h>

int
pvs_packed_attach(struct pvs_vq *vq, const struct pvs_ring_conf *conf)
{
    const struct pvs_memory *memory = vq->memory;
    uint32_t num = conf->num;
    uint16_t base = (uint16_t)conf->base;

    if (num == 0 || num > 32768 || pvs_packed_index(base) >= num)
        return -EINVAL;
    /* the alignments that virtio 1.2, 2.8.10.1 demands */
    if (conf->desc_uva % 16 != 0 || conf->avail_uva % 4 != 0 || conf->used_uva % 4 != 0 || memory == NULL)
        return memory == NULL ? -EFAULT : -EINVAL;
    void *ring = pvs_memory_from_uva(memory, conf->desc_uva, sizeof(struct vring_packed_desc) * (uint64_t)num);
    void *driver = pvs_memory_from_uva(memory, conf->avail_uva, sizeof(struct vring_packed_event));
    void *device = pvs_memory_from_uva(memory, conf->used_uva, sizeof(struct vring_packed_event));
    if (ring == NULL || driver == NULL || device == NULL)
        return -EFAULT;
    /* guest memory is mapped page aligned, but a region's offset in its file need not be */
    if ((uintptr_t)ring % 8 != 0 || (uintptr_t)driver % 2 != 0 || (uintptr_t)device % 2 != 0)
        return -EINVAL;

    vq->num = num;
    vq->ring = ring;
    vq->driver_event = driver;
    vq->device_event = device;
    vq->batch_open = false;
    vq->unsignalled = 0;
    /* nothing is held past a burst: what was taken is what was given back */
    vq->next_avail = vq->seen_avail = vq->next_used = base;
    atomic_store_explicit(&vq->published_used, base, memory_order_relaxed);
    return 0;
}

/* The descriptors of an indirect table follow each other; only WRITE counts among their flags (virtio 1.2, 2.8.7). */
static enum pvs_broken
walk_indirect(struct pvs_vq *vq, uint64_t addr, uint32_t len, bool writable, struct pvs_seg *seg, uint32_t cap,
              struct pvs_chain *chain)
{
    struct pvs_seg table;

    if (!vq->indirect)
        return PVS_BROKEN_INDIRECT_REFUSED;
    if (len == 0 || len % sizeof(struct vring_packed_desc) != 0 || len / sizeof(struct vring_packed_desc) > vq->num)
        return PVS_BROKEN_INDIRECT_SIZE;
    if (pvs_memory_translate(vq->memory, addr, len, &vq->region_hint, &table, 1) != 1)
        return PVS_BROKEN_INDIRECT_ADDRESS;
    const volatile struct pvs_desc_words *words = (const volatile struct pvs_desc_words *)table.base;
    for (uint32_t i = 0; i < len / sizeof *words; i++) {
        uint64_t at = words[i].addr, rest = words[i].rest;
        if ((rest >> 48 & VRING_DESC_F_INDIRECT) != 0)
            return PVS_BROKEN_INDIRECT_REFUSED;
        bool write = (rest >> 48 & VRING_DESC_F_WRITE) != 0;
        enum pvs_broken broken = pvs_chain_add(vq, chain, at, (uint32_t)rest, write, writable, seg, cap);
        if (broken != PVS_BROKEN_NONE)
            return broken;
    }
    return PVS_BROKEN_NONE;
}

enum pvs_broken
pvs_packed_chain_from(struct pvs_vq *vq, uint16_t at, uint64_t rest, bool writable, struct pvs_seg *seg, uint32_t cap,
                      struct pvs_chain *chain)
{
    for (uint32_t slots = 1;; slots++) {
        uint16_t flags = (uint16_t)(rest >> 48);
        bool indirect = (flags & VRING_DESC_F_INDIRECT) != 0, more = (flags & VRING_DESC_F_NEXT) != 0;
        uint64_t addr = atomic_load_explicit(&vq->ring[pvs_packed_index(at)].addr, memory_order_relaxed);
        enum pvs_broken broken;

        if (indirect && (more || slots != 1)) /* virtio 1.2, 2.8.19: never in a list */
            broken = PVS_BROKEN_INDIRECT_NEXT;
        else if (indirect)
            broken = walk_indirect(vq, addr, (uint32_t)rest, writable, seg, cap, chain);
        else
            broken =
                pvs_chain_add(vq, chain, addr, (uint32_t)rest, (flags & VRING_DESC_F_WRITE) != 0, writable, seg, cap);
        if (broken != PVS_BROKEN_NONE)
            return broken;
        at = pvs_packed_advance(vq, at, 1);
        chain->next = at;
        chain->id = (uint16_t)(rest >> 32); /* the last one's counts (virtio 1.2, 2.8.6) */
        if (!more)
            return chain->id < vq->num ? PVS_BROKEN_NONE : PVS_BROKEN_ID_RANGE;
        /* relaxed: ordered behind the acquire load of the first descriptor's flags, which the guest writes last */
        rest = atomic_load_explicit(&vq->ring[pvs_packed_index(at)].rest, memory_order_relaxed);
    }
}

/*
 * Has the descriptor at `event` been given back, among the last `gone`? (virtio 1.2, 2.8.10; vring_need_event, by positions.)
 * What lies further back than one time round is yet to come: the guest has not seen the last round, if it waits.
 */
static bool
passed(const struct pvs_vq *vq, uint16_t event, uint16_t now, uint32_t gone)
{
    if (pvs_packed_index(event) >= vq->num)
        return false;
    uint32_t back = pvs_packed_distance(vq, event, now);
    return back != 0 && back <= gone && back <= vq->num;
}

bool
pvs_packed_wants_call(struct pvs_vq *vq)
{
    uint16_t now = atomic_load_explicit(&vq->published_used, memory_order_relaxed);
    uint16_t flags = atomic_load_explicit(&vq->driver_event->flags, memory_order_relaxed);
    uint32_t gone = vq->unsignalled;
    bool valid = vq->signalled_valid;

    vq->unsignalled = 0;
    vq->signalled_valid = true;
    if (flags != VRING_EVENT_DESC || !vq->event_idx)
        return flags != VRING_EVENT_DISABLE;
    if (!valid)
        return true;
    /* acquire fence: the guest writes the position before the flag */
    atomic_thread_fence(memory_order_acquire);
    return passed(vq, atomic_load_explicit(&vq->driver_event->off_wrap, memory_order_relaxed), now, gone);
}

void
pvs_packed_kick_suppress(struct pvs_vq *vq)
{
    atomic_store_explicit(&vq->device_event->flags, VRING_EVENT_DISABLE, memory_order_relaxed);
}

bool
pvs_packed_kick_arm(struct pvs_vq *vq, uint16_t at)
{
    if (vq->event_idx) {
        atomic_store_explicit(&vq->device_event->off_wrap, at, memory_order_relaxed);
        /* release: the guest that sees the flag sees the position */
        atomic_store_explicit(&vq->device_event->flags, VRING_EVENT_DESC, memory_order_release);
    } else {
        atomic_store_explicit(&vq->device_event->flags, VRING_EVENT_ENABLE, memory_order_relaxed);
    }
    /* full fence: our wish for a kick is visible before we look for the last time */
    atomic_thread_fence(memory_order_seq_cst);
    return pvs_packed_ready(vq, at);
}
