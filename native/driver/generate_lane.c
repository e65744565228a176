/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings on the lean path: how they get there and back, and what to make of used elements that aren't as foreseen.
 *
 * While a lane is open its queue's indices, places and counts are true, but its lists of ids (free, in order) are not: the
 * lane's own stand for both.
 */
#include "generate.h"

#include <errno.h>
#include <stdlib.h>

/* The next place to take from. */
static uint32_t
taking(const struct pvd_queue *q)
{
    return q->packed ? q->p.next_used.at : q->s.last_used & q->mask;
}

static uint32_t
place_at(const struct pvd_queue *q, uint32_t first, uint32_t n)
{
    uint32_t place = first + n;
    return place < q->num ? place : place - q->num;
}

/* One descriptor for each chain, in its own slot; and nothing left over from an element that was wrong. */
static bool
eligible(const struct pvd_queue *q)
{
    uint32_t flying = pvd_in_flight(q);
    bool quiet = q->batch == 0 && !(q->packed && q->p.hiding);
    if (!quiet || q->guest->hdr_len != PVD_MAX_HDR_LEN || !pvd_any_layout(q->guest) || q->n_free != q->num - flying ||
        q->free_tail - q->free_head != q->n_free) {
        return false;
    }
    for (uint32_t i = 0; i < flying; i++) {
        const struct pvd_turn *turn = &q->order[(q->n_taken + i) & q->list_mask];
        if (turn->stray) {
            return false;
        }
        const struct pvd_chain *c = &q->chains[turn->id];
        if (c->state != PVD_IN_FLIGHT || c->segs != NULL || c->n_segs != 1 || c->direct != 1) {
            return false;
        }
    }
    return true;
}

/* Where a lane has its ids. */
static uint32_t
shift_of(const struct pvd_queue *q)
{
    return q->packed ? 32 : 0;
}

/* Chains of `len` bytes. A transmit ring is empty, a receive ring full, so that what is taken is posted where it stood. */
bool
pvd_lane_open(struct pvd_lane *lane, uint32_t len)
{
    struct pvd_queue *q = lane->q;
    uint32_t flying = pvd_in_flight(q);
    if (!eligible(q) || flying != (q->writable ? q->num : 0)) {
        return false;
    }
    lane->id = calloc(q->num, sizeof(*lane->id) + sizeof(*lane->gpa) + sizeof(*lane->ptr) + sizeof(*lane->place));
    if (lane->id == NULL) {
        return false;
    }
    lane->gpa = lane->id + q->num;
    lane->ptr = (uint8_t **)(void *)(lane->gpa + q->num);
    lane->place = (uint16_t *)(void *)(lane->ptr + q->num);
    for (uint32_t i = 0; i < q->num; i++) {
        bool in_flight = i < flying;
        uint32_t place = place_at(q, taking(q), i);
        uint16_t id = in_flight ? q->order[(q->n_taken + i) & q->list_mask].id
                                : q->free_ids[(q->free_head + i - flying) & q->list_mask];
        lane->id[place] = (uint64_t)id << shift_of(q);
        lane->gpa[place] = q->slots[id].gpa;
        lane->ptr[place] = q->slots[id].ptr;
        lane->place[id] = (uint16_t)place;
        q->chains[id] = (struct pvd_chain){
            .len = len, .n_segs = 1, .n_desc = 1, .direct = 1, .state = in_flight ? PVD_IN_FLIGHT : PVD_IDLE
        };
    }
    lane->open = true;
    return true;
}

static void
check_guard(struct pvd_queue *q, uint16_t id)
{
    uint8_t guard[PVD_GUARD_LEN];
    bool whole = true;
    memcpy(guard, q->slots[id].ptr + q->guest->conf.rx_buf_size, sizeof(guard));
    for (uint32_t i = 0; i < sizeof(guard); i++) {
        whole = whole && guard[i] == PVD_GUARD_BYTE;
    }
    if (!whole) {
        pvd_fail(q, PVD_ERR_GUARD);
    }
}

void
pvd_lane_close(struct pvd_lane *lane)
{
    struct pvd_queue *q = lane->q;
    if (!lane->open) {
        return;
    }
    uint32_t flying = pvd_in_flight(q);
    q->free_head = 0;
    q->free_tail = 0;
    q->n_free = q->num - flying;
    for (uint32_t i = 0; i < q->num; i++) {
        uint16_t id = (uint16_t)(lane->id[place_at(q, taking(q), i)] >> shift_of(q));
        if (q->writable) {
            check_guard(q, id);
        }
        if (i < flying) {
            q->order[(q->n_taken + i) & q->list_mask] = (struct pvd_turn){ .id = id, .n_desc = 1 };
            q->chains[id].turn = q->n_taken + i;
            q->chains[id].state = PVD_IN_FLIGHT;
        } else {
            q->free_ids[q->free_tail++] = id;
            q->chains[id] = (struct pvd_chain){ 0 };
        }
    }
    free(lane->id);
    lane->id = NULL;
    lane->open = false;
}

static void
swap_places(struct pvd_lane *lane, uint32_t a, uint32_t b)
{
    uint64_t id = lane->id[a], gpa = lane->gpa[a];
    uint8_t *ptr = lane->ptr[a];
    lane->id[a] = lane->id[b];
    lane->gpa[a] = lane->gpa[b];
    lane->ptr[a] = lane->ptr[b];
    lane->id[b] = id;
    lane->gpa[b] = gpa;
    lane->ptr[b] = ptr;
}

bool
pvd_lane_settle(struct pvd_lane *lane, uint32_t place, uint32_t in_flight, uint32_t id)
{
    struct pvd_queue *q = lane->q;
    uint64_t wanted = (uint64_t)id << shift_of(q);
    if (wanted == lane->id[place]) {
        return true;
    }
    if (id >= q->num) {
        pvd_fail(q, PVD_ERR_ID_RANGE);
        return false;
    }
    for (uint32_t i = 1; i < in_flight; i++) {
        uint32_t there = place_at(q, place, i);
        if (lane->id[there] != wanted) {
            continue;
        }
        if (q->in_order) {
            pvd_fail(q, PVD_ERR_ORDER);
            return false;
        }
        swap_places(lane, place, there);
        q->counters.out_of_order++;
        return true;
    }
    pvd_fail(q, PVD_ERR_ID_IDLE);
    return false;
}

/* ---- Receiving: a closer look ---- */

struct look {
    struct pvd_lane *lane;
    uint32_t first;     /* where the first buffer of the frame stands */
    uint32_t ready;     /* split: used elements from there on */
    uint32_t in_flight; /* chains from there on */
};

static bool
is_ready(const struct look *l, uint32_t n)
{
    const struct pvd_queue *q = l->lane->q;
    if (n >= l->in_flight) {
        return false;
    }
    if (!q->packed) {
        return n < l->ready;
    }
    struct pvd_place place = q->p.next_used;
    place = pvd_place_add(q, place, l->first >= place.at ? l->first - place.at : l->first + q->num - place.at);
    return pvd_packed_used(q, pvd_place_add(q, place, n));
}

/* The n-th buffer and how many bytes of it are used. NULL for a violation. */
static const uint8_t *
buffer_at(const struct look *l, uint32_t n, uint32_t *used)
{
    struct pvd_queue *q = l->lane->q;
    uint32_t place = place_at(q, l->first, n);
    uint32_t id;
    if (q->packed) {
        const struct pvd_slot_desc *d = &q->ring[place];
        bool written = (atomic_load_explicit(&d->flags, memory_order_acquire) & PVD_DESC_WRITE) != 0;
        id = d->id;
        *used = written ? d->len : 0;
    } else {
        id = q->used->ring[place].id;
        *used = q->used->ring[place].len;
    }
    if (!pvd_lane_settle(l->lane, place, l->in_flight - n, id)) {
        return NULL;
    }
    if (*used > q->guest->conf.rx_buf_size) {
        pvd_fail(q, PVD_ERR_LEN_LONG);
        return NULL;
    }
    return q->slots[id].ptr;
}

/* Take the frame's further buffers into the view. Whether all is well; v->n_heads says how many buffers were looked at. */
static bool
gather(const struct look *l, const struct pvd_net_header *h, struct pvd_view *v)
{
    struct pvd_queue *q = l->lane->q;
    uint32_t more = h->num_buffers > 1 && is_ready(l, h->num_buffers - 1u) ? h->num_buffers - 1u : 0;
    if (!pvd_buffers_plausible(q->guest, h->num_buffers, more)) {
        pvd_fail(q, PVD_ERR_NUM_BUFFERS);
        return false;
    }
    while (v->n_heads < h->num_buffers) {
        uint32_t used;
        const uint8_t *p = buffer_at(l, v->n_heads++, &used);
        if (p == NULL) {
            return false;
        }
        v->pieces[v->n_pieces++] = (struct pvd_piece_ref){ .ptr = p, .len = used };
        v->len += used;
    }
    if (!pvd_offload_plausible(q->guest, h, v->len)) {
        pvd_fail(q, PVD_ERR_HEADER);
        return false;
    }
    return true;
}

uint32_t
pvd_lane_look(struct pvd_receiver *r, uint32_t first, uint32_t ready, uint32_t in_flight)
{
    struct pvd_queue *q = r->q;
    struct look l = { .lane = &r->lane, .first = first, .ready = ready, .in_flight = in_flight };
    struct pvd_view *v = q->guest->view;
    struct pvd_net_header h;
    uint32_t used;
    const uint8_t *p = buffer_at(&l, 0, &used);
    if (p == NULL) {
        return 1;
    }
    if (used < PVD_MAX_HDR_LEN) {
        pvd_fail(q, PVD_ERR_LEN_SHORT);
        return 1;
    }
    memcpy(&h, p, sizeof(h));
    v->len = used - PVD_MAX_HDR_LEN;
    v->n_heads = 1;
    v->n_pieces = 1;
    v->pieces[0] = (struct pvd_piece_ref){ .ptr = p + PVD_MAX_HDR_LEN, .len = v->len };
    if (gather(&l, &h, v)) {
        q->counters.frames++;
        q->counters.bytes += v->len;
        pvd_frame_judge(r, v->pieces, v->n_pieces, v->len);
    }
    return v->n_heads;
}
