/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lean path on packed rings: whole bursts, nothing but what the ring demands.
 *
 * A descriptor's length, id and flags are one 64-bit word, which is compared in one go. A burst's first descriptor is
 * written last, so that the device sees bursts whole.
 */
#include "generate_lean.h"

#include <stddef.h>

#define BOTH     (PVD_DESC_AVAIL | PVD_DESC_USED)
#define ANY_USED (BOTH | PVD_DESC_WRITE)

_Static_assert(offsetof(struct pvd_slot_desc, len) == 8, "length, id and flags are the second word");

pvd_inline _Atomic uint64_t *
second_word(struct pvd_slot_desc *d)
{
    return (_Atomic uint64_t *)(void *)&d->len;
}

/* What of a second word a run of places has in common. */
pvd_inline uint64_t
common(uint32_t len, uint32_t flags)
{
    return len | (uint64_t)flags << 48;
}

pvd_inline uint32_t
available_flags(bool wrap)
{
    return wrap ? PVD_DESC_AVAIL : PVD_DESC_USED;
}

pvd_inline uint32_t
used_flags(bool wrap)
{
    return wrap ? BOTH : 0;
}

/* `word` is all but the address. The flags show the rest, so they are stored behind it. */
pvd_inline void
write_place(struct pvd_slot_desc *d, uint64_t gpa, uint64_t word)
{
    d->addr = gpa;
    d->len = (uint32_t)word;
    d->id = (uint16_t)(word >> 32);
    atomic_store_explicit(&d->flags, (uint16_t)(word >> 48), memory_order_release);
}

static void
posted(struct pvd_queue *q, uint32_t n)
{
    q->p.next_avail = pvd_place_add(q, q->p.next_avail, n);
    q->p.unkicked += n;
    q->n_posted += n;
    q->counters.posted += n;
    pvd_queue_kick(q);
}

static void
taken(struct pvd_queue *q, uint32_t n)
{
    q->p.next_used = pvd_place_add(q, q->p.next_used, n);
    q->n_taken += n;
    q->counters.used += n;
}

/* A used element though nothing is in flight? Then there is no going on. */
static void
check_jump(struct pvd_queue *q)
{
    if (pvd_in_flight(q) == 0 && pvd_packed_used(q, q->p.next_used)) {
        pvd_fail(q, PVD_ERR_USED_JUMP);
    }
}

/* ---- Sending ---- */

pvd_inline uint32_t
send(struct pvd_flow *f, uint32_t n, const unsigned level, const unsigned form)
{
    struct pvd_queue *q = f->tx;
    const uint32_t len = PVD_MAX_HDR_LEN + f->spec.len, room = q->num - pvd_in_flight(q);
    const struct pvd_place first = q->p.next_avail;
    struct pvd_writer w = pvd_writer_begin(f);
    n = n < room ? n : room;
    if (n == 0) {
        return 0;
    }
    pvd_writer_put(&w, f->lane.ptr[first.at], 0, level, form);
    for (uint32_t i = 1; i < n;) {
        struct pvd_place place = pvd_place_add(q, first, i);
        uint32_t run = pvd_lane_run(&f->lane, place.at, n - i);
        uint64_t word = common(len, available_flags(place.wrap));
        const uint64_t *id = f->lane.id + place.at, *gpa = f->lane.gpa + place.at;
        uint8_t *const *ptr = f->lane.ptr + place.at;
        struct pvd_slot_desc *d = &q->ring[place.at];
        for (size_t k = 0; k < run; k++) {
            pvd_writer_put(&w, ptr[k], i + (uint32_t)k, level, form);
            write_place(&d[k], gpa[k], word | id[k]);
        }
        i += run;
    }
    write_place(&q->ring[first.at], f->lane.gpa[first.at],
                common(len, available_flags(first.wrap)) | f->lane.id[first.at]);
    pvd_writer_end(&w, n, form);
    posted(q, n);
    return n;
}

/* The number of chains that an element which isn't the expected one uses, after a judgement. `in_flight` are those from
 * its place on. */
static uint32_t
reap_odd(struct pvd_flow *f, uint32_t place, uint32_t in_flight)
{
    struct pvd_queue *q = f->tx;
    const struct pvd_slot_desc *d = &q->ring[place];
    uint16_t flags = atomic_load_explicit(&d->flags, memory_order_acquire);
    uint32_t batch = 1;
    if (!q->in_order) {
        if (!pvd_lane_settle(&f->lane, place, in_flight, d->id)) {
            return 1;
        }
    } else if (d->id >= q->num) {
        pvd_fail(q, PVD_ERR_ID_RANGE);
        return 1;
    } else {
        uint32_t there = f->lane.place[d->id];
        batch = (there >= place ? there - place : there + q->num - place) + 1;
        if (batch > in_flight) {
            pvd_fail(q, PVD_ERR_ID_IDLE);
            return 1;
        }
    }
    if ((flags & PVD_DESC_WRITE) != 0 && d->len != 0) {
        pvd_fail(q, PVD_ERR_LEN_LONG);
    }
    return batch;
}

/* Elements as expected: how many, of `n` places that lie one behind the other. The length means nothing without WRITE. */
pvd_inline uint32_t
reap_run(const struct pvd_flow *f, struct pvd_place place, uint32_t n)
{
    const uint64_t *id = f->lane.id + place.at;
    const uint32_t flags = used_flags(place.wrap);
    const struct pvd_slot_desc *d = &f->tx->ring[place.at];
    size_t k = 0;
    for (; k < n; k++) {
        /* The id counts only once the flags are seen: the device may write them one after the other. */
        if (!pvd_likely((atomic_load_explicit(&d[k].flags, memory_order_acquire) & ANY_USED) == flags) ||
            !pvd_likely(d[k].id == id[k] >> 32)) {
            break;
        }
    }
    return (uint32_t)k;
}

static bool
reap(struct pvd_flow *f)
{
    struct pvd_queue *q = f->tx;
    const uint32_t flying = pvd_in_flight(q);
    uint32_t n = 0;
    while (n < flying) {
        struct pvd_place place = pvd_place_add(q, q->p.next_used, n);
        uint32_t run = pvd_lane_run(&f->lane, place.at, flying - n);
        uint32_t good = reap_run(f, place, run);
        n += good;
        if (good < run) {
            place.at = (uint16_t)(place.at + good);
            if (!pvd_packed_used(q, place)) {
                break;
            }
            n += reap_odd(f, place.at, flying - n);
        }
    }
    check_jump(q);
    taken(q, n);
    q->counters.frames += n;
    q->counters.bytes += (uint64_t)n * f->spec.len;
    return n > 0;
}

/* ---- Receiving ---- */

/* How many buffers are used, a burst at most; and fetch their first lines. */
pvd_inline uint32_t
look_ahead(struct pvd_receiver *r)
{
    struct pvd_queue *q = r->q;
    const uint32_t flying = pvd_in_flight(q), most = flying < PVD_GEN_BURST ? flying : PVD_GEN_BURST;
    uint32_t n = 0, run = 0;
    size_t used = 0;
    for (; n < most && used == run; n += (uint32_t)used) {
        struct pvd_place place = pvd_place_add(q, q->p.next_used, n);
        const uint32_t flags = used_flags(place.wrap);
        uint8_t *const *ptr = r->lane.ptr + place.at;
        const struct pvd_slot_desc *d = &q->ring[place.at];
        run = pvd_lane_run(&r->lane, place.at, most - n);
        for (used = 0; used < run; used++) {
            if ((atomic_load_explicit(&d[used].flags, memory_order_acquire) & BOTH) != flags) {
                break;
            }
            __builtin_prefetch(ptr[used]);
        }
    }
    check_jump(q);
    return n;
}

/* Frames as expected, whose buffers are posted again at once: how many, of `n` that lie one behind the other. */
pvd_inline uint32_t
receive_run(struct pvd_reader *e, struct pvd_place place, uint32_t n, const unsigned level, const unsigned form)
{
    struct pvd_queue *q = e->r->q;
    const uint32_t len = PVD_MAX_HDR_LEN + e->r->flow->spec.len;
    const uint64_t seen = common(len, used_flags(place.wrap) | PVD_DESC_WRITE);
    const uint64_t word = common(q->guest->conf.rx_buf_size, available_flags(!place.wrap) | PVD_DESC_WRITE);
    const struct pvd_lane *lane = &e->r->lane;
    const uint64_t *id = &lane->id[place.at], *gpa = &lane->gpa[place.at];
    uint8_t *const *ptr = &lane->ptr[place.at];
    struct pvd_slot_desc *d = &q->ring[place.at];
    size_t k = 0;
    for (; k < n; k++) {
        uint64_t element = atomic_load_explicit(second_word(&d[k]), memory_order_relaxed);
        if (!pvd_likely(element == (seen | id[k])) || !pvd_likely(pvd_reader_sees(e, ptr[k], level, form))) {
            break;
        }
        write_place(&d[k], gpa[k], word | id[k]);
    }
    e->good += (uint32_t)k;
    return (uint32_t)k;
}

/* Have a closer look at what stands at a place: how many buffers that was, posted again. */
static uint32_t
receive_odd(struct pvd_receiver *r, struct pvd_place place, uint32_t in_flight)
{
    struct pvd_queue *q = r->q;
    uint32_t n = pvd_lane_look(r, place.at, 0, in_flight);
    for (uint32_t i = 0; i < n; i++) {
        struct pvd_place at = pvd_place_add(q, place, i);
        write_place(&q->ring[at.at], r->lane.gpa[at.at],
                    common(q->guest->conf.rx_buf_size, available_flags(!at.wrap) | PVD_DESC_WRITE) | r->lane.id[at.at]);
    }
    return n;
}

pvd_inline bool
receive(struct pvd_receiver *r, const unsigned level, const unsigned form)
{
    struct pvd_queue *q = r->q;
    const uint32_t n = look_ahead(r);
    struct pvd_reader e;
    if (n == 0) {
        return false;
    }
    pvd_reader_time(r, form);
    pvd_reader_begin(&e, r);
    uint32_t i = 0;
    while (i < n) {
        struct pvd_place place = pvd_place_add(q, q->p.next_used, i);
        uint32_t run = pvd_lane_run(&r->lane, place.at, n - i);
        uint32_t good = receive_run(&e, place, run, level, form);
        i += good;
        if (good < run) {
            pvd_reader_end(&e, form);
            i += receive_odd(r, pvd_place_add(q, place, good), pvd_in_flight(q) - i);
            pvd_reader_begin(&e, r);
        }
    }
    pvd_reader_end(&e, form);
    taken(q, i);
    posted(q, i);
    return true;
}

/* ---- Choosing ---- */

PVD_FORMS

void
pvd_packed_choose(struct pvd_flow *f)
{
    f->send = PVD_CHOOSE(send, &f->spec);
    f->reap = reap;
}

void
pvd_packed_choose_receive(struct pvd_receiver *r)
{
    r->receive = PVD_CHOOSE(receive, &r->flow->spec);
}
