/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Raw access to the rings as they lie in shared memory, for tests that break them. See pvs_driver.h.
 */
#include "internal.h"

#include <errno.h>

/* ---- Split ---- */

/* The ring to touch, if it is of this format; or NULL with the errno value why not. */
static struct pvd_queue *
raw(pvd_guest *guest, uint32_t ring, bool packed, int *error)
{
    struct pvd_queue *q = pvd_queue_of(guest, ring);
    bool right = q != NULL && q->packed == packed;
    *error = right ? -EFAULT : -EINVAL;
    return right && !guest->mute ? q : NULL;
}

int
pvd_desc_get(pvd_guest *guest, uint32_t ring, uint32_t i, struct pvd_desc *out)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, false, &error);
    if (q == NULL) {
        return error;
    }
    *out = q->desc[i & q->mask];
    return 0;
}

int
pvd_desc_set(pvd_guest *guest, uint32_t ring, uint32_t i, const struct pvd_desc *desc)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, false, &error);
    if (q == NULL) {
        return error;
    }
    q->desc[i & q->mask] = *desc;
    return 0;
}

int
pvd_avail_idx_set(pvd_guest *guest, uint32_t ring, uint16_t idx)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, false, &error);
    if (q == NULL) {
        return error;
    }
    atomic_store_explicit(&q->avail->idx, idx, memory_order_release);
    return 0;
}

int
pvd_avail_idx(pvd_guest *guest, uint32_t ring)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, false, &error);
    return q == NULL ? error : atomic_load_explicit(&q->avail->idx, memory_order_relaxed);
}

int
pvd_avail_entry_set(pvd_guest *guest, uint32_t ring, uint32_t i, uint16_t id)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, false, &error);
    if (q == NULL) {
        return error;
    }
    q->avail->ring[i & q->mask] = id;
    return 0;
}

int
pvd_avail_flags_set(pvd_guest *guest, uint32_t ring, uint16_t flags)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, false, &error);
    if (q == NULL) {
        return error;
    }
    atomic_store_explicit(&q->avail->flags, flags, memory_order_relaxed);
    return 0;
}

int
pvd_used_event_set(pvd_guest *guest, uint32_t ring, uint16_t idx)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, false, &error);
    if (q == NULL) {
        return error;
    }
    atomic_store_explicit(q->s.used_event, idx, memory_order_relaxed);
    return 0;
}

int
pvd_used_idx(pvd_guest *guest, uint32_t ring)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, false, &error);
    return q == NULL ? error : atomic_load_explicit(&q->used->idx, memory_order_acquire);
}

int
pvd_used_flags(pvd_guest *guest, uint32_t ring)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, false, &error);
    return q == NULL ? error : atomic_load_explicit(&q->used->flags, memory_order_relaxed);
}

int
pvd_avail_event(pvd_guest *guest, uint32_t ring)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, false, &error);
    return q == NULL ? error : atomic_load_explicit(q->s.avail_event, memory_order_relaxed);
}

int
pvd_used_entry(pvd_guest *guest, uint32_t ring, uint32_t i, uint32_t *id, uint32_t *len)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, false, &error);
    if (q == NULL) {
        return error;
    }
    *id = q->used->ring[i & q->mask].id;
    *len = q->used->ring[i & q->mask].len;
    return 0;
}

int
pvd_raw_post(pvd_guest *guest, uint32_t ring, uint16_t head)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, false, &error);
    if (q == NULL) {
        return error;
    }
    if (pvd_in_flight(q) >= q->num) {
        return -ENOSPC;
    }
    bool usable = head < q->num;
    if (usable && q->chains[head].state == PVD_IDLE) {
        q->chains[head].state = PVD_RAW;
    }
    pvd_order_add(q, head, 0, !usable);
    q->avail->ring[q->s.avail_idx & q->mask] = head;
    q->s.avail_idx++;
    pvd_publish(q);
    return 0;
}

/* ---- Packed ---- */

int
pvd_packed_get(pvd_guest *guest, uint32_t ring, uint32_t i, struct pvd_packed_desc *out)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, true, &error);
    if (q == NULL) {
        return error;
    }
    const struct pvd_slot_desc *d = &q->ring[i % q->num];
    uint16_t flags = atomic_load_explicit(&d->flags, memory_order_acquire);
    *out = (struct pvd_packed_desc){ .addr = d->addr, .len = d->len, .id = d->id, .flags = flags };
    return 0;
}

int
pvd_packed_set(pvd_guest *guest, uint32_t ring, uint32_t i, const struct pvd_packed_desc *desc)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, true, &error);
    if (q == NULL) {
        return error;
    }
    struct pvd_slot_desc *d = &q->ring[i % q->num];
    d->addr = desc->addr;
    d->len = desc->len;
    d->id = desc->id;
    atomic_store_explicit(&d->flags, desc->flags, memory_order_release);
    return 0;
}

int
pvd_packed_post(pvd_guest *guest, uint32_t ring, const struct pvd_packed_desc *descs, uint32_t n)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, true, &error);
    if (q == NULL) {
        return error;
    }
    if (n == 0) {
        return -EINVAL;
    }
    if (n > q->n_free) {
        return -ENOSPC;
    }
    uint16_t id = descs[n - 1].id;
    bool usable = id < q->num && q->chains[id].state == PVD_IDLE && q->chains[id].n_segs == 0;
    if (usable) {
        q->chains[id] = (struct pvd_chain){ .n_desc = (uint16_t)n, .state = PVD_RAW };
    }
    q->n_free -= n;
    pvd_packed_write(q, descs, n);
    pvd_order_add(q, id, (uint16_t)n, !usable);
    pvd_publish(q);
    return 0;
}

int
pvd_packed_next(pvd_guest *guest, uint32_t ring, int used)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, true, &error);
    if (q == NULL) {
        return error;
    }
    struct pvd_place place = used ? q->p.next_used : q->p.next_avail;
    return place.at | place.wrap << 15;
}

int
pvd_event_get(pvd_guest *guest, uint32_t ring, int device_area, struct pvd_event *out)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, true, &error);
    if (q == NULL) {
        return error;
    }
    uint32_t word = atomic_load_explicit(device_area ? q->device_event : q->driver_event, memory_order_relaxed);
    *out = (struct pvd_event){ .off_wrap = (uint16_t)word, .flags = (uint16_t)(word >> 16) };
    return 0;
}

int
pvd_event_set(pvd_guest *guest, uint32_t ring, int device_area, const struct pvd_event *event)
{
    int error;
    struct pvd_queue *q = raw(guest, ring, true, &error);
    if (q == NULL) {
        return error;
    }
    uint32_t word = event->off_wrap | (uint32_t)event->flags << 16;
    atomic_store_explicit(device_area ? q->device_event : q->driver_event, word, memory_order_relaxed);
    return 0;
}

/* ---- Either ---- */

int
pvd_raw_take(pvd_guest *guest, uint32_t ring, uint32_t *id, uint32_t *len)
{
    struct pvd_queue *q = pvd_queue_of(guest, ring);
    if (q == NULL || guest->mute) {
        return q == NULL ? -EINVAL : -EFAULT;
    }
    if (q->ops->pending(q, 1) == 0) {
        return -EAGAIN;
    }
    q->ops->element(q, id, len);
    struct pvd_turn turn = q->order[q->n_taken & q->list_mask];
    bool known = *id < q->num && q->chains[*id].state != PVD_IDLE;
    q->ops->advance(q, known ? q->chains[*id].n_desc : turn.n_desc);
    q->n_free += q->packed && turn.stray ? turn.n_desc : 0;
    q->n_taken++;
    q->counters.used++;
    if (known) {
        pvd_chain_free(q, (uint16_t)*id);
    }
    return 0;
}
