/* SPDX-License-Identifier: Apache-2.0 */
/* reference_device.c - see reference_device.h. */
#include "reference_device.h"

#include <string.h>

#include "test.h"

enum { NEXT = 1, WRITE = 2, INDIRECT = 4, AVAIL = 1 << 7, USED = 1 << 15 };
enum { EVENT_DISABLE = 1, EVENT_DESC = 2 };

struct split_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};

struct packed_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t id, flags;
};

struct used_element {
    uint32_t id, len;
};

static bool
has(const struct reference_ring *r, unsigned bit)
{
    return (r->features >> bit & 1) != 0;
}

/* Shared memory, 16 bits at a time; with acquire and release, which is more than is always needed. */
static uint16_t
load16(uint64_t uva)
{
    return __atomic_load_n((uint16_t *)(uintptr_t)uva, __ATOMIC_ACQUIRE);
}

static void
store16(uint64_t uva, uint16_t value)
{
    __atomic_store_n((uint16_t *)(uintptr_t)uva, value, __ATOMIC_RELEASE);
}

struct reference_ring
reference_open(pvd_guest *guest, uint32_t ring, uint64_t features)
{
    struct reference_ring r = { .guest = guest, .features = features, .writable = ring % 2 == 0 };
    CHECK_EQ(pvd_vring_get(guest, ring, &r.v), 0);
    r.packed = has(&r, PVD_F_RING_PACKED);
    r.in_order = has(&r, PVD_F_IN_ORDER);
    r.avail_wrap = r.used_wrap = true;
    return r;
}

static void
add_segment(const struct reference_ring *r, struct reference_chain *c, uint64_t gpa, uint32_t len, uint16_t flags)
{
    CHECK(c->n_segs < REFERENCE_SEGS);
    CHECK(c->n_segs < r->v.num);
    CHECK(len > 0);
    CHECK_EQ((flags & WRITE) != 0, r->writable);
    c->seg[c->n_segs].gpa = gpa;
    c->seg[c->n_segs].len = len;
    c->n_segs++;
    c->len += len;
}

/* ---- Split ---- */

static void
split_table(const struct reference_ring *r, struct reference_chain *c, uint64_t gpa, uint32_t len)
{
    uint32_t n = len / (uint32_t)sizeof(struct split_desc), i = 0;
    const struct split_desc *table = pvd_ptr(r->guest, gpa, len);
    CHECK(table != NULL && n > 0 && len % sizeof *table == 0);
    for (uint32_t seen = 0;; seen++) {
        CHECK(seen < n && i < n && (table[i].flags & INDIRECT) == 0);
        add_segment(r, c, table[i].addr, table[i].len, table[i].flags);
        if ((table[i].flags & NEXT) == 0)
            break;
        CHECK(!r->in_order || table[i].next == i + 1);
        i = table[i].next;
    }
}

static bool
split_take(struct reference_ring *r, struct reference_chain *c)
{
    const struct split_desc *desc = (const struct split_desc *)(uintptr_t)r->v.desc_uva;
    if (load16(r->v.avail_uva + 2) == (uint16_t)r->next_avail)
        return false;
    c->id = load16(r->v.avail_uva + 4 + 2 * (r->next_avail % r->v.num));
    for (uint16_t i = c->id;;) {
        CHECK(i < r->v.num && c->n_desc++ < r->v.num);
        CHECK(!r->in_order || i == r->next_desc);
        r->next_desc = (r->next_desc + 1) % r->v.num;
        if ((desc[i].flags & INDIRECT) != 0) {
            CHECK(has(r, PVD_F_INDIRECT_DESC) && (desc[i].flags & NEXT) == 0);
            split_table(r, c, desc[i].addr, desc[i].len);
            break;
        }
        add_segment(r, c, desc[i].addr, desc[i].len, desc[i].flags);
        if ((desc[i].flags & NEXT) == 0)
            break;
        i = desc[i].next;
    }
    r->next_avail++;
    return true;
}

/* One element at the place of the first of `n` chains. The index, which shows it, moves over all of them. */
static void
split_use(struct reference_ring *r, uint32_t id, uint32_t len, uint32_t n)
{
    struct used_element *ring = (struct used_element *)(uintptr_t)(r->v.used_uva + 4);
    ring[r->next_used % r->v.num] = (struct used_element){ .id = id, .len = len };
    r->next_used += n;
}

static void
split_show(const struct reference_ring *r)
{
    store16(r->v.used_uva + 2, (uint16_t)r->next_used);
}

/* ---- Packed ---- */

static struct packed_desc *
packed_at(const struct reference_ring *r, uint32_t i)
{
    return (struct packed_desc *)(uintptr_t)r->v.desc_uva + i;
}

/* The flags of descriptor `i`, if it is available. */
static bool
packed_available(const struct reference_ring *r, uint32_t i, bool wrap, uint16_t *flags)
{
    *flags = load16(r->v.desc_uva + i * sizeof(struct packed_desc) + 14);
    return ((*flags & AVAIL) != 0) == wrap && ((*flags & USED) != 0) != wrap;
}

static void
packed_table(const struct reference_ring *r, struct reference_chain *c, uint64_t gpa, uint32_t len)
{
    uint32_t n = len / (uint32_t)sizeof(struct packed_desc);
    const struct packed_desc *table = pvd_ptr(r->guest, gpa, len);
    CHECK(table != NULL && n > 0 && len % sizeof *table == 0);
    for (uint32_t i = 0; i < n; i++) {
        CHECK_EQ(table[i].flags & ~WRITE, 0);
        add_segment(r, c, table[i].addr, table[i].len, table[i].flags);
    }
}

static bool
packed_take(struct reference_ring *r, struct reference_chain *c)
{
    uint16_t flags;
    if (!packed_available(r, r->next_avail, r->avail_wrap, &flags))
        return false;
    for (;;) {
        const struct packed_desc *d = packed_at(r, r->next_avail);
        bool last = (flags & NEXT) == 0;
        CHECK(c->n_desc++ < r->v.num);
        if ((flags & INDIRECT) != 0) {
            CHECK(has(r, PVD_F_INDIRECT_DESC) && c->n_segs == 0 && last);
            packed_table(r, c, d->addr, d->len);
        } else {
            add_segment(r, c, d->addr, d->len, flags);
        }
        c->id = d->id;
        if (++r->next_avail == r->v.num) {
            r->next_avail = 0;
            r->avail_wrap = !r->avail_wrap;
        }
        if (last)
            break;
        /* All of a chain is there when its first descriptor is. */
        CHECK(packed_available(r, r->next_avail, r->avail_wrap, &flags));
    }
    CHECK(c->id < r->v.num);
    return true;
}

static void
packed_skip(struct reference_ring *r, uint32_t n_desc)
{
    r->next_used += n_desc;
    if (r->next_used >= r->v.num) {
        r->next_used -= r->v.num;
        r->used_wrap = !r->used_wrap;
    }
}

static void
packed_use(struct reference_ring *r, uint32_t id, uint32_t len, uint32_t n_desc)
{
    uint16_t flags = (uint16_t)((r->used_wrap ? AVAIL | USED : 0) | (len > 0 ? WRITE : 0));
    struct packed_desc *d = packed_at(r, r->next_used);
    d->id = (uint16_t)id;
    d->len = len;
    store16(r->v.desc_uva + r->next_used * sizeof *d + 14, flags);
    packed_skip(r, n_desc);
}

/* ---- Either ---- */

bool
reference_take(struct reference_ring *r, struct reference_chain *c)
{
    memset(c, 0, sizeof *c);
    return r->packed ? packed_take(r, c) : split_take(r, c);
}

void
reference_use_raw(struct reference_ring *r, uint32_t id, uint32_t len, uint16_t n_desc)
{
    if (r->packed) {
        packed_use(r, id, len, n_desc);
    } else {
        split_use(r, id, len, 1);
        split_show(r);
    }
}

void
reference_use(struct reference_ring *r, const struct reference_chain *c, uint32_t len)
{
    reference_use_raw(r, c->id, len, c->n_desc);
}

void
reference_use_batch(struct reference_ring *r, const struct reference_chain *c, uint32_t n)
{
    uint32_t n_desc = 0;
    CHECK(r->in_order && n > 0);
    for (uint32_t i = 0; i < n; i++)
        n_desc += c[i].n_desc;
    if (r->packed) {
        packed_use(r, c[n - 1].id, 0, n_desc);
    } else {
        split_use(r, c[n - 1].id, 0, n);
        split_show(r);
    }
}

/* `len` bytes of a chain, in whichever direction. Memory may change its region within a segment. */
static void
move(const struct reference_ring *r, const struct reference_chain *c, uint8_t *bytes, uint32_t len, bool to_guest)
{
    for (uint32_t i = 0; len > 0; i++) {
        CHECK(i < c->n_segs);
        for (uint32_t k = 0; k < c->seg[i].len && len > 0; k++, len--, bytes++) {
            uint8_t *there = pvd_ptr(r->guest, c->seg[i].gpa + k, 1);
            CHECK(there != NULL);
            if (to_guest)
                *there = *bytes;
            else
                *bytes = *there;
        }
    }
}

void
reference_read(const struct reference_ring *r, const struct reference_chain *c, uint8_t *to)
{
    move(r, c, to, c->len, false);
}

void
reference_write(const struct reference_ring *r, const struct reference_chain *c, const uint8_t *from, uint32_t len)
{
    static uint8_t bytes[REFERENCE_FRAME];
    CHECK(len <= c->len && len <= sizeof bytes);
    memcpy(bytes, from, len);
    move(r, c, bytes, len, true);
}

uint32_t
reference_receive(struct reference_ring *tx, uint8_t *frame)
{
    struct reference_chain c;
    if (!reference_take(tx, &c))
        return 0;
    CHECK(c.len <= REFERENCE_FRAME);
    reference_read(tx, &c, frame);
    reference_use(tx, &c, 0);
    return c.len;
}

/* Use the `n` chains over which `len` bytes are spread. They are shown all at once: packed, by the first one's element. */
static void
use_all(struct reference_ring *rx, const struct reference_chain *c, uint32_t n, uint32_t len)
{
    struct reference_ring first = *rx;
    if (rx->packed)
        packed_skip(rx, c[0].n_desc);
    for (uint32_t i = 0, at = 0; i < n; at += c[i++].len) {
        uint32_t part = len - at < c[i].len ? len - at : c[i].len;
        if (!rx->packed)
            split_use(rx, c[i].id, part, 1);
        else if (i > 0)
            packed_use(rx, c[i].id, part, c[i].n_desc);
    }
    if (rx->packed)
        packed_use(&first, c[0].id, len < c[0].len ? len : c[0].len, c[0].n_desc);
    else
        split_show(rx);
}

bool
reference_send(struct reference_ring *rx, uint8_t *frame, uint32_t len)
{
    static struct reference_chain c[256];
    struct reference_ring before = *rx;
    uint16_t n = 0;
    for (uint32_t room = 0; room < len; n++) {
        if (n == 256 || (n > 0 && !has(rx, PVD_F_MRG_RXBUF)) || !reference_take(rx, &c[n])) {
            *rx = before;
            return false;
        }
        room += c[n].len;
    }
    memcpy(frame + 10, &n, sizeof n);
    for (uint32_t i = 0, at = 0; i < n; at += c[i++].len)
        reference_write(rx, &c[i], frame + at, len - at < c[i].len ? len - at : c[i].len);
    use_all(rx, c, n, len);
    return true;
}

bool
reference_wants_call(const struct reference_ring *r, uint32_t next_used, bool used_wrap)
{
    bool event_idx = has(r, PVD_F_EVENT_IDX);
    if (!r->packed) {
        uint16_t event = load16(r->v.avail_uva + 4 + 2 * r->v.num);
        if (!event_idx)
            return load16(r->v.avail_uva) == 0;
        for (uint32_t i = next_used; i != r->next_used; i++)
            if ((uint16_t)i == event)
                return true;
        return false;
    }
    uint16_t off_wrap = load16(r->v.avail_uva), flags = load16(r->v.avail_uva + 2);
    if (flags != EVENT_DESC)
        return flags != EVENT_DISABLE;
    CHECK(event_idx);
    for (uint32_t i = next_used; i != r->next_used || used_wrap != r->used_wrap;) {
        if (i == (off_wrap & 0x7fffu) && used_wrap == (off_wrap >> 15 != 0))
            return true;
        if (++i == r->v.num) {
            i = 0;
            used_wrap = !used_wrap;
        }
    }
    return false;
}

void
reference_ask_kick(struct reference_ring *r, bool wanted)
{
    bool event_idx = has(r, PVD_F_EVENT_IDX);
    if (!r->packed && !event_idx) {
        store16(r->v.used_uva, wanted ? 0 : 1);
    } else if (!r->packed) {
        store16(r->v.used_uva + 4 + 8 * r->v.num, (uint16_t)(r->next_avail - (wanted ? 0 : 1)));
    } else if (wanted && event_idx) {
        store16(r->v.used_uva, (uint16_t)(r->next_avail | (uint32_t)r->avail_wrap << 15));
        store16(r->v.used_uva + 2, EVENT_DESC);
    } else {
        store16(r->v.used_uva + 2, wanted ? 0 : EVENT_DISABLE);
    }
}

uint32_t
reference_forward(struct reference_ring *tx, struct reference_ring *rx, uint32_t max, uint32_t batch)
{
    static uint8_t frame[REFERENCE_FRAME];
    static struct reference_chain c[256];
    uint32_t n = 0, held = 0;
    while (n < max) {
        struct reference_ring before = *tx;
        if (!reference_take(tx, &c[held]))
            break;
        reference_read(tx, &c[held], frame);
        if (!reference_send(rx, frame, c[held].len)) {
            *tx = before;
            break;
        }
        n++;
        if (!tx->in_order || batch <= 1) {
            reference_use(tx, &c[held], 0);
        } else if (++held == batch || held == 256) {
            reference_use_batch(tx, c, held);
            held = 0;
        }
    }
    if (held > 0)
        reference_use_batch(tx, c, held);
    return n;
}
