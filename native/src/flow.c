/* SPDX-License-Identifier: Apache-2.0 */
/* flow.c - see flow.h. */
#include "flow.h"

/* What a place says of a key with this hash in its subtable: PVS_PLACE_FREE if it isn't there. */
static uint32_t
find_in(const struct pvs_flow_subtable *s, const uint64_t *key, uint64_t seed)
{
    uint64_t reduced[PVS_FLOW_WORDS], hash = pvs_flow_reduce(&s->mask, key, seed, reduced);
    uint32_t bit = (uint32_t)hash & s->seen_last;

    if ((s->seen[bit / 64] >> bit % 64 & 1) == 0)
        return PVS_PLACE_FREE;
    return (uint32_t)*pvs_flow_place(s, hash, reduced);
}

/* The rank of the flow that matches, plus 1; or PVS_PLACE_NOTHING. */
static uint32_t
search(const struct pvs_flow_table *t, const uint64_t *key, uint32_t *probes)
{
    uint32_t best = PVS_PLACE_NOTHING, i;

    for (i = 0; i < t->n_subtables && t->subtable[i].best + 1 < best; i++) {
        uint32_t found = find_in(&t->subtable[i], key, t->seed);
        if (found != PVS_PLACE_FREE && found < best)
            best = found;
    }
    *probes += i;
    return best;
}

static const struct pvs_flow *
flow_of(const struct pvs_flow_table *t, uint32_t found)
{
    return found == PVS_PLACE_NOTHING ? NULL : &t->flow[found - 1];
}

const struct pvs_flow *
pvs_flow_find(const struct pvs_flow_table *t, const uint64_t *key, uint32_t worker, uint32_t *probes)
{
    uint64_t reduced[PVS_FLOW_WORDS];

    *probes = 1;
    if (worker >= t->n_caches)
        return flow_of(t, search(t, key, probes));
    uint64_t hash = pvs_flow_reduce(&t->mask, key, t->seed, reduced);
    uint64_t *first = t->cache[worker] + (hash & t->last_set) * 2 * t->cache_stride, *second = first + t->cache_stride;
    if (first[0] >> 32 == hash >> 32 && (uint32_t)first[0] != PVS_PLACE_FREE &&
        pvs_flow_same(first + 1, reduced, t->mask.n))
        return flow_of(t, (uint32_t)first[0]);
    if (second[0] >> 32 == hash >> 32 && (uint32_t)second[0] != PVS_PLACE_FREE &&
        pvs_flow_same(second + 1, reduced, t->mask.n))
        return flow_of(t, (uint32_t)second[0]);
    uint32_t found = search(t, key, probes);
    memcpy(second, first, (1 + t->mask.n) * sizeof *first); /* the older of the two leaves */
    first[0] = hash >> 32 << 32 | found;
    memcpy(first + 1, reduced, t->mask.n * sizeof *first);
    return flow_of(t, found);
}
