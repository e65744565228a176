/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the split format decides of a virtqueue (virtio 1.2, sections 2.7.5 to 2.7.8, 2.7.13 and 2.7.14).
 *
 * Memory ordering, beside what ring_notify.c says:
 *   - avail->idx is stored with release: a device that reads the new index with acquire sees descriptors, ring entry
 *     and buffer as they were written before.
 *   - used->idx is loaded with acquire: what the device wrote before publishing is seen after.
 */
#include "internal.h"

#include <string.h>

static void
split_reset(struct pvd_queue *q)
{
    memset(q->avail, 0, sizeof(*q->avail) + (q->num + 1) * sizeof(q->avail->ring[0]));
    memset(q->used, 0, sizeof(*q->used) + q->num * sizeof(q->used->ring[0]) + sizeof(uint16_t));
    q->mask = q->num - 1;
    q->s.used_event = (_Atomic uint16_t *)(void *)&q->avail->ring[q->num];
    q->s.avail_event = (_Atomic uint16_t *)(void *)&q->used->ring[q->num];
    q->s.avail_idx = 0;
    q->s.kicked = 0;
    q->s.last_used = 0;
}

/* The table's first entry is entry 0; the others may be anywhere in it, as `next` says. */
static void
write_table(struct pvd_queue *q, uint16_t head)
{
    const struct pvd_chain *c = &q->chains[head];
    uint32_t n = (uint32_t)c->n_segs - c->direct;
    uint16_t where[PVD_MAX_SEGS];
    for (uint32_t i = 0; i < n; i++) {
        where[i] = (uint16_t)i;
    }
    for (uint32_t i = n - 1; c->shuffle && i > 1; i--) {
        uint32_t pick = 1 + pvd_random(q->guest, i);
        uint16_t other = where[pick];
        where[pick] = where[i];
        where[i] = other;
    }
    struct pvd_desc *table = (struct pvd_desc *)(void *)(q->slots[head].ptr + q->slot_size);
    for (uint32_t i = 0; i < n; i++) {
        struct pvd_seg seg;
        bool last = i + 1 == n;
        pvd_chain_seg(q, head, c->direct + i, &seg);
        table[where[i]] = (struct pvd_desc){
            .addr = seg.gpa,
            .len = seg.len,
            .flags = (uint16_t)((q->writable ? PVD_DESC_WRITE : 0) | (last ? 0 : PVD_DESC_NEXT)),
            .next = last ? 0 : where[i + 1],
        };
    }
}

static void
write_descriptors(struct pvd_queue *q, uint16_t head)
{
    const struct pvd_chain *c = &q->chains[head];
    uint16_t write = q->writable ? PVD_DESC_WRITE : 0;
    uint16_t id = head;
    for (uint32_t i = 0; i < c->n_desc; i++) {
        struct pvd_desc d = { 0 };
        if (i < c->direct) {
            struct pvd_seg seg;
            pvd_chain_seg(q, head, i, &seg);
            d = (struct pvd_desc){ .addr = seg.gpa, .len = seg.len, .flags = write };
        } else {
            uint32_t n = (uint32_t)c->n_segs - c->direct;
            d = (struct pvd_desc){ .addr = pvd_table_gpa(q, head),
                                   .len = n * (uint32_t)sizeof(struct pvd_desc),
                                   .flags = PVD_DESC_INDIRECT };
            write_table(q, head);
        }
        if (i + 1 < c->n_desc) {
            d.flags |= PVD_DESC_NEXT;
            d.next = q->link[id];
        }
        q->desc[id] = d;
        id = d.next;
    }
}

/* The chain's descriptors and its avail entry. */
static void
split_write(struct pvd_queue *q, uint16_t head)
{
    write_descriptors(q, head);
    q->avail->ring[q->s.avail_idx & q->mask] = head;
    q->s.avail_idx++;
}

static void
split_publish(struct pvd_queue *q)
{
    atomic_store_explicit(&q->avail->idx, q->s.avail_idx, memory_order_release);
}

static bool
split_to_kick(const struct pvd_queue *q)
{
    return q->s.kicked != q->s.avail_idx;
}

static bool
split_kick_wanted(struct pvd_queue *q)
{
    uint16_t old = q->s.kicked;
    q->s.kicked = q->s.avail_idx;
    if (!q->event_idx) {
        return (atomic_load_explicit(&q->used->flags, memory_order_relaxed) & PVD_USED_NO_NOTIFY) == 0;
    }
    uint16_t event = atomic_load_explicit(q->s.avail_event, memory_order_relaxed);
    /* Has the index passed the event since `old`? All of it modulo 2^16. */
    return (uint16_t)(q->s.avail_idx - event - 1) < (uint16_t)(q->s.avail_idx - old);
}

static void
split_arm(struct pvd_queue *q)
{
    if (q->event_idx) {
        atomic_store_explicit(q->s.used_event, q->s.last_used, memory_order_relaxed);
    } else {
        atomic_store_explicit(&q->avail->flags, 0, memory_order_relaxed);
    }
}

static void
split_disarm(struct pvd_queue *q)
{
    if (q->event_idx) {
        /* The furthest event there is: one behind what has been taken already. */
        atomic_store_explicit(q->s.used_event, (uint16_t)(q->s.last_used - 1), memory_order_relaxed);
    } else {
        atomic_store_explicit(&q->avail->flags, PVD_AVAIL_NO_INTERRUPT, memory_order_relaxed);
    }
}

static uint32_t
split_pending(const struct pvd_queue *q, uint32_t limit)
{
    (void)limit;
    return (uint16_t)(atomic_load_explicit(&q->used->idx, memory_order_acquire) - q->s.last_used);
}

static void
split_element(const struct pvd_queue *q, uint32_t *id, uint32_t *len)
{
    struct pvd_used_elem e = q->used->ring[q->s.last_used & q->mask];
    *id = e.id;
    *len = e.len;
}

static void
split_advance(struct pvd_queue *q, uint16_t n_desc)
{
    (void)n_desc;
    q->s.last_used++;
}

/* Devices complete in order, so what is not used will be looked at again (as QEMU has it after a reconnect). */
static uint32_t
split_base(const struct pvd_queue *q)
{
    return atomic_load_explicit(&q->used->idx, memory_order_acquire);
}

const struct pvd_ring_ops pvd_split_ops = {
    .reset = split_reset,
    .write = split_write,
    .publish = split_publish,
    .to_kick = split_to_kick,
    .kick_wanted = split_kick_wanted,
    .arm = split_arm,
    .disarm = split_disarm,
    .pending = split_pending,
    .element = split_element,
    .advance = split_advance,
    .base = split_base,
};
