/* SPDX-License-Identifier: Apache-2.0 */
/* fdb.c - see fdb.h for how it works and who may call it. */
#include "fdb.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "parse.h"

#define NIL        UINT32_MAX
#define KEY_STATIC (1ULL << 63)
#define KEY_VALID  (1ULL << 62) /* so that no key is zero */
#define NS_PER_S   1000000000ULL
#define QUEUED     48
#define AT         ((1ULL << QUEUED) - 1)
#define LARGE      1024 /* entries and their buckets: 40 KiB */

/* The fields that readers without the lock look at are atomic, relaxed: the bucket's sequence number orders them. */
struct entry {
    _Atomic uint64_t key;   /* 0 = free; else VALID | vid << 48 | mac, STATIC */
    _Atomic uint64_t at;    /* PVS_FDB_AT; above it (QUEUED) the stamp's lower half when it was put at its list's end */
    _Atomic uint32_t next;  /* in the bucket's chain, or in the free list */
    _Atomic uint32_t stamp; /* second in which it was last seen */
    uint32_t older, newer;  /* neighbours in its port's list; writer only */
};
_Static_assert(sizeof(struct entry) == 32, "two entries in a cache line");

struct pvs_fdb_bucket {
    _Atomic uint32_t seq; /* odd while a writer is at work */
    _Atomic uint32_t head;
};

struct list {
    uint32_t oldest, newest;
};

struct pvs_fdb {
    struct entry *entry;
    struct pvs_fdb_bucket *bucket;
    uint64_t seed;
    uint32_t bucket_mask, limit;
    _Atomic uint32_t aging_s;
    _Atomic uint32_t count;
    atomic_flag lock;
    _Atomic bool wanted; /* control waits for the lock: workers leave it alone meanwhile */
    uint32_t free;
    _Atomic uint32_t held[PVS_MAX_PORTS];   /* dynamic entries by port index; written under the lock */
    _Atomic uint32_t sticky[PVS_MAX_PORTS]; /* by port index: the reference of one that keeps addresses, or 0 */
    struct list list[PVS_MAX_PORTS];
};

/* ---- lock and sequence ---- */

static bool
lock_try(struct pvs_fdb *fdb)
{
    return !atomic_flag_test_and_set_explicit(&fdb->lock, memory_order_acquire);
}

static void
lock_wait(struct pvs_fdb *fdb)
{
    atomic_store_explicit(&fdb->wanted, true, memory_order_relaxed);
    while (!lock_try(fdb))
        sched_yield(); /* control thread only; whoever holds the lock does so for a bounded number of entries */
    atomic_store_explicit(&fdb->wanted, false, memory_order_relaxed);
}

static void
unlock(struct pvs_fdb *fdb)
{
    atomic_flag_clear_explicit(&fdb->lock, memory_order_release);
}

static void
bucket_begin(struct pvs_fdb_bucket *b)
{
    uint32_t seq = atomic_load_explicit(&b->seq, memory_order_relaxed);
    atomic_store_explicit(&b->seq, seq + 1, memory_order_relaxed);
    /* release fence: the odd number is visible before any of the changes that follow */
    atomic_thread_fence(memory_order_release);
}

static void
bucket_end(struct pvs_fdb_bucket *b)
{
    uint32_t seq = atomic_load_explicit(&b->seq, memory_order_relaxed);
    /* release: the changes are visible before the even number */
    atomic_store_explicit(&b->seq, seq + 1, memory_order_release);
}

/* ---- keys ---- */

static uint64_t
key_of(uint64_t mac, uint16_t vid)
{
    return KEY_VALID | (uint64_t)(vid & 0xfff) << 48 | mac;
}

static struct pvs_fdb_bucket *
bucket_of(const struct pvs_fdb *fdb, uint64_t key)
{
    /* multiply-and-fold; the seed is private, so a guest can't aim at a bucket */
    uint64_t h = (key ^ fdb->seed) * 0x9e3779b97f4a7c15ULL;
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93ULL;
    return &fdb->bucket[(h >> 32) & fdb->bucket_mask];
}

static bool
is_static(const struct entry *e)
{
    return (atomic_load_explicit(&e->key, memory_order_relaxed) & KEY_STATIC) != 0;
}

static inline uint64_t
where(const struct entry *e)
{
    return atomic_load_explicit(&e->at, memory_order_relaxed) & AT;
}

static uint32_t
port_of(const struct entry *e)
{
    return (uint32_t)where(e);
}

/* relaxed: an entry may be judged by what was true of its port a moment ago */
static bool
sticky(const struct pvs_fdb *fdb, uint32_t port_ref)
{
    return port_ref != 0 &&
           atomic_load_explicit(&fdb->sticky[pvs_ref_index(port_ref)], memory_order_relaxed) == port_ref;
}

static bool
too_old(const struct pvs_fdb *fdb, uint32_t port_ref, uint32_t stamp, uint32_t now_s)
{
    uint32_t aging = atomic_load_explicit(&fdb->aging_s, memory_order_relaxed);
    /* signed: another worker may have stamped it a moment "after" our now */
    return aging != 0 && (int32_t)(now_s - stamp) > (int32_t)aging && !sticky(fdb, port_ref);
}

static bool
entry_too_old(const struct pvs_fdb *fdb, const struct entry *e, uint32_t now_s)
{
    return too_old(fdb, port_of(e), atomic_load_explicit(&e->stamp, memory_order_relaxed), now_s);
}

/* ---- reading ---- */

struct found {
    uint32_t index, stamp;
    uint64_t at; /* PVS_FDB_AT, and above it what is nobody else's */
    bool is_static;
};

static void
entry_put(struct entry *e, uint64_t at, uint32_t stamp)
{
    atomic_store_explicit(&e->at, at, memory_order_relaxed);
    atomic_store_explicit(&e->stamp, stamp, memory_order_relaxed);
}

/* One attempt at a chain; the caller checks the sequence number. The step limit ends a walk led astray by a writer. */
static inline struct found
chain_scan(const struct pvs_fdb *fdb, const struct pvs_fdb_bucket *b, uint64_t key)
{
    uint32_t i = atomic_load_explicit(&b->head, memory_order_relaxed);
    for (uint32_t left = fdb->limit; i != NIL && left != 0; left--) {
        const struct entry *e = &fdb->entry[i];
        uint64_t k = atomic_load_explicit(&e->key, memory_order_relaxed);
        if ((k & ~KEY_STATIC) == key)
            return (struct found){ i, atomic_load_explicit(&e->stamp, memory_order_relaxed),
                                   atomic_load_explicit(&e->at, memory_order_relaxed), (k & KEY_STATIC) != 0 };
        i = atomic_load_explicit(&e->next, memory_order_relaxed);
    }
    return (struct found){ .index = NIL };
}

static inline struct found
find_in(const struct pvs_fdb *fdb, const struct pvs_fdb_bucket *b, uint64_t key)
{
    /* bounded: a writer that was preempted half-way must not stop a worker; the address is unknown for that long */
    for (int attempt = 0; attempt < 1000; attempt++) {
        uint32_t seq = atomic_load_explicit(&b->seq, memory_order_acquire);
        struct found f = chain_scan(fdb, b, key);
        /* acquire fence: the chain was read before the number is looked at again */
        atomic_thread_fence(memory_order_acquire);
        if (__builtin_expect(!(seq & 1) && atomic_load_explicit(&b->seq, memory_order_relaxed) == seq, 1))
            return f;
    }
    return (struct found){ .index = NIL };
}

static inline struct found
find(const struct pvs_fdb *fdb, uint64_t key)
{
    return find_in(fdb, bucket_of(fdb, key), key);
}

enum pvs_fdb_state
pvs_fdb_look(const struct pvs_fdb *fdb, const struct pvs_fdb_place *place, uint32_t now_s, uint64_t *at,
             bool *is_static)
{
    struct found f = find_in(fdb, place->bucket, place->key);

    *at = f.at;
    *is_static = f.is_static;
    if (f.index == NIL)
        return PVS_FDB_UNKNOWN;
    if (f.stamp == now_s || f.is_static)
        return PVS_FDB_FRESH;
    return too_old(fdb, (uint32_t)f.at, f.stamp, now_s) ? PVS_FDB_UNKNOWN : PVS_FDB_STALE;
}

bool
pvs_fdb_is_large(const struct pvs_fdb *fdb)
{
    return atomic_load_explicit(&fdb->count, memory_order_relaxed) > LARGE;
}

struct pvs_fdb_place
pvs_fdb_place(const struct pvs_fdb *fdb, uint64_t mac, uint16_t vid)
{
    uint64_t key = key_of(mac, vid);
    const struct pvs_fdb_bucket *b = bucket_of(fdb, key);

    __builtin_prefetch(b);
    return (struct pvs_fdb_place){ key, b };
}

void
pvs_fdb_prefetch(const struct pvs_fdb *fdb, const struct pvs_fdb_place *place)
{
    uint32_t i = atomic_load_explicit(&place->bucket->head, memory_order_relaxed);

    if (i != NIL)
        __builtin_prefetch(&fdb->entry[i]);
}

/* ---- changing: the lock is held ---- */

/* relaxed: who reads it without the lock wants no more than a number */
static uint32_t
held(const struct pvs_fdb *fdb, uint32_t port)
{
    return atomic_load_explicit(&fdb->held[port], memory_order_relaxed);
}

static void
held_add(struct pvs_fdb *fdb, uint32_t port, uint32_t n)
{
    atomic_store_explicit(&fdb->held[port], held(fdb, port) + n, memory_order_relaxed);
}

static void
list_add(struct pvs_fdb *fdb, uint32_t i)
{
    struct entry *e = &fdb->entry[i];
    uint32_t port = pvs_ref_index(port_of(e));
    struct list *l = &fdb->list[port];

    uint64_t stamp = atomic_load_explicit(&e->stamp, memory_order_relaxed);
    atomic_store_explicit(&e->at, where(e) | stamp << QUEUED, memory_order_relaxed);
    e->older = l->newest;
    e->newer = NIL;
    if (l->newest != NIL)
        fdb->entry[l->newest].newer = i;
    else
        l->oldest = i;
    l->newest = i;
    held_add(fdb, port, 1);
}

static void
list_remove(struct pvs_fdb *fdb, uint32_t i)
{
    struct entry *e = &fdb->entry[i];
    uint32_t port = pvs_ref_index(port_of(e));
    struct list *l = &fdb->list[port];

    if (e->older != NIL)
        fdb->entry[e->older].newer = e->newer;
    else
        l->oldest = e->newer;
    if (e->newer != NIL)
        fdb->entry[e->newer].older = e->older;
    else
        l->newest = e->older;
    held_add(fdb, port, UINT32_MAX);
}

static void
entry_remove(struct pvs_fdb *fdb, uint32_t i)
{
    struct entry *e = &fdb->entry[i];
    uint64_t key = atomic_load_explicit(&e->key, memory_order_relaxed);
    struct pvs_fdb_bucket *b = bucket_of(fdb, key & ~KEY_STATIC);
    _Atomic uint32_t *link = &b->head;

    if (!(key & KEY_STATIC))
        list_remove(fdb, i);
    while (atomic_load_explicit(link, memory_order_relaxed) != i)
        link = &fdb->entry[atomic_load_explicit(link, memory_order_relaxed)].next;
    bucket_begin(b);
    atomic_store_explicit(link, atomic_load_explicit(&e->next, memory_order_relaxed), memory_order_relaxed);
    atomic_store_explicit(&e->key, 0, memory_order_relaxed);
    atomic_store_explicit(&e->next, fdb->free, memory_order_relaxed);
    bucket_end(b);
    fdb->free = i;
    atomic_fetch_sub_explicit(&fdb->count, 1, memory_order_relaxed);
}

/* Make room by taking the oldest entry of the port that holds the most. False when all entries are static or sticky. */
static bool
evict(struct pvs_fdb *fdb)
{
    uint32_t port = 0, most = 0;
    for (uint32_t p = 0; p < PVS_MAX_PORTS; p++)
        if (held(fdb, p) > most && atomic_load_explicit(&fdb->sticky[p], memory_order_relaxed) == 0)
            most = held(fdb, port = p);
    if (most == 0)
        return false;
    /* a bounded number of second chances: order is kept lazily, an attacker must not make it a long walk */
    for (int chance = 0; chance < 8; chance++) {
        uint32_t i = fdb->list[port].oldest;
        struct entry *e = &fdb->entry[i];
        uint64_t queued = atomic_load_explicit(&e->at, memory_order_relaxed) >> QUEUED;
        if ((uint16_t)atomic_load_explicit(&e->stamp, memory_order_relaxed) == queued)
            break;
        list_remove(fdb, i);
        list_add(fdb, i);
    }
    entry_remove(fdb, fdb->list[port].oldest);
    return true;
}

static bool
entry_insert(struct pvs_fdb *fdb, uint64_t key, uint64_t at, uint32_t now_s)
{
    if (fdb->free == NIL && !evict(fdb))
        return false;
    uint32_t i = fdb->free;
    struct entry *e = &fdb->entry[i];
    struct pvs_fdb_bucket *b = bucket_of(fdb, key & ~KEY_STATIC);

    fdb->free = atomic_load_explicit(&e->next, memory_order_relaxed);
    bucket_begin(b);
    atomic_store_explicit(&e->key, key, memory_order_relaxed);
    entry_put(e, at, now_s);
    atomic_store_explicit(&e->next, atomic_load_explicit(&b->head, memory_order_relaxed), memory_order_relaxed);
    atomic_store_explicit(&b->head, i, memory_order_relaxed);
    bucket_end(b);
    if (!(key & KEY_STATIC))
        list_add(fdb, i);
    atomic_fetch_add_explicit(&fdb->count, 1, memory_order_relaxed);
    return true;
}

static void
entry_move(struct pvs_fdb *fdb, uint32_t i, uint64_t at, uint32_t now_s)
{
    struct entry *e = &fdb->entry[i];
    struct pvs_fdb_bucket *b = bucket_of(fdb, atomic_load_explicit(&e->key, memory_order_relaxed));

    list_remove(fdb, i);
    bucket_begin(b);
    entry_put(e, at, now_s);
    bucket_end(b);
    list_add(fdb, i);
}

enum pvs_learned
pvs_fdb_learn(struct pvs_fdb *fdb, uint64_t mac, uint16_t vid, uint64_t at, uint32_t most, uint32_t now_s,
              uint32_t *old_ref)
{
    uint64_t key = key_of(mac, vid);
    uint32_t port_ref = (uint32_t)at;
    struct found f = find(fdb, key);

    if (f.index != NIL && (f.is_static || (pvs_fdb_same(f.at, at) && f.stamp == now_s)))
        return PVS_LEARN_NOTHING;
    if (f.index != NIL && pvs_fdb_same(f.at, at) && !too_old(fdb, port_ref, f.stamp, now_s)) {
        /* a mere refresh takes no lock; should the entry be reused this instant, another address lives a little longer */
        atomic_store_explicit(&fdb->entry[f.index].stamp, now_s, memory_order_relaxed);
        return PVS_LEARN_NOTHING;
    }
    if (atomic_load_explicit(&fdb->wanted, memory_order_relaxed) || !lock_try(fdb))
        return PVS_LEARN_BUSY;
    enum pvs_learned outcome = PVS_LEARN_NOTHING;
    f = find(fdb, key); /* again: it may have changed before the lock was ours */
    bool room = most == 0 || held(fdb, pvs_ref_index(port_ref)) < most;
    bool same_port = (uint32_t)f.at == port_ref;
    if (f.index == NIL) {
        if (room && entry_insert(fdb, key, at, now_s))
            outcome = PVS_LEARN_NEW;
    } else if (!f.is_static && (same_port || (room && !sticky(fdb, (uint32_t)f.at)))) {
        bool expired = too_old(fdb, (uint32_t)f.at, f.stamp, now_s);
        if (!pvs_fdb_same(f.at, at)) {
            entry_move(fdb, f.index, at, now_s);
            outcome = expired ? PVS_LEARN_NEW : PVS_LEARN_MOVED;
            *old_ref = (uint32_t)f.at;
        } else {
            atomic_store_explicit(&fdb->entry[f.index].stamp, now_s, memory_order_relaxed);
            outcome = expired ? PVS_LEARN_NEW : PVS_LEARN_NOTHING;
        }
    }
    unlock(fdb);
    return outcome;
}

/* ---- control ---- */

static void *
pages_alloc(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

int
pvs_fdb_create(uint32_t limit, uint32_t aging_s, uint64_t seed, struct pvs_fdb **out)
{
    if (limit == 0 || limit > 1000000)
        return -EINVAL;
    uint32_t buckets = 64;
    while (buckets < limit)
        buckets *= 2;
    struct pvs_fdb *fdb = calloc(1, sizeof *fdb);
    if (fdb == NULL)
        return -ENOMEM;
    fdb->limit = limit;
    fdb->bucket_mask = buckets - 1;
    fdb->entry = pages_alloc(limit * sizeof *fdb->entry);
    fdb->bucket = pages_alloc(buckets * sizeof *fdb->bucket);
    if (fdb->entry == NULL || fdb->bucket == NULL) {
        pvs_fdb_destroy(fdb);
        return -ENOMEM;
    }
    fdb->seed = seed;
    atomic_init(&fdb->aging_s, aging_s);
    atomic_flag_clear(&fdb->lock);
    for (uint32_t i = 0; i < buckets; i++)
        atomic_init(&fdb->bucket[i].head, NIL);
    for (uint32_t i = 0; i < limit; i++)
        atomic_init(&fdb->entry[i].next, i + 1 < limit ? i + 1 : NIL);
    for (uint32_t p = 0; p < PVS_MAX_PORTS; p++)
        fdb->list[p] = (struct list){ NIL, NIL };
    *out = fdb;
    return 0;
}

void
pvs_fdb_destroy(struct pvs_fdb *fdb)
{
    if (fdb == NULL)
        return;
    if (fdb->entry != NULL)
        munmap(fdb->entry, fdb->limit * sizeof *fdb->entry);
    if (fdb->bucket != NULL)
        munmap(fdb->bucket, (fdb->bucket_mask + 1) * sizeof *fdb->bucket);
    free(fdb);
}

void
pvs_fdb_set_aging(struct pvs_fdb *fdb, uint32_t aging_s)
{
    atomic_store_explicit(&fdb->aging_s, aging_s, memory_order_relaxed);
}

uint32_t
pvs_fdb_count(const struct pvs_fdb *fdb)
{
    return atomic_load_explicit(&fdb->count, memory_order_relaxed);
}

int
pvs_fdb_set_static(struct pvs_fdb *fdb, const uint8_t *mac, uint16_t vid, uint32_t port_ref, uint16_t vtep)
{
    uint64_t key = key_of(pvs_mac_load(mac), vid);

    lock_wait(fdb);
    struct found f = find(fdb, key);
    if (f.index != NIL)
        entry_remove(fdb, f.index);
    bool done = entry_insert(fdb, key | KEY_STATIC, PVS_FDB_AT(port_ref, vtep), 0);
    unlock(fdb);
    return done ? 0 : -ENOSPC;
}

int
pvs_fdb_remove(struct pvs_fdb *fdb, const uint8_t *mac, uint16_t vid)
{
    lock_wait(fdb);
    struct found f = find(fdb, key_of(pvs_mac_load(mac), vid));
    if (f.index != NIL)
        entry_remove(fdb, f.index);
    unlock(fdb);
    return f.index != NIL ? 0 : -ENOENT;
}

static bool
filter_matches(const struct pvs_fdb *fdb, const struct pvs_fdb_filter *filter, const struct entry *e)
{
    uint64_t key = atomic_load_explicit(&e->key, memory_order_relaxed);
    if (key == 0 || (key & KEY_STATIC))
        return false;
    if (filter->by_port && port_of(e) != filter->port_ref)
        return false;
    if (filter->by_sticky && sticky(fdb, port_of(e)) != filter->sticky)
        return false;
    if (filter->by_vtep && where(e) >> 32 != filter->vtep)
        return false;
    if (filter->by_vid && (key >> 48 & 0xfff) != filter->vid)
        return false;
    return !filter->by_mac || (key & PVS_MAC_BROADCAST) == pvs_mac_load(filter->mac);
}

/* How many slots one holding of the lock may look at. */
enum { SLICE = 256 };

int
pvs_fdb_flush(struct pvs_fdb *fdb, const struct pvs_fdb_filter *filter)
{
    int removed = 0;
    for (uint32_t from = 0; from < fdb->limit; from += SLICE) {
        lock_wait(fdb);
        for (uint32_t i = from; i < fdb->limit && i < from + SLICE; i++) {
            if (filter_matches(fdb, filter, &fdb->entry[i])) {
                entry_remove(fdb, i);
                removed++;
            }
        }
        unlock(fdb);
    }
    return removed;
}

/* An entry as it is told to control; under the lock. */
static struct pvs_fdb_item
item_of(const struct pvs_fdb *fdb, const struct entry *e, uint32_t now_s)
{
    uint64_t key = atomic_load_explicit(&e->key, memory_order_relaxed);
    uint32_t stamp = atomic_load_explicit(&e->stamp, memory_order_relaxed);
    bool fixed = (key & KEY_STATIC) != 0;
    struct pvs_fdb_item item = { .vid = (uint16_t)(key >> 48 & 0xfff), .is_static = fixed };

    item.port_ref = port_of(e);
    item.vtep = (uint16_t)(where(e) >> 32);
    item.is_sticky = !fixed && sticky(fdb, item.port_ref);
    item.age_s = fixed || (int32_t)(now_s - stamp) < 0 ? 0 : now_s - stamp;
    pvs_mac_store(item.mac, key & PVS_MAC_BROADCAST);
    return item;
}

int
pvs_fdb_lookup(struct pvs_fdb *fdb, const uint8_t *mac, uint16_t vid, uint64_t now_ns, struct pvs_fdb_item *out)
{
    uint32_t now_s = (uint32_t)(now_ns / NS_PER_S);

    lock_wait(fdb);
    struct found f = find(fdb, key_of(pvs_mac_load(mac), vid));
    bool known = f.index != NIL && (f.is_static || !too_old(fdb, (uint32_t)f.at, f.stamp, now_s));
    if (known)
        *out = item_of(fdb, &fdb->entry[f.index], now_s);
    unlock(fdb);
    return known ? 0 : -ENOENT;
}

int
pvs_fdb_sweep(struct pvs_fdb *fdb, uint64_t now_ns, uint32_t *cursor, uint32_t budget, struct pvs_fdb_item *out,
              uint32_t max)
{
    uint32_t now_s = (uint32_t)(now_ns / NS_PER_S), removed = 0;
    for (uint32_t looked = 0; looked < budget && *cursor < fdb->limit; looked += SLICE) {
        lock_wait(fdb);
        for (uint32_t k = 0; k < SLICE && *cursor < fdb->limit; k++, ++*cursor) {
            struct entry *e = &fdb->entry[*cursor];
            if (atomic_load_explicit(&e->key, memory_order_relaxed) != 0 && !is_static(e) &&
                entry_too_old(fdb, e, now_s)) {
                if (removed++ < max)
                    out[removed - 1] = item_of(fdb, e, now_s);
                entry_remove(fdb, *cursor);
            }
        }
        unlock(fdb);
    }
    if (*cursor >= fdb->limit)
        *cursor = 0;
    return (int)removed;
}

int
pvs_fdb_dump(struct pvs_fdb *fdb, uint64_t now_ns, uint32_t *cursor, struct pvs_fdb_item *out, uint32_t max)
{
    uint32_t now_s = (uint32_t)(now_ns / NS_PER_S), n = 0;

    while (n < max && *cursor < fdb->limit) {
        lock_wait(fdb);
        for (uint32_t k = 0; k < SLICE && n < max && *cursor < fdb->limit; k++, ++*cursor) {
            struct entry *e = &fdb->entry[*cursor];
            if (atomic_load_explicit(&e->key, memory_order_relaxed) != 0 &&
                (is_static(e) || !entry_too_old(fdb, e, now_s)))
                out[n++] = item_of(fdb, e, now_s);
        }
        unlock(fdb);
    }
    if (*cursor >= fdb->limit)
        *cursor = 0;
    return (int)n;
}

void
pvs_fdb_copy(struct pvs_fdb *to, struct pvs_fdb *from)
{
    /* static entries first: they must fit, dynamic ones may */
    lock_wait(to);
    for (uint32_t at = 0; at < 2 * from->limit; at++) {
        struct entry *e = &from->entry[at % from->limit];
        uint64_t wanted = at < from->limit ? KEY_STATIC : 0;
        if (at % SLICE == 0)
            lock_wait(from);
        uint64_t key = atomic_load_explicit(&e->key, memory_order_relaxed);
        if (key != 0 && (key & KEY_STATIC) == wanted && to->free != NIL && find(to, key & ~KEY_STATIC).index == NIL)
            entry_insert(to, key, where(e), atomic_load_explicit(&e->stamp, memory_order_relaxed));
        if (at % SLICE == SLICE - 1 || at + 1 == 2 * from->limit)
            unlock(from);
    }
    unlock(to);
}

bool
pvs_fdb_is_sticky(const struct pvs_fdb *fdb, uint32_t port_ref)
{
    return sticky(fdb, port_ref);
}

void
pvs_fdb_set_sticky(struct pvs_fdb *fdb, uint32_t port, uint32_t port_ref)
{
    atomic_store_explicit(&fdb->sticky[port], port_ref, memory_order_relaxed);
}

uint32_t
pvs_fdb_held(const struct pvs_fdb *fdb, uint32_t port)
{
    return held(fdb, port);
}
