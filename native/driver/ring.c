/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtqueue from the driver's side, whatever its format (virtio 1.2, sections 2.7 and 2.8).
 *
 * How it works: a chain is built (ids and descriptors are reserved for it), posted (written), published (shown to the
 * device), taken (used by the device) and then freed or posted again. Split rings number descriptors and name a chain
 * by that of its first one, its head; packed rings give chains ids of their own. Both are an id here, and "head" in
 * the code. What is in flight stands in `order`, oldest first.
 *
 * IN_ORDER. A device may then use a batch of chains by one used element, which names the last of them (sections
 * 2.7.9 and 2.8.8): the others are taken without reading anything. On a receive ring each chain needs its length, so
 * there only batches of one are taken, and all else is an error of order.
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
    q->list_mask = num - 1;
    while ((q->list_mask & (q->list_mask + 1)) != 0) {
        q->list_mask |= q->list_mask >> 1;
    }
    q->writable = index % 2 == 0;
    q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    q->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (q->kick_fd < 0 || q->call_fd < 0) {
        return -errno;
    }
    q->free_ids = calloc(q->list_mask + 1ul, sizeof(*q->free_ids));
    q->link = calloc(num, sizeof(*q->link));
    q->order = calloc(q->list_mask + 1ul, sizeof(*q->order));
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
    q->packed = pvd_has(q->guest, PVD_F_RING_PACKED);
    q->in_order = pvd_has(q->guest, PVD_F_IN_ORDER);
    q->event_idx = pvd_has(q->guest, PVD_F_EVENT_IDX);
    q->ops = q->packed ? &pvd_packed_ops : &pvd_split_ops;
    memset(q->desc_area, 0, q->num * sizeof(*q->desc));
    q->ops->reset(q);
    for (uint32_t i = 0; i < q->num; i++) {
        q->free_ids[i] = (uint16_t)i;
    }
    q->free_head = 0;
    q->free_tail = q->num;
    q->n_free = q->num;
    q->n_posted = 0;
    q->n_taken = 0;
    q->batch = 0;
    q->counters = (struct pvd_counters){ 0 };
}

static uint16_t
take_id(struct pvd_queue *q, bool shuffle)
{
    uint32_t head = q->free_head & q->list_mask;
    if (shuffle) {
        uint32_t pick = (q->free_head + pvd_random(q->guest, q->free_tail - q->free_head)) & q->list_mask;
        uint16_t id = q->free_ids[pick];
        q->free_ids[pick] = q->free_ids[head];
        q->free_ids[head] = id;
    }
    q->free_head++;
    return q->free_ids[head];
}

static void
give_id(struct pvd_queue *q, uint16_t id)
{
    q->free_ids[q->free_tail & q->list_mask] = id;
    q->free_tail++;
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

void
pvd_write_guard(const struct pvd_queue *q, uint64_t gpa)
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
            pvd_write_guard(q, gpa + c->len);
        }
        return 0;
    }
    c->segs = malloc(c->n_segs * sizeof(*c->segs));
    if (c->segs == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < c->n_segs; i++) {
        c->segs[i] = (struct pvd_seg){ .gpa = gpa, .len = lens[i] };
        pvd_write_guard(q, gpa + lens[i]);
        gpa += lens[i] + PVD_GUARD_LEN;
    }
    return 0;
}

/* Whether the features allow a chain of `n_segs` pieces, the first `direct` of them not in a table. */
static bool
layout_legal(const struct pvd_queue *q, const struct pvd_layout *layout, uint32_t n_segs, uint32_t direct)
{
    bool table = direct < n_segs;
    if ((layout->flags & PVD_LAYOUT_INDIRECT) != 0 && !pvd_has(q->guest, PVD_F_INDIRECT_DESC)) {
        return false;
    }
    if (q->packed && table && direct > 0) {
        /* A list is either in the ring or in a table (section 2.8.5). */
        return false;
    }
    if (!q->packed && q->in_order && (layout->flags & PVD_LAYOUT_SHUFFLE) != 0) {
        /* Descriptors are used in the table's order (section 2.7.5). */
        return false;
    }
    /* No chain, indirect or not, may be longer than the ring (sections 2.7.5.3.1 and 2.8.6). */
    return n_segs + (table && !q->packed) <= q->num;
}

static uint16_t
take_ids(struct pvd_queue *q, uint32_t n_desc, bool shuffle)
{
    uint16_t head = take_id(q, shuffle);
    uint16_t id = head;
    for (uint32_t i = 1; i < n_desc && !q->packed; i++) {
        q->link[id] = take_id(q, shuffle);
        id = q->link[id];
    }
    q->n_free -= n_desc;
    return head;
}

/*
 * Reserve ids and descriptors for `len` bytes laid out as said. The head, or -ENOSPC, -EINVAL, -ENOMEM.
 */
int
pvd_chain_build(struct pvd_queue *q, uint32_t len, const struct pvd_layout *layout)
{
    uint32_t lens[PVD_MAX_SEGS];
    bool shuffle = (layout->flags & PVD_LAYOUT_SHUFFLE) != 0;
    if (layout->n_cuts > PVD_MAX_CUTS) {
        return -EINVAL;
    }
    uint32_t n_segs = cut(layout, len, lens);
    bool table = (layout->flags & PVD_LAYOUT_INDIRECT) != 0 && layout->direct < n_segs;
    uint32_t direct = table ? layout->direct : n_segs;
    uint32_t n_desc = direct + table;
    if (!layout_legal(q, layout, n_segs, direct)) {
        return -EINVAL;
    }
    if (n_desc > q->n_free) {
        return -ENOSPC;
    }
    uint16_t head = take_ids(q, n_desc, shuffle);
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

/* Note that a chain is in flight. */
void
pvd_order_add(struct pvd_queue *q, uint16_t head, uint16_t n_desc, bool stray)
{
    q->order[q->n_posted & q->list_mask] = (struct pvd_turn){ .id = head, .n_desc = n_desc, .stray = stray };
    if (!stray) {
        q->chains[head].turn = q->n_posted;
    }
    q->n_posted++;
    q->counters.posted++;
}

/* Write the chain's descriptors; pvd_publish shows them to the device. */
void
pvd_chain_post(struct pvd_queue *q, uint16_t head)
{
    q->ops->write(q, head);
    q->chains[head].state = PVD_IN_FLIGHT;
    pvd_order_add(q, head, q->chains[head].n_desc, false);
}

/* Post a receive chain again that was taken. In order, its descriptors may not be those whose turn it is. */
void
pvd_chain_repost(struct pvd_queue *q, uint16_t head)
{
    if (q->packed || !q->in_order) {
        pvd_chain_post(q, head);
        return;
    }
    pvd_chain_free(q, head);
    int next = pvd_chain_build(q, q->guest->conf.rx_buf_size, &q->rx_layout);
    if (next >= 0) {
        pvd_chain_post(q, (uint16_t)next);
    }
}

void
pvd_chain_free(struct pvd_queue *q, uint16_t head)
{
    struct pvd_chain *c = &q->chains[head];
    uint16_t id = head;
    /* A chain posted raw has no ids of ours, but in a packed ring it took room. */
    bool ours = c->n_segs > 0;
    for (uint32_t i = 0; ours && i < (q->packed ? 1u : c->n_desc); i++) {
        uint16_t next = q->link[id];
        give_id(q, id);
        id = next;
    }
    q->n_free += c->n_desc;
    if (c->bridge != 0) {
        q->guest->bridges[c->bridge - 1].busy = false;
    }
    free(c->segs);
    *c = (struct pvd_chain){ 0 };
}

void
pvd_publish(struct pvd_queue *q)
{
    q->ops->publish(q);
}

/* Note a violation; the reason stays readable in the counters. */
int
pvd_fail(struct pvd_queue *q, uint32_t error)
{
    q->counters.errors++;
    q->counters.last_error = error;
    return -EPROTO;
}

/* How many chains wait to be taken, counted up to `limit` at least. May be more than are in flight: pvd_used_take
 * judges that. */
uint32_t
pvd_used_pending(const struct pvd_queue *q, uint32_t limit)
{
    return q->batch + q->ops->pending(q, limit);
}

/* Take the oldest chain's place in the order, without a look at it. */
static struct pvd_turn
take_turn(struct pvd_queue *q)
{
    struct pvd_turn turn = q->order[q->n_taken & q->list_mask];
    q->n_taken++;
    q->counters.used++;
    if (turn.stray && q->packed) {
        q->n_free += turn.n_desc;
    }
    return turn;
}

/* A chain of an in-order batch of which the last one was named already. */
static int
take_implied(struct pvd_queue *q, uint32_t *len)
{
    struct pvd_turn turn = take_turn(q);
    q->batch--;
    *len = q->batch == 0 ? q->batch_len : 0;
    if (turn.stray) {
        return pvd_fail(q, PVD_ERR_ID_RANGE);
    }
    q->chains[turn.id].state = PVD_IDLE;
    return turn.id;
}

/* What is wrong with a used element; PVD_ERR_NONE for nothing. `batch` is the number of chains that it uses. */
static uint32_t
judge(const struct pvd_queue *q, uint32_t id, uint32_t *batch)
{
    *batch = 1;
    if (id >= q->num) {
        return PVD_ERR_ID_RANGE;
    }
    if (q->chains[id].state == PVD_IDLE) {
        return PVD_ERR_ID_IDLE;
    }
    if (!q->in_order) {
        return PVD_ERR_NONE;
    }
    uint32_t before = q->chains[id].turn - q->n_taken;
    if (before >= pvd_in_flight(q) || (before > 0 && q->writable)) {
        return PVD_ERR_ORDER;
    }
    if (!q->packed && before >= q->ops->pending(q, before + 1)) {
        return PVD_ERR_ORDER;
    }
    *batch = before + 1;
    return PVD_ERR_NONE;
}

/*
 * Take the next used chain: its head, with the length that the device reports. -EAGAIN when there is none. -EPROTO
 * when the used element is wrong; it is skipped then, except when there is nothing that it could be for, as skipping
 * would never end. The chain stays the caller's to free or post again.
 */
int
pvd_used_take(struct pvd_queue *q, uint32_t *len)
{
    uint32_t id;
    uint32_t batch;
    if (q->batch > 0) {
        return take_implied(q, len);
    }
    uint32_t pending = q->ops->pending(q, 1);
    if (pending == 0) {
        return -EAGAIN;
    }
    if (pending > pvd_in_flight(q)) {
        return pvd_fail(q, PVD_ERR_USED_JUMP);
    }
    q->ops->element(q, &id, len);
    uint32_t error = judge(q, id, &batch);
    uint16_t n_desc = error == PVD_ERR_NONE ? q->chains[id].n_desc : q->order[q->n_taken & q->list_mask].n_desc;
    for (uint32_t i = 0; i + 1 < batch; i++) {
        q->ops->advance(q, q->order[(q->n_taken + i) & q->list_mask].n_desc);
    }
    q->ops->advance(q, n_desc);
    if (batch > 1) {
        q->batch = batch;
        q->batch_len = *len;
        return take_implied(q, len);
    }
    struct pvd_turn expected = take_turn(q);
    if (error != PVD_ERR_NONE) {
        return pvd_fail(q, error);
    }
    q->counters.out_of_order += id != expected.id;
    q->chains[id].state = PVD_IDLE;
    return (int)id;
}
