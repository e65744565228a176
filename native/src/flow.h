/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flow.h - which flow a frame matches: tuple space search behind an exact-match cache.
 *
 * How it works: flows with one mask form a *subtable*, a hash table of their keys (Srinivasan, Suri, Varghese: Packet
 * Classification using Tuple Space Search, SIGCOMM 1999). Subtables stand in the order of their best flow, so that a search ends as
 * soon as nothing better can follow. A flow's *rank* is its place among all: no two are the same. Of several with one
 * mask and key only the best can ever match, and only it is in the hash table.
 * Before that each worker has a cache of the keys it has seen, reduced to the bits that any flow of the table looks at: frames
 * that no flow can tell apart share an entry. A table never changes, so what its caches say stays true; they go with it.
 *
 * Who may call: workers find, each with its own cache. Control makes and destroys tables.
 */
#ifndef PVS_FLOW_H
#define PVS_FLOW_H

#include <stdbool.h>

#include "flow_key.h"
#include "pvs_api.h"

struct pvs_flow {
    const struct pvs_flow_action *action;
    const uint64_t *key; /* reduced by the mask of its subtable, */
    uint32_t subtable;   /* which has this number */
    uint32_t n_actions;
    uint32_t counter;
};

/* Words of keys, and the bits of them that count. */
struct pvs_flow_mask {
    uint32_t n;
    uint8_t word[PVS_FLOW_WORDS];
    uint64_t bits[PVS_FLOW_WORDS];
};

/*
 * Subtables and caches consist of places of `stride` words: one of these numbers or a flow's rank plus 1, with the upper half of a hash above
 * it; then a reduced key.
 */
#define PVS_PLACE_FREE    0U
#define PVS_PLACE_NOTHING 0xffffffffU /* no flow matches the key */

/* With open addresses, never more than half full. Sizes are powers of two, less one. */
struct pvs_flow_subtable {
    struct pvs_flow_mask mask;
    uint32_t best, n; /* rank of its best flow; places that are used */
    uint32_t stride, last;
    uint64_t *place;
    uint32_t seen_last;
    uint64_t *seen; /* a bit for each hash that is there, modulo its size: most searches in vain end here */
};

struct pvs_flow_table {
    uint32_t n_flows, n_subtables;
    enum pvs_flow_depth depth;
    uint64_t seed, bytes;
    struct pvs_flow_mask mask;                 /* all bits that any flow looks at */
    uint32_t n_caches, cache_stride, last_set; /* a worker has its cache, of sets of two places */
    uint64_t *cache[PVS_MAX_WORKERS];
    struct pvs_flow_subtable *subtable;
    struct pvs_flow *flow;          /* by rank */
    uint64_t *keys;                 /* what the flows' `key` point to, */
    struct pvs_flow_action *action; /* and their `action` */
};

/* -ENOMEM, -EINVAL; see pvs_flow_table_create() in pvs_api.h. */
int pvs_flow_table_make(uint32_t n_workers, const struct pvs_flow_conf *flows, uint32_t n_flows,
                        const struct pvs_flow_action *actions, uint32_t n_actions, uint64_t seed,
                        struct pvs_flow_table **out);

/*
 * The flow that a key matches, NULL: none does. `worker`: whose cache is used; PVS_MAX_WORKERS: none. *probes: hash tables that were looked
 * at, the cache being one.
 */
const struct pvs_flow *pvs_flow_find(const struct pvs_flow_table *table, const uint64_t *key, uint32_t worker,
                                     uint32_t *probes);

/* ---- between flow.c and flow_table.c ---- */

/* The words of a key that a mask looks at, masked, one behind the other; and their hash. */
static inline uint64_t
pvs_flow_reduce(const struct pvs_flow_mask *mask, const uint64_t *key, uint64_t seed, uint64_t *reduced)
{
    uint64_t hash = seed;

    for (uint32_t i = 0; i < mask->n; i++) {
        reduced[i] = key[mask->word[i]] & mask->bits[i];
        /* multiply, and take both halves: every bit of a word reaches every bit of the hash */
        __extension__ unsigned __int128 product = (unsigned __int128)(reduced[i] ^ hash) * 0x9e3779b97f4a7c15;
        hash = (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    return hash;
}

static inline bool
pvs_flow_same(const uint64_t *a, const uint64_t *b, uint32_t n)
{
    uint64_t differ = 0;

    for (uint32_t i = 0; i < n; i++)
        differ |= a[i] ^ b[i];
    return differ == 0;
}

/* The place of a key in a subtable, or the free one where it would be. */
static inline uint64_t *
pvs_flow_place(const struct pvs_flow_subtable *s, uint64_t hash, const uint64_t *reduced)
{
    for (uint64_t at = hash;; at++) {
        uint64_t *place = s->place + (at & s->last) * s->stride;
        if ((uint32_t)place[0] == PVS_PLACE_FREE ||
            (place[0] >> 32 == hash >> 32 && pvs_flow_same(place + 1, reduced, s->mask.n)))
            return place;
    }
}

#endif
