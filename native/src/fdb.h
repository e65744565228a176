/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fdb.h - the forwarding database of a bridge: (VID, MAC) -> port, and of a tunnel the VTEP.
 *
 * How it works: a fixed pool of entries, chained into hash buckets by index. Readers take no lock: each bucket carries a
 * sequence number that a writer makes odd while it changes the chain; a reader that saw a change looks again. Writers
 * (insert, move, evict, flush, sweep) hold one spin lock. Workers only ever TRY it: a frame whose source can't be learned
 * right now is learned with the next frame. Timestamps are refreshed without the lock, at most once a second.
 *
 * Fairness: dynamic entries hang in one list per port, oldest first. When the table is full, the port that holds the
 * most loses its oldest entry (a list entry that was refreshed since it was queued gets a second chance). Static entries
 * are never evicted and never move; nor are those of sticky ports, which don't grow old either.
 *
 * Ports are named by reference (index and generation), so an entry that outlives its port is recognised by decide().
 */
#ifndef PVS_FDB_H
#define PVS_FDB_H

#include <stdatomic.h>

#include "pvs_api.h"

enum pvs_fdb_state {
    PVS_FDB_UNKNOWN, /* not there, or too old */
    PVS_FDB_FRESH,   /* there, seen within the last second, or static */
    PVS_FDB_STALE,   /* there, its timestamp wants a refresh */
};

/* Where an address is: a port's reference, with the number of a VTEP behind it (0: none). */
#define PVS_FDB_AT(port_ref, vtep) ((port_ref) | (uint64_t)(vtep) << 32)

/* Is that the same place? What stands above the VTEP's number counts for nothing. */
static inline bool
pvs_fdb_same(uint64_t a, uint64_t b)
{
    return (a ^ b) << 16 == 0;
}

struct pvs_fdb_hit {
    uint64_t at; /* see pvs_fdb_same; of one that is too old where it was, 0: not there */
    bool is_static;
    enum pvs_fdb_state state;
};

enum pvs_learned { PVS_LEARN_NOTHING, PVS_LEARN_NEW, PVS_LEARN_MOVED, PVS_LEARN_BUSY };

/* Where an address belongs. For who wants to look for many, and have memory fetched in between. */
struct pvs_fdb_place {
    uint64_t key;
    const struct pvs_fdb_bucket *bucket;
};

/* The place of an address; its bucket is being fetched. `mac` as in struct pvs_parsed. Any thread, as all of these. */
struct pvs_fdb_place pvs_fdb_place(const struct pvs_fdb *fdb, uint64_t mac, uint16_t vid);
/* Fetch the first entry in it. */
void pvs_fdb_prefetch(const struct pvs_fdb *fdb, const struct pvs_fdb_place *place);
/* What is there, without a lock: the fields of struct pvs_fdb_hit. Of one that is too old *at is where it was; 0: not there. */
enum pvs_fdb_state pvs_fdb_look(const struct pvs_fdb *fdb, const struct pvs_fdb_place *place, uint32_t now_s,
                                uint64_t *at, bool *is_static);
/* How many addresses are known behind the port at this index, without those that were told; they may just have aged. */
uint32_t pvs_fdb_held(const struct pvs_fdb *fdb, uint32_t port);
/* Does a port keep the addresses that were learned there? */
bool pvs_fdb_is_sticky(const struct pvs_fdb *fdb, uint32_t port_ref);
/* Control's, as it publishes tables: the one at this index that does; 0: it doesn't. */
void pvs_fdb_set_sticky(struct pvs_fdb *fdb, uint32_t port, uint32_t port_ref);
/* Is it too large for a processor's nearest caches, so that prefetching pays? */
bool pvs_fdb_is_large(const struct pvs_fdb *fdb);

/* In line: a small struct that a function returns in a register would be put together in memory, and waited for. */
static inline struct pvs_fdb_hit
pvs_fdb_find_at(const struct pvs_fdb *fdb, const struct pvs_fdb_place *place, uint32_t now_s)
{
    struct pvs_fdb_hit hit = { 0 };

    hit.state = pvs_fdb_look(fdb, place, now_s, &hit.at, &hit.is_static);
    return hit;
}

static inline struct pvs_fdb_hit
pvs_fdb_find(const struct pvs_fdb *fdb, uint64_t mac, uint16_t vid, uint32_t now_s)
{
    struct pvs_fdb_place place = pvs_fdb_place(fdb, mac, vid);

    return pvs_fdb_find_at(fdb, &place, now_s);
}

/*
 * Learn or refresh, from a worker: never waits. `at` as PVS_FDB_AT. On PVS_LEARN_MOVED *old_ref is the port where the address was.
 * PVS_LEARN_BUSY: the lock was taken. An entry that can't be made (all static, or the port holds `most`; 0: no limit) counts as
 * nothing.
 */
enum pvs_learned pvs_fdb_learn(struct pvs_fdb *fdb, uint64_t mac, uint16_t vid, uint64_t at, uint32_t most,
                               uint32_t now_s, uint32_t *old_ref);

#endif
