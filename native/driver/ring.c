/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A split virtqueue from the driver's side (virtio 1.2, sections 2.7.13 and 2.7.14).
 *
 * Memory ordering. Three places matter; all else in the shared rings is plain:
 *   - avail->idx is stored with release: a device that reads the new index with acquire sees descriptors,
 * ring entry and buffer as they were written before.
 *   - used->idx is loaded with acquire: what the device wrote before publishing is seen after.
 *   - "I wrote an index, do you sleep?" needs store-load order on both sides: a full fence between publishing
 *     avail->idx and reading avail_event or used->flags (kick), and between writing used_event or
 * avail->flags and looking at used->idx once more (arm). Without it both sides may see the other's old value
 * and wait for ever.
 */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

int
pvd_queue_create(struct pvd_guest *g, uint32_t index)
{
    struct pvd_queue *q = &g->queues[index];
    uint32_t num = g->conf.queue_size;
    q->guest = g;
    q->index = index;
    q->num = num;
    q->mask = num - 1;
    q->writable = index % 2 == 0;
    q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    q->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (q->kick_fd < 0 || q->call_fd < 0) {
        return -errno;
    }
    q->free_ids = calloc(num, sizeof(*q->free_ids));
    q->link = calloc(num, sizeof(*q->link));
    q->order = calloc(num, sizeof(*q->order));
    q->chains = calloc(num, sizeof(*q->chains));
    q->slots = calloc(num, sizeof(*q->slots));
    if (!q->free_ids || !q->link || !q->order || !q->chains || !q->slots) {
        return -ENOMEM;
    }
    return 0;
}

static void
forget_chains(struct pvd_queue *q)
{
    for (uint32_t i = 0; q->chains != NULL && i < q->num; i++) {
        free(q->chains[i].segs);
        q->chains[i] = (struct pvd_chain){ 0 };
    }
}

void
pvd_queue_destroy(struct pvd_queue *q)
{
    forget_chains(q);
    free(q->free_ids);
    free(q->link);
    free(q->order);
    free(q->chains);
    free(q->slots);
    if (q->kick_fd >= 0) {
        close(q->kick_fd);
    }
    if (q->call_fd >= 0) {
        close(q->call_fd);
    }
}

void
pvd_queue_reset(struct pvd_queue *q)
{
    forget_chains(q);
    memset(q->desc, 0, q->num * sizeof(*q->desc));
    memset(q->avail, 0, sizeof(*q->avail) + (q->num + 1) * sizeof(q->avail->ring[0]));
    memset(q->used, 0, sizeof(*q->used) + q->num * sizeof(q->used->ring[0]) + sizeof(uint16_t));
    for (uint32_t i = 0; i < q->num; i++) {
        q->free_ids[i] = (uint16_t)i;
    }
    q->free_head = 0;
    q->free_count = q->num;
    q->avail_idx = 0;
    q->kicked = 0;
    q->last_used = 0;
    q->event_idx = pvd_has(q->guest, PVD_F_EVENT_IDX);
    q->counters = (struct pvd_counters){ 0 };
}

static uint16_t
take_id(struct pvd_queue *q, bool shuffle)
{
    if (shuffle) {
        uint32_t pick = (q->free_head + pvd_random(q->guest, q->free_count)) & q->mask;
        uint16_t id = q->free_ids[pick];
        q->free_ids[pick] = q->free_ids[q->free_head];
        q->free_ids[q->free_head] = id;
    }
    uint16_t id = q->free_ids[q->free_head];
    q->free_head = (q->free_head + 1) & q->mask;
    q->free_count--;
    return id;
}

static void
give_id(struct pvd_queue *q, uint16_t id)
{
    q->free_ids[(q->free_head + q->free_count) & q->mask] = id;
    q->free_count++;
}

/* The lengths of the pieces that the layout's cuts make of `len` bytes. */
static uint32_t
cut(const struct pvd_layout *layout, uint32_t len, uint32_t *lens)
{
    uint32_t n = 0;
    uint32_t at = 0;
    for (uint32_t i = 0; i < layout->n_cuts; i++) {
        if (layout->cuts[i] > at && layout->cuts[i] < len) {
            lens[n++] = layout->cuts[i] - at;
            at = layout->cuts[i];
        }
    }
    lens[n++] = len - at;
    return n;
}

/* Where a chain's first byte goes: into the head's slot, or so that its middle lies on a free border of two
 * regions. */
static uint64_t
pick_place(struct pvd_queue *q, uint16_t head, uint32_t extent, bool straddle, uint8_t *bridge)
{
    *bridge = 0;
    for (uint32_t b = 0; straddle && b < q->guest->n_bridges; b++) {
        struct pvd_bridge *candidate = &q->guest->bridges[b];
        if (candidate->ring == q->index && !candidate->busy) {
            candidate->busy = true;
            *bridge = (uint8_t)(b + 1);
            return candidate->border - extent / 2;
        }
    }
    return q->slots[head].gpa;
}

static void
write_guard(const struct pvd_queue *q, uint64_t gpa)
{
    uint8_t guard[PVD_GUARD_LEN];
    memset(guard, PVD_GUARD_BYTE, sizeof(guard));
    pvd_copy_in(q->guest, gpa, guard, sizeof(guard));
}

/* Lay the pieces out, each with a guard behind it: so they never touch, and a device that writes too far is
 * seen. */
static int
place_segs(struct pvd_queue *q, uint16_t head, const uint32_t *lens, bool straddle)
{
    struct pvd_chain *c = &q->chains[head];
    uint64_t gpa = pick_place(q, head, c->len + c->n_segs * PVD_GUARD_LEN, straddle, &c->bridge);
    if (c->n_segs == 1 && c->bridge == 0) {
        if (q->writable) {
            write_guard(q, gpa + c->len);
        }
        return 0;
    }
    c->segs = malloc(c->n_segs * sizeof(*c->segs));
    if (c->segs == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < c->n_segs; i++) {
        c->segs[i] = (struct pvd_seg){ .gpa = gpa, .len = lens[i] };
        write_guard(q, gpa + lens[i]);
        gpa += lens[i] + PVD_GUARD_LEN;
    }
    return 0;
}

/*
 * Take descriptors for `len` bytes laid out as said, without making them available yet. The head, or -ENOSPC,
 * -EINVAL, -ENOMEM.
 */
int
pvd_chain_build(struct pvd_queue *q, uint32_t len, const struct pvd_layout *layout)
{
    uint32_t lens[PVD_MAX_SEGS];
    bool indirect = (layout->flags & PVD_LAYOUT_INDIRECT) != 0;
    bool shuffle = (layout->flags & PVD_LAYOUT_SHUFFLE) != 0;
    if (layout->n_cuts > PVD_MAX_CUTS || (indirect && !pvd_has(q->guest, PVD_F_INDIRECT_DESC))) {
        return -EINVAL;
    }
    uint32_t n_segs = cut(layout, len, lens);
    indirect = indirect && layout->direct < n_segs;
    uint32_t direct = indirect ? layout->direct : n_segs;
    uint32_t n_desc = direct + indirect;
    if (n_segs + indirect > q->num) {
        /* No chain, indirect or not, may be longer than the ring (virtio 1.2, section 2.7.5.3.1). */
        return -EINVAL;
    }
    if (n_desc > q->free_count) {
        return -ENOSPC;
    }
    uint16_t head = take_id(q, shuffle);
    uint16_t id = head;
    for (uint32_t i = 1; i < n_desc; i++) {
        q->link[id] = take_id(q, shuffle);
        id = q->link[id];
    }
    struct pvd_chain *c = &q->chains[head];
    *c = (struct pvd_chain){ .len = len,
                             .n_segs = (uint16_t)n_segs,
                             .n_desc = (uint16_t)n_desc,
                             .direct = (uint16_t)direct,
                             .shuffle = shuffle };
    int rc = place_segs(q, head, lens, (layout->flags & PVD_LAYOUT_STRADDLE) != 0);
    if (rc != 0) {
        pvd_chain_free(q, head);
        return rc;
    }
    return head;
}

void
pvd_chain_seg(const struct pvd_queue *q, uint16_t head, uint32_t i, struct pvd_seg *out)
{
    const struct pvd_chain *c = &q->chains[head];
    if (c->segs != NULL) {
        *out = c->segs[i];
    } else {
        *out = (struct pvd_seg){ .gpa = q->slots[head].gpa, .len = c->len };
    }
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

/* Write the chain's descriptors and its avail entry; pvd_publish shows them to the device. */
void
pvd_chain_post(struct pvd_queue *q, uint16_t head)
{
    write_descriptors(q, head);
    q->chains[head].state = PVD_IN_FLIGHT;
    q->order[q->avail_idx & q->mask] = head;
    q->avail->ring[q->avail_idx & q->mask] = head;
    q->avail_idx++;
    q->counters.posted++;
}

void
pvd_chain_free(struct pvd_queue *q, uint16_t head)
{
    struct pvd_chain *c = &q->chains[head];
    uint16_t id = head;
    for (uint32_t i = 0; i < c->n_desc; i++) {
        uint16_t next = q->link[id];
        give_id(q, id);
        id = next;
    }
    if (c->bridge != 0) {
        q->guest->bridges[c->bridge - 1].busy = false;
    }
    if (c->segs != NULL) {
        free(c->segs);
    }
    *c = (struct pvd_chain){ 0 };
}

void
pvd_publish(struct pvd_queue *q)
{
    atomic_store_explicit(&q->avail->idx, q->avail_idx, memory_order_release);
}

static void
write_kick(const struct pvd_queue *q)
{
    uint64_t one = 1;
    /* EAGAIN means that the counter is full, so that the device has been told often enough. */
    ssize_t n = write(q->kick_fd, &one, sizeof(one));
    (void)n;
}

/* Kick if something was published since the last decision and the device wants to know
 * (sections 2.7.7, 2.7.10). */
int
pvd_queue_kick(struct pvd_queue *q)
{
    uint16_t old = q->kicked;
    bool wanted = false;
    if (old == q->avail_idx) {
        return 0;
    }
    atomic_thread_fence(memory_order_seq_cst);
    q->kicked = q->avail_idx;
    if (q->event_idx) {
        uint16_t event = atomic_load_explicit(q->avail_event, memory_order_relaxed);
        /* Has the index passed the event since `old`? All of it modulo 2^16. */
        wanted = (uint16_t)(q->avail_idx - event - 1) < (uint16_t)(q->avail_idx - old);
    } else {
        wanted = (atomic_load_explicit(&q->used->flags, memory_order_relaxed) & PVD_USED_NO_NOTIFY) == 0;
    }
    if (!wanted) {
        q->counters.suppressed++;
        return 0;
    }
    q->counters.kicks++;
    write_kick(q);
    return 1;
}

int
pvd_kick(pvd_guest *guest, uint32_t ring)
{
    struct pvd_queue *q = pvd_queue_of(guest, ring);
    if (q == NULL || guest->mute) {
        return q == NULL ? -EINVAL : -EFAULT;
    }
    return pvd_queue_kick(q);
}

int
pvd_kick_force(pvd_guest *guest, uint32_t ring)
{
    struct pvd_queue *q = pvd_queue_of(guest, ring);
    if (q == NULL) {
        return -EINVAL;
    }
    q->kicked = q->avail_idx;
    q->counters.kicks++;
    write_kick(q);
    return 0;
}

int
pvd_call_arm(pvd_guest *guest, uint32_t ring)
{
    struct pvd_queue *q = pvd_queue_of(guest, ring);
    if (q == NULL || guest->mute) {
        return q == NULL ? -EINVAL : -EFAULT;
    }
    if (q->event_idx) {
        atomic_store_explicit(q->used_event, q->last_used, memory_order_relaxed);
    } else {
        atomic_store_explicit(&q->avail->flags, 0, memory_order_relaxed);
    }
    atomic_thread_fence(memory_order_seq_cst);
    return atomic_load_explicit(&q->used->idx, memory_order_acquire) != q->last_used;
}

int
pvd_call_disarm(pvd_guest *guest, uint32_t ring)
{
    struct pvd_queue *q = pvd_queue_of(guest, ring);
    if (q == NULL || guest->mute) {
        return q == NULL ? -EINVAL : -EFAULT;
    }
    if (q->event_idx) {
        /* The furthest event there is: one behind what has been taken already. */
        atomic_store_explicit(q->used_event, (uint16_t)(q->last_used - 1), memory_order_relaxed);
    } else {
        atomic_store_explicit(&q->avail->flags, PVD_AVAIL_NO_INTERRUPT, memory_order_relaxed);
    }
    return 0;
}

/* Note a violation; the reason stays readable in the counters. */
int
pvd_fail(struct pvd_queue *q, uint32_t error)
{
    q->counters.errors++;
    q->counters.last_error = error;
    return -EPROTO;
}

/* How many used entries wait to be taken. May be more than are in flight: pvd_used_take judges that. */
uint32_t
pvd_used_pending(struct pvd_queue *q)
{
    return (uint16_t)(atomic_load_explicit(&q->used->idx, memory_order_acquire) - q->last_used);
}

/*
 * Take the next used entry: its head, with the length that the device reports. -EAGAIN when there is none.
 * -EPROTO when the entry is wrong; it is skipped then, except when the index itself is wrong, as skipping
 * would never end. The chain stays the caller's to free or post again.
 */
int
pvd_used_take(struct pvd_queue *q, uint32_t *len)
{
    uint32_t pending = pvd_used_pending(q);
    if (pending == 0) {
        return -EAGAIN;
    }
    if (pending > pvd_in_flight(q)) {
        return pvd_fail(q, PVD_ERR_USED_JUMP);
    }
    struct pvd_used_elem e = q->used->ring[q->last_used & q->mask];
    uint16_t expected = q->order[q->last_used & q->mask];
    q->last_used++;
    q->counters.used++;
    if (e.id >= q->num) {
        return pvd_fail(q, PVD_ERR_ID_RANGE);
    }
    if (q->chains[e.id].state == PVD_IDLE) {
        return pvd_fail(q, PVD_ERR_ID_IDLE);
    }
    q->counters.out_of_order += e.id != expected;
    q->chains[e.id].state = PVD_IDLE;
    *len = e.len;
    return (int)e.id;
}
