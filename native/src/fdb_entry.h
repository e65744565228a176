/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fdb_entry.h - what a forwarding database is made of (fdb.h says how it works).
 *
 * Who may call: fdb.c, which is what workers need, and fdb_control.c, which is what control needs besides; nobody else.
 */
#ifndef PVS_FDB_ENTRY_H
#define PVS_FDB_ENTRY_H

#include <sched.h>

#include "fdb.h"

#define PVS_FDB_NIL    UINT32_MAX
#define PVS_FDB_STATIC (1ULL << 63)
#define PVS_FDB_VALID  (1ULL << 62) /* so that no key is zero */
#define PVS_FDB_QUEUED 48           /* the bit where the half of a stamp begins that an entry's place has above it */

/* The fields that readers without the lock look at are atomic, relaxed: the bucket's sequence number orders them. */
struct pvs_fdb_entry {
    _Atomic uint64_t key;   /* 0 = free; else VALID | vid << 48 | mac, STATIC */
    _Atomic uint64_t at;    /* PVS_FDB_AT; above it the stamp's lower half when it was put at its list's end */
    _Atomic uint32_t next;  /* in the bucket's chain, or in the free list */
    _Atomic uint32_t stamp; /* second in which it was last seen */
    uint32_t older, newer;  /* neighbours in its port's list; writer only */
};
_Static_assert(sizeof(struct pvs_fdb_entry) == 32, "two entries in a cache line");

struct pvs_fdb_bucket {
    _Atomic uint32_t seq; /* odd while a writer is at work */
    _Atomic uint32_t head;
};

struct pvs_fdb_list {
    uint32_t oldest, newest;
};

struct pvs_fdb {
    struct pvs_fdb_entry *entry;
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
    struct pvs_fdb_list list[PVS_MAX_PORTS];
};

/* ---- the lock ---- */

static inline bool
pvs_fdb_try_lock(struct pvs_fdb *fdb)
{
    return !atomic_flag_test_and_set_explicit(&fdb->lock, memory_order_acquire);
}

static inline void
pvs_fdb_lock(struct pvs_fdb *fdb)
{
    atomic_store_explicit(&fdb->wanted, true, memory_order_relaxed);
    while (!pvs_fdb_try_lock(fdb))
        sched_yield(); /* control thread only; whoever holds the lock does so for a bounded number of entries */
    atomic_store_explicit(&fdb->wanted, false, memory_order_relaxed);
}

static inline void
pvs_fdb_unlock(struct pvs_fdb *fdb)
{
    atomic_flag_clear_explicit(&fdb->lock, memory_order_release);
}

/* ---- entries ---- */

static inline uint64_t
pvs_fdb_key_of(uint64_t mac, uint16_t vid)
{
    return PVS_FDB_VALID | (uint64_t)(vid & 0xfff) << 48 | mac;
}

static inline bool
pvs_fdb_is_static(const struct pvs_fdb_entry *e)
{
    return (atomic_load_explicit(&e->key, memory_order_relaxed) & PVS_FDB_STATIC) != 0;
}

static inline uint64_t
pvs_fdb_where(const struct pvs_fdb_entry *e)
{
    return atomic_load_explicit(&e->at, memory_order_relaxed) & ((1ULL << PVS_FDB_QUEUED) - 1);
}

static inline uint32_t
pvs_fdb_port_of(const struct pvs_fdb_entry *e)
{
    return (uint32_t)pvs_fdb_where(e);
}

struct pvs_fdb_found {
    uint32_t index, stamp;
    uint64_t at; /* PVS_FDB_AT, and above it what is nobody else's */
    bool is_static;
};

/* The entry of a key (without PVS_FDB_STATIC), with or without the lock; its index is PVS_FDB_NIL when it isn't there. */
struct pvs_fdb_found pvs_fdb_find_key(const struct pvs_fdb *fdb, uint64_t key);
bool pvs_fdb_entry_too_old(const struct pvs_fdb *fdb, const struct pvs_fdb_entry *e, uint32_t now_s);
/* With the lock held. `key` may have PVS_FDB_STATIC. False: no entry is free, and none may go for it. */
bool pvs_fdb_entry_insert(struct pvs_fdb *fdb, uint64_t key, uint64_t at, uint32_t now_s);
/* With the lock held. */
void pvs_fdb_entry_remove(struct pvs_fdb *fdb, uint32_t i);

#endif
