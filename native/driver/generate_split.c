/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lean path on split rings: whole bursts, nothing but what the ring demands.
 */
#include "generate_lean.h"

/* A descriptor's length and flags, as its second word. */
pvd_inline uint64_t
tail_of(uint32_t len, uint16_t flags)
{
    return len | (uint64_t)flags << 32;
}

/* Write the descriptor and the avail entry of a place. */
pvd_inline void
write_place(struct pvd_desc *table, uint16_t *avail, uint64_t id, uint64_t gpa, uint64_t tail)
{
    struct pvd_desc *d = &table[id];
    d->addr = gpa;
    memcpy(&d->len, &tail, sizeof(tail));
    *avail = (uint16_t)id;
}

static void
posted(struct pvd_queue *q, uint32_t n)
{
    q->s.avail_idx = (uint16_t)(q->s.avail_idx + n);
    q->n_posted += n;
    q->counters.posted += n;
    pvd_publish(q);
    pvd_queue_kick(q);
}

/* ---- Sending ---- */

pvd_inline uint32_t
send(struct pvd_flow *f, uint32_t n, const unsigned level, const unsigned form)
{
    struct pvd_queue *q = f->tx;
    struct pvd_desc *table = q->desc;
    const uint64_t tail = tail_of(PVD_MAX_HDR_LEN + f->spec.len, 0);
    uint32_t room = q->num - pvd_in_flight(q);
    struct pvd_writer w = pvd_writer_begin(f);
    n = n < room ? n : room;
    for (uint32_t i = 0; i < n;) {
        uint32_t place = (q->s.avail_idx + i) & q->mask;
        uint32_t run = pvd_lane_run(&f->lane, place, n - i);
        const uint64_t *id = f->lane.id + place, *gpa = f->lane.gpa + place;
        uint8_t *const *ptr = f->lane.ptr + place;
        uint16_t *avail = &q->avail->ring[place];
        for (size_t k = 0; k < run; k++) {
            write_place(table, &avail[k], id[k], gpa[k], tail);
            pvd_writer_put(&w, ptr[k], i + (uint32_t)k, level, form);
        }
        i += run;
    }
    pvd_writer_end(&w, n, form);
    if (n > 0) {
        posted(q, n);
    }
    return n;
}

static void
reaped(struct pvd_flow *f, uint32_t n)
{
    struct pvd_queue *q = f->tx;
    q->s.last_used = (uint16_t)(q->s.last_used + n);
    q->n_taken += n;
    q->counters.used += n;
    q->counters.frames += n;
    q->counters.bytes += (uint64_t)n * f->spec.len;
}

/* How many used elements wait; 0 also for an index that can't be. */
pvd_inline uint32_t
ready_in(struct pvd_queue *q)
{
    uint32_t ready = (uint16_t)(atomic_load_explicit(&q->used->idx, memory_order_acquire) - q->s.last_used);
    if (!pvd_likely(ready <= pvd_in_flight(q))) {
        pvd_fail(q, PVD_ERR_USED_JUMP);
        return 0;
    }
    return ready;
}

/* An element that isn't the expected id with length 0. */
static void
reap_odd(struct pvd_flow *f, uint32_t place, uint32_t in_flight)
{
    struct pvd_queue *q = f->tx;
    struct pvd_used_elem e = q->used->ring[place];
    if (pvd_lane_settle(&f->lane, place, in_flight, e.id) && e.len != 0) {
        pvd_fail(q, PVD_ERR_LEN_LONG);
    }
}

static bool
reap(struct pvd_flow *f)
{
    struct pvd_queue *q = f->tx;
    const uint32_t n = ready_in(q);
    for (uint32_t i = 0; i < n;) {
        uint32_t place = (q->s.last_used + i) & q->mask;
        uint32_t run = pvd_lane_run(&f->lane, place, n - i);
        const uint64_t *id = f->lane.id + place;
        const struct pvd_used_elem *used = &q->used->ring[place];
        for (size_t k = 0; k < run; k++) {
            uint64_t element;
            memcpy(&element, &used[k], sizeof(element));
            if (!pvd_likely(element == id[k])) {
                reap_odd(f, place + (uint32_t)k, pvd_in_flight(q) - i - (uint32_t)k);
            }
        }
        i += run;
    }
    reaped(f, n);
    return n > 0;
}

/* One element stands for all chains up to the one that it names. */
static bool
reap_in_order(struct pvd_flow *f)
{
    struct pvd_queue *q = f->tx;
    uint32_t n = ready_in(q);
    for (uint32_t i = 0; i < n;) {
        uint32_t place = (q->s.last_used + i) & q->mask;
        struct pvd_used_elem e = q->used->ring[place];
        uint32_t batch = e.id < q->num ? ((f->lane.place[e.id] - place) & q->mask) + 1 : 1;
        if (e.id >= q->num || batch > pvd_in_flight(q) - i) {
            pvd_fail(q, e.id >= q->num ? PVD_ERR_ID_RANGE : PVD_ERR_ID_IDLE);
            batch = 1;
        } else if (batch > n - i) {
            pvd_fail(q, PVD_ERR_ORDER);
            batch = 1;
        } else if (e.len != 0) {
            pvd_fail(q, PVD_ERR_LEN_LONG);
        }
        i += batch;
    }
    reaped(f, n);
    return n > 0;
}

/* ---- Receiving ---- */

/* Frames as expected, whose buffers are posted again at once: how many, of `n` that lie one behind the other. */
pvd_inline uint32_t
receive_run(struct pvd_reader *e, uint32_t place, uint32_t n, const unsigned level, const unsigned form)
{
    struct pvd_queue *q = e->r->q;
    struct pvd_desc *table = q->desc;
    const uint64_t tail = tail_of(q->guest->conf.rx_buf_size, PVD_DESC_WRITE);
    const uint64_t len = (uint64_t)(PVD_MAX_HDR_LEN + e->r->flow->spec.len) << 32;
    const struct pvd_lane *lane = &e->r->lane;
    const uint64_t *id = &lane->id[place], *gpa = &lane->gpa[place];
    uint8_t *const *ptr = &lane->ptr[place];
    const struct pvd_used_elem *used = &q->used->ring[place];
    uint16_t *avail = &q->avail->ring[place];
    size_t k = 0;
    for (; k < n; k++) {
        uint64_t element;
        memcpy(&element, &used[k], sizeof(element));
        if (!pvd_likely(element == (len | id[k])) || !pvd_likely(pvd_reader_sees(e, ptr[k], level, form))) {
            break;
        }
        write_place(table, &avail[k], id[k], gpa[k], tail);
    }
    e->good += (uint32_t)k;
    return (uint32_t)k;
}

/* Have a closer look at what stands at a place: how many buffers that was, posted again. */
static uint32_t
receive_odd(struct pvd_receiver *r, uint32_t place, uint32_t ready, uint32_t in_flight)
{
    struct pvd_queue *q = r->q;
    uint32_t n = pvd_lane_look(r, place, ready, in_flight);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = (place + i) & q->mask;
        write_place(q->desc, &q->avail->ring[at], r->lane.id[at], r->lane.gpa[at],
                    tail_of(q->guest->conf.rx_buf_size, PVD_DESC_WRITE));
    }
    return n;
}

/* Fetch the first lines of `n` buffers. */
pvd_inline void
fetch(const struct pvd_receiver *r, uint32_t n)
{
    for (uint32_t i = 0; i < n;) {
        uint32_t place = (r->q->s.last_used + i) & r->q->mask;
        uint32_t run = pvd_lane_run(&r->lane, place, n - i);
        uint8_t *const *ptr = r->lane.ptr + place;
        for (size_t k = 0; k < run; k++) {
            __builtin_prefetch(ptr[k]);
        }
        i += run;
    }
}

pvd_inline bool
receive(struct pvd_receiver *r, const unsigned level, const unsigned form)
{
    struct pvd_queue *q = r->q;
    const uint32_t ready = ready_in(q);
    const uint32_t n = ready < PVD_GEN_BURST ? ready : PVD_GEN_BURST;
    struct pvd_reader e;
    if (n == 0) {
        return false;
    }
    fetch(r, n);
    pvd_reader_time(r, form);
    pvd_reader_begin(&e, r);
    uint32_t i = 0;
    while (i < n) {
        uint32_t place = (q->s.last_used + i) & q->mask;
        uint32_t run = pvd_lane_run(&r->lane, place, n - i);
        uint32_t good = receive_run(&e, place, run, level, form);
        i += good;
        if (good < run) {
            pvd_reader_end(&e, form);
            i += receive_odd(r, place + good, ready - i, pvd_in_flight(q) - i);
            pvd_reader_begin(&e, r);
        }
    }
    pvd_reader_end(&e, form);
    q->s.last_used = (uint16_t)(q->s.last_used + i);
    q->n_taken += i;
    q->counters.used += i;
    posted(q, i);
    return true;
}

/* ---- Choosing ---- */

PVD_FORMS

void
pvd_split_choose(struct pvd_flow *f)
{
    f->send = PVD_CHOOSE(send, &f->spec);
    f->reap = f->tx->in_order ? reap_in_order : reap;
}

void
pvd_split_choose_receive(struct pvd_receiver *r)
{
    r->receive = PVD_CHOOSE(receive, &r->flow->spec);
}
