/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the packed format decides of a virtqueue (virtio 1.2, section 2.8).
 *
 * How it works: one ring, which the driver fills with available descriptors and the device overwrites with used ones,
 * each in ring order. AVAIL and USED say whose turn it is, relative to a wrap counter that both sides flip at the
 * ring's end. A used element stands where the first descriptor of what it uses stood; its id tells how many
 * descriptors that were, so the ring's size need not be a power of two and places are compared, never masked.
 *
 * Memory ordering, beside what ring_notify.c says:
 *   - a chain's first flags are stored last and with release: a device that reads them with acquire sees all else.
 *     What is posted between two calls of publish is shown at once, by the flags of its very first descriptor.
 *   - flags are loaded with acquire before the element that they belong to is read.
 */
#include "internal.h"

/* The id of all but a chain's last descriptor: it means nothing there (section 2.8.6), so let it be wrong. */
#define NO_ID UINT16_MAX

static uint16_t
used_flags(uint16_t wrap)
{
    return wrap ? PVD_DESC_AVAIL | PVD_DESC_USED : 0;
}

static uint16_t
available_flags(uint16_t wrap)
{
    return wrap ? PVD_DESC_AVAIL : PVD_DESC_USED;
}

bool
pvd_packed_used(const struct pvd_queue *q, struct pvd_place place)
{
    uint16_t flags = atomic_load_explicit(&q->ring[place.at].flags, memory_order_acquire);
    return (flags & (PVD_DESC_AVAIL | PVD_DESC_USED)) == used_flags(place.wrap);
}

static void
packed_reset(struct pvd_queue *q)
{
    q->p.next_avail = (struct pvd_place){ .at = 0, .wrap = 1 };
    q->p.next_used = q->p.next_avail;
    q->p.hiding = false;
    q->p.unkicked = 0;
    atomic_store_explicit(q->driver_event, 0, memory_order_relaxed);
    atomic_store_explicit(q->device_event, 0, memory_order_relaxed);
}

void
pvd_packed_write(struct pvd_queue *q, const struct pvd_packed_desc *descs, uint32_t n)
{
    struct pvd_place first = q->p.next_avail;
    for (uint32_t i = 0; i < n; i++) {
        struct pvd_place place = pvd_place_add(q, first, i);
        struct pvd_slot_desc *d = &q->ring[place.at];
        d->addr = descs[i].addr;
        d->len = descs[i].len;
        d->id = descs[i].id;
        if (i > 0) {
            uint16_t flags = descs[i].flags | available_flags(place.wrap);
            atomic_store_explicit(&d->flags, flags, memory_order_relaxed);
        }
    }
    uint16_t flags = descs[0].flags | available_flags(first.wrap);
    if (q->p.hiding) {
        atomic_store_explicit(&q->ring[first.at].flags, flags, memory_order_release);
    } else {
        q->p.hiding = true;
        q->p.hidden = first;
        q->p.hidden_flags = flags;
    }
    q->p.next_avail = pvd_place_add(q, first, n);
    q->p.unkicked += n;
}

/* A table has no order but its own, and no flag but WRITE counts in it (section 2.8.7). */
static void
write_table(struct pvd_queue *q, uint16_t head)
{
    struct pvd_packed_desc *table = (struct pvd_packed_desc *)(void *)(q->slots[head].ptr + q->slot_size);
    for (uint32_t i = 0; i < q->chains[head].n_segs; i++) {
        struct pvd_seg seg;
        pvd_chain_seg(q, head, i, &seg);
        table[i] = (struct pvd_packed_desc){
            .addr = seg.gpa, .len = seg.len, .id = NO_ID, .flags = q->writable ? PVD_DESC_WRITE : 0
        };
    }
}

static void
packed_write(struct pvd_queue *q, uint16_t head)
{
    const struct pvd_chain *c = &q->chains[head];
    struct pvd_packed_desc descs[PVD_MAX_SEGS];
    if (c->direct == 0) {
        write_table(q, head);
        descs[0] = (struct pvd_packed_desc){ .addr = pvd_table_gpa(q, head),
                                             .len = c->n_segs * (uint32_t)sizeof(struct pvd_packed_desc),
                                             .flags = PVD_DESC_INDIRECT };
    }
    for (uint32_t i = 0; i < c->direct; i++) {
        struct pvd_seg seg;
        uint16_t next = i + 1u < c->direct ? PVD_DESC_NEXT : 0;
        pvd_chain_seg(q, head, i, &seg);
        descs[i] = (struct pvd_packed_desc){
            .addr = seg.gpa, .len = seg.len, .id = NO_ID, .flags = (uint16_t)(next | (q->writable ? PVD_DESC_WRITE : 0))
        };
    }
    descs[c->n_desc - 1].id = head;
    pvd_packed_write(q, descs, c->n_desc);
}

static void
packed_publish(struct pvd_queue *q)
{
    if (q->p.hiding) {
        q->p.hiding = false;
        atomic_store_explicit(&q->ring[q->p.hidden.at].flags, q->p.hidden_flags, memory_order_release);
    }
}

static bool
packed_to_kick(const struct pvd_queue *q)
{
    return q->p.unkicked > 0;
}

static bool
packed_kick_wanted(struct pvd_queue *q)
{
    uint32_t word = atomic_load_explicit(q->device_event, memory_order_relaxed);
    int32_t new = q->p.next_avail.at;
    int32_t old = new - (int32_t)q->p.unkicked;
    q->p.unkicked = 0;
    if ((word >> 16 & 3) != PVD_EVENT_DESC) {
        return (word >> 16 & 3) != PVD_EVENT_DISABLE;
    }
    /* Is the descriptor that the device waits for one of those made available since the last decision? */
    int32_t event = (int32_t)(word & 0x7fff);
    if ((word >> 15 & 1) != q->p.next_avail.wrap) {
        event -= (int32_t)q->num;
    }
    return event >= old && event < new;
}

static void
packed_arm(struct pvd_queue *q)
{
    uint32_t word = PVD_EVENT_ENABLE;
    if (q->event_idx) {
        word = q->p.next_used.at | (uint32_t)q->p.next_used.wrap << 15 | (uint32_t)PVD_EVENT_DESC << 16;
    }
    atomic_store_explicit(q->driver_event, word, memory_order_relaxed);
}

static void
packed_disarm(struct pvd_queue *q)
{
    atomic_store_explicit(q->driver_event, (uint32_t)PVD_EVENT_DISABLE << 16, memory_order_relaxed);
}

/* How many chains an element uses that stands where chain number `turn` began, of `flying` from there on; one where that
 * can't be told. */
static uint32_t
batch_at(const struct pvd_queue *q, uint16_t id, uint32_t turn, uint32_t flying)
{
    if (!q->in_order || id >= q->num || q->chains[id].state == PVD_IDLE) {
        return 1;
    }
    uint32_t before = q->chains[id].turn - turn;
    return before < flying ? before + 1 : 1;
}

/* Count used chains that were not yet taken, `limit` at most or a batch more; `place` is then behind them. */
static uint32_t
walk(const struct pvd_queue *q, uint32_t limit, struct pvd_place *place)
{
    uint32_t flying = pvd_in_flight(q) - q->batch;
    uint32_t n = 0;
    *place = q->p.next_used;
    while (n < limit && pvd_packed_used(q, *place)) {
        uint16_t id = q->ring[place->at].id;
        uint32_t turn = q->n_taken + q->batch + n;
        if (n == flying) {
            return n + 1;
        }
        uint32_t batch = batch_at(q, id, turn, flying - n);
        bool known = !q->in_order && id < q->num && q->chains[id].state != PVD_IDLE;
        for (uint32_t i = 0; i < batch; i++) {
            uint16_t n_desc = q->order[(turn + i) & q->list_mask].n_desc;
            *place = pvd_place_add(q, *place, known ? q->chains[id].n_desc : n_desc);
        }
        n += batch;
    }
    return n;
}

static uint32_t
packed_pending(const struct pvd_queue *q, uint32_t limit)
{
    struct pvd_place behind;
    return walk(q, limit, &behind);
}

static void
packed_element(const struct pvd_queue *q, uint32_t *id, uint32_t *len)
{
    const struct pvd_slot_desc *d = &q->ring[q->p.next_used.at];
    uint16_t flags = atomic_load_explicit(&d->flags, memory_order_relaxed);
    *id = d->id;
    /* Without the flag nothing was written, and the length means nothing (section 2.8.4). */
    *len = (flags & PVD_DESC_WRITE) != 0 ? d->len : 0;
}

static void
packed_advance(struct pvd_queue *q, uint16_t n_desc)
{
    q->p.next_used = pvd_place_add(q, q->p.next_used, n_desc);
}

/* Both halves alike: devices complete in order, so what is not used will be looked at again. */
static uint32_t
packed_base(const struct pvd_queue *q)
{
    struct pvd_place behind;
    (void)walk(q, pvd_in_flight(q), &behind);
    uint32_t half = behind.at | (uint32_t)behind.wrap << 15;
    return half | half << 16;
}

const struct pvd_ring_ops pvd_packed_ops = {
    .reset = packed_reset,
    .write = packed_write,
    .publish = packed_publish,
    .to_kick = packed_to_kick,
    .kick_wanted = packed_kick_wanted,
    .arm = packed_arm,
    .disarm = packed_disarm,
    .pending = packed_pending,
    .element = packed_element,
    .advance = packed_advance,
    .base = packed_base,
};
