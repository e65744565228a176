/* SPDX-License-Identifier: Apache-2.0 */
/* fdb.c - see fdb.h for how it works: what workers do with it, and how an entry is made, found and removed. */
#include "fdb_entry.h"
#include "parse.h"

#define LARGE 1024 /* entries and their buckets: 40 KiB */

/* ---- sequence ---- */

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

/* ---- judging ---- */

static struct pvs_fdb_bucket *
bucket_of(const struct pvs_fdb *fdb, uint64_t key)
{
    /* multiply-and-fold; the seed is private, so a guest can't aim at a bucket */
    uint64_t h = (key ^ fdb->seed) * 0x9e3779b97f4a7c15ULL;
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93ULL;
    return &fdb->bucket[(h >> 32) & fdb->bucket_mask];
}

/* relaxed: an entry may be judged by what was true of its port a moment ago */
bool
pvs_fdb_is_sticky(const struct pvs_fdb *fdb, uint32_t port_ref)
{
    return port_ref != 0 &&
           atomic_load_explicit(&fdb->sticky[pvs_ref_index(port_ref)], memory_order_relaxed) == port_ref;
}

static bool
too_old(const struct pvs_fdb *fdb, uint32_t port_ref, uint32_t stamp, uint32_t now_s)
{
    uint32_t aging = atomic_load_explicit(&fdb->aging_s, memory_order_relaxed);
    /* signed: another worker may have stamped it a moment "after" our now */
    return aging != 0 && (int32_t)(now_s - stamp) > (int32_t)aging && !pvs_fdb_is_sticky(fdb, port_ref);
}

bool
pvs_fdb_entry_too_old(const struct pvs_fdb *fdb, const struct pvs_fdb_entry *e, uint32_t now_s)
{
    return too_old(fdb, pvs_fdb_port_of(e), atomic_load_explicit(&e->stamp, memory_order_relaxed), now_s);
}

/* ---- reading ---- */

/* One attempt at a chain; the caller checks the sequence number. The step limit ends a walk led astray by a writer. */
static inline struct pvs_fdb_found
chain_scan(const struct pvs_fdb *fdb, const struct pvs_fdb_bucket *b, uint64_t key)
{
    uint32_t i = atomic_load_explicit(&b->head, memory_order_relaxed);
    for (uint32_t left = fdb->limit; i != PVS_FDB_NIL && left != 0; left--) {
        const struct pvs_fdb_entry *e = &fdb->entry[i];
        uint64_t k = atomic_load_explicit(&e->key, memory_order_relaxed);
        if ((k & ~PVS_FDB_STATIC) == key)
            return (struct pvs_fdb_found){ i, atomic_load_explicit(&e->stamp, memory_order_relaxed),
                                           atomic_load_explicit(&e->at, memory_order_relaxed),
                                           (k & PVS_FDB_STATIC) != 0 };
        i = atomic_load_explicit(&e->next, memory_order_relaxed);
    }
    return (struct pvs_fdb_found){ .index = PVS_FDB_NIL };
}

static inline struct pvs_fdb_found
find_in(const struct pvs_fdb *fdb, const struct pvs_fdb_bucket *b, uint64_t key)
{
    /* bounded: a writer that was preempted half-way must not stop a worker; the address is unknown for that long */
    for (int attempt = 0; attempt < 1000; attempt++) {
        uint32_t seq = atomic_load_explicit(&b->seq, memory_order_acquire);
        struct pvs_fdb_found f = chain_scan(fdb, b, key);
        /* acquire fence: the chain was read before the number is looked at again */
        atomic_thread_fence(memory_order_acquire);
        if (__builtin_expect(!(seq & 1) && atomic_load_explicit(&b->seq, memory_order_relaxed) == seq, 1))
            return f;
    }
    return (struct pvs_fdb_found){ .index = PVS_FDB_NIL };
}

struct pvs_fdb_found
pvs_fdb_find_key(const struct pvs_fdb *fdb, uint64_t key)
{
    return find_in(fdb, bucket_of(fdb, key), key);
}

enum pvs_fdb_state
pvs_fdb_look(const struct pvs_fdb *fdb, const struct pvs_fdb_place *place, uint32_t now_s, uint64_t *at,
             bool *is_static)
{
    struct pvs_fdb_found f = find_in(fdb, place->bucket, place->key);

    *at = f.at;
    *is_static = f.is_static;
    if (f.index == PVS_FDB_NIL)
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
    uint64_t key = pvs_fdb_key_of(mac, vid);
    const struct pvs_fdb_bucket *b = bucket_of(fdb, key);

    __builtin_prefetch(b);
    return (struct pvs_fdb_place){ key, b };
}

void
pvs_fdb_prefetch(const struct pvs_fdb *fdb, const struct pvs_fdb_place *place)
{
    uint32_t i = atomic_load_explicit(&place->bucket->head, memory_order_relaxed);

    if (i != PVS_FDB_NIL)
        __builtin_prefetch(&fdb->entry[i]);
}

/* ---- changing: the lock is held ---- */

static void
entry_put(struct pvs_fdb_entry *e, uint64_t at, uint32_t stamp)
{
    atomic_store_explicit(&e->at, at, memory_order_relaxed);
    atomic_store_explicit(&e->stamp, stamp, memory_order_relaxed);
}

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
    struct pvs_fdb_entry *e = &fdb->entry[i];
    uint32_t port = pvs_ref_index(pvs_fdb_port_of(e));
    struct pvs_fdb_list *l = &fdb->list[port];

    uint64_t stamp = atomic_load_explicit(&e->stamp, memory_order_relaxed);
    atomic_store_explicit(&e->at, pvs_fdb_where(e) | stamp << PVS_FDB_QUEUED, memory_order_relaxed);
    e->older = l->newest;
    e->newer = PVS_FDB_NIL;
    if (l->newest != PVS_FDB_NIL)
        fdb->entry[l->newest].newer = i;
    else
        l->oldest = i;
    l->newest = i;
    held_add(fdb, port, 1);
}

static void
list_remove(struct pvs_fdb *fdb, uint32_t i)
{
    struct pvs_fdb_entry *e = &fdb->entry[i];
    uint32_t port = pvs_ref_index(pvs_fdb_port_of(e));
    struct pvs_fdb_list *l = &fdb->list[port];

    if (e->older != PVS_FDB_NIL)
        fdb->entry[e->older].newer = e->newer;
    else
        l->oldest = e->newer;
    if (e->newer != PVS_FDB_NIL)
        fdb->entry[e->newer].older = e->older;
    else
        l->newest = e->older;
    held_add(fdb, port, UINT32_MAX);
}

void
pvs_fdb_entry_remove(struct pvs_fdb *fdb, uint32_t i)
{
    struct pvs_fdb_entry *e = &fdb->entry[i];
    uint64_t key = atomic_load_explicit(&e->key, memory_order_relaxed);
    struct pvs_fdb_bucket *b = bucket_of(fdb, key & ~PVS_FDB_STATIC);
    _Atomic uint32_t *link = &b->head;

    if (!(key & PVS_FDB_STATIC))
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
        struct pvs_fdb_entry *e = &fdb->entry[i];
        uint64_t queued = atomic_load_explicit(&e->at, memory_order_relaxed) >> PVS_FDB_QUEUED;
        if ((uint16_t)atomic_load_explicit(&e->stamp, memory_order_relaxed) == queued)
            break;
        list_remove(fdb, i);
        list_add(fdb, i);
    }
    pvs_fdb_entry_remove(fdb, fdb->list[port].oldest);
    return true;
}

bool
pvs_fdb_entry_insert(struct pvs_fdb *fdb, uint64_t key, uint64_t at, uint32_t now_s)
{
    if (fdb->free == PVS_FDB_NIL && !evict(fdb))
        return false;
    uint32_t i = fdb->free;
    struct pvs_fdb_entry *e = &fdb->entry[i];
    struct pvs_fdb_bucket *b = bucket_of(fdb, key & ~PVS_FDB_STATIC);

    fdb->free = atomic_load_explicit(&e->next, memory_order_relaxed);
    bucket_begin(b);
    atomic_store_explicit(&e->key, key, memory_order_relaxed);
    entry_put(e, at, now_s);
    atomic_store_explicit(&e->next, atomic_load_explicit(&b->head, memory_order_relaxed), memory_order_relaxed);
    atomic_store_explicit(&b->head, i, memory_order_relaxed);
    bucket_end(b);
    if (!(key & PVS_FDB_STATIC))
        list_add(fdb, i);
    atomic_fetch_add_explicit(&fdb->count, 1, memory_order_relaxed);
    return true;
}

static void
entry_move(struct pvs_fdb *fdb, uint32_t i, uint64_t at, uint32_t now_s)
{
    struct pvs_fdb_entry *e = &fdb->entry[i];
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
    uint64_t key = pvs_fdb_key_of(mac, vid);
    uint32_t port_ref = (uint32_t)at;
    struct pvs_fdb_found f = pvs_fdb_find_key(fdb, key);

    if (f.index != PVS_FDB_NIL && (f.is_static || (pvs_fdb_same(f.at, at) && f.stamp == now_s)))
        return PVS_LEARN_NOTHING;
    if (f.index != PVS_FDB_NIL && pvs_fdb_same(f.at, at) && !too_old(fdb, port_ref, f.stamp, now_s)) {
        /* a mere refresh takes no lock; should the entry be reused this instant, another address lives a little longer */
        atomic_store_explicit(&fdb->entry[f.index].stamp, now_s, memory_order_relaxed);
        return PVS_LEARN_NOTHING;
    }
    if (atomic_load_explicit(&fdb->wanted, memory_order_relaxed) || !pvs_fdb_try_lock(fdb))
        return PVS_LEARN_BUSY;
    enum pvs_learned outcome = PVS_LEARN_NOTHING;
    f = pvs_fdb_find_key(fdb, key); /* again: it may have changed before the lock was ours */
    bool room = most == 0 || held(fdb, pvs_ref_index(port_ref)) < most;
    bool same_port = (uint32_t)f.at == port_ref;
    if (f.index == PVS_FDB_NIL) {
        if (room && pvs_fdb_entry_insert(fdb, key, at, now_s))
            outcome = PVS_LEARN_NEW;
    } else if (!f.is_static && (same_port || (room && !pvs_fdb_is_sticky(fdb, (uint32_t)f.at)))) {
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
    pvs_fdb_unlock(fdb);
    return outcome;
}

uint32_t
pvs_fdb_held(const struct pvs_fdb *fdb, uint32_t port)
{
    return held(fdb, port);
}
