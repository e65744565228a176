/* SPDX-License-Identifier: Apache-2.0 */
/* flow_table.c - control's side of flow.h: tables are made, explained and freed (see pvs_api.h). */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "flow_action.h"
#include "flow.h"

/* What a worker's cache holds: 8 MiB with keys of up to seven words, of which what isn't used takes no memory. */
enum { CACHE_SETS = 65536 };

static struct pvs_flow_mask
mask_of(const uint64_t bits[PVS_FLOW_WORDS])
{
    struct pvs_flow_mask mask = { 0 };

    for (uint8_t w = 0; w < PVS_FLOW_WORDS; w++)
        if (bits[w] != 0) {
            mask.word[mask.n] = w;
            mask.bits[mask.n++] = bits[w];
        }
    return mask;
}

static int
check(const struct pvs_flow_conf *flows, uint32_t n_flows, const struct pvs_flow_action *actions, uint32_t n_actions)
{
    if (n_flows > PVS_MAX_FLOWS)
        return -EINVAL;
    for (uint32_t i = 0; i < n_flows; i++) {
        const struct pvs_flow_conf *f = &flows[i];
        for (uint32_t w = 0; w < PVS_FLOW_WORDS; w++)
            if ((f->key[w] & ~f->mask[w]) != 0)
                return -EINVAL;
        if (f->first > n_actions || f->n_actions > n_actions - f->first ||
            (f->n_actions != 0 && !pvs_flow_actions_are_valid(actions + f->first, f->n_actions)))
            return -EINVAL;
    }
    return 0;
}

/* Least first: of two numbers with the priority, from above, in the upper half, and the place in the list in the lower one. */
static int
compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* The flows by rank, as places in the list. NULL without memory. */
static uint64_t *
rank(const struct pvs_flow_conf *flows, uint32_t n)
{
    uint64_t *order = malloc((n + 1) * sizeof *order);

    for (uint32_t i = 0; order != NULL && i < n; i++)
        order[i] = (uint64_t)(UINT32_MAX - flows[i].priority) << 32 | i;
    if (order != NULL)
        qsort(order, n, sizeof *order, compare);
    return order;
}

static uint32_t
power_of_two(uint32_t at_least)
{
    uint32_t size = 1;

    while (size < at_least)
        size *= 2;
    return size;
}

/* Find each flow's subtable, by rank: so these come in the order of their best flows. -ENOMEM, -E2BIG */
static int
subtables_find(struct pvs_flow_table *t, const struct pvs_flow_conf *flows, const uint64_t *order)
{
    uint32_t size = power_of_two(2 * t->n_flows + 1), words = 0, cap = 0;
    uint32_t *number_at = calloc(size, sizeof *number_at); /* by a hash of the mask: a subtable's number, plus 1 */

    if (number_at == NULL)
        return -ENOMEM;
    for (uint32_t r = 0; r < t->n_flows; r++) {
        const struct pvs_flow_conf *conf = &flows[(uint32_t)order[r]];
        struct pvs_flow_mask mask = mask_of(conf->mask), all = { .n = PVS_FLOW_WORDS };
        uint64_t reduced[PVS_FLOW_WORDS];
        for (uint8_t w = 0; w < PVS_FLOW_WORDS; w++) {
            all.word[w] = w;
            all.bits[w] = UINT64_MAX;
        }
        uint64_t at = pvs_flow_reduce(&all, conf->mask, t->seed, reduced);
        while (number_at[at & (size - 1)] != 0 &&
               memcmp(&t->subtable[number_at[at & (size - 1)] - 1].mask, &mask, sizeof mask) != 0)
            at++;
        if (number_at[at & (size - 1)] == 0) {
            if (t->n_subtables == PVS_MAX_MASKS) {
                free(number_at);
                return -E2BIG;
            }
            if (t->n_subtables == cap) {
                struct pvs_flow_subtable *grown = realloc(t->subtable, (cap = 2 * cap + 64) * sizeof *grown);
                if (grown == NULL) {
                    free(number_at);
                    return -ENOMEM;
                }
                t->subtable = grown;
            }
            t->subtable[t->n_subtables] = (struct pvs_flow_subtable){ .mask = mask, .best = r };
            number_at[at & (size - 1)] = ++t->n_subtables;
        }
        t->flow[r].subtable = number_at[at & (size - 1)] - 1;
        t->subtable[t->flow[r].subtable].n++;
        words += mask.n;
    }
    free(number_at);
    t->keys = malloc((words + 1) * sizeof *t->keys);
    t->bytes += words * sizeof *t->keys + cap * sizeof *t->subtable;
    return t->keys == NULL ? -ENOMEM : 0;
}

/* Make room in the subtables. -ENOMEM */
static int
subtables_size(struct pvs_flow_table *t)
{
    for (uint32_t i = 0; i < t->n_subtables; i++) {
        struct pvs_flow_subtable *s = &t->subtable[i];
        uint32_t places = power_of_two(2 * s->n), bits = power_of_two(16 * s->n < 64 ? 64 : 16 * s->n);
        s->stride = 1 + s->mask.n;
        s->last = places - 1;
        s->seen_last = bits - 1;
        s->n = 0;
        s->place = calloc((size_t)places * s->stride, sizeof *s->place);
        s->seen = calloc(bits / 64, sizeof *s->seen);
        if (s->place == NULL || s->seen == NULL)
            return -ENOMEM;
        t->bytes += places * s->stride * sizeof *s->place + bits / 8;
    }
    return 0;
}

/* Put a flow in, unless a better one has its mask and key. */
static void
insert(struct pvs_flow_table *t, uint32_t r, const uint64_t *key, uint64_t *reduced)
{
    struct pvs_flow_subtable *s = &t->subtable[t->flow[r].subtable];
    uint64_t hash = pvs_flow_reduce(&s->mask, key, t->seed, reduced), *place = pvs_flow_place(s, hash, reduced);
    uint32_t bit = (uint32_t)hash & s->seen_last;

    t->flow[r].key = reduced;
    if ((uint32_t)place[0] != PVS_PLACE_FREE)
        return;
    place[0] = hash >> 32 << 32 | (r + 1);
    memcpy(place + 1, reduced, s->mask.n * sizeof *place);
    s->seen[bit / 64] |= UINT64_C(1) << bit % 64;
    s->n++;
}

static size_t
cache_bytes(const struct pvs_flow_table *t)
{
    return 2 * sizeof(uint64_t) * t->cache_stride * (t->last_set + 1);
}

/* A cache for each worker, where a search would look at more than one place. -ENOMEM */
static int
caches_make(struct pvs_flow_table *t, uint32_t n_workers)
{
    if (t->n_subtables < 2)
        return 0;
    t->cache_stride = 1 + t->mask.n <= 8 ? 8 : 16; /* whole lines */
    t->last_set = CACHE_SETS - 1;
    size_t bytes = cache_bytes(t);
    for (; t->n_caches < n_workers; t->n_caches++) {
        void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return -ENOMEM;
        t->cache[t->n_caches] = memory;
        t->bytes += bytes;
    }
    return 0;
}

static int
fill(struct pvs_flow_table *t, const struct pvs_flow_conf *flows, const struct pvs_flow_action *actions,
     uint32_t n_actions, const uint64_t *order, uint32_t n_workers)
{
    uint64_t all[PVS_FLOW_WORDS] = { 0 };

    t->flow = calloc(t->n_flows + 1, sizeof *t->flow);
    t->action = malloc((n_actions + 1) * sizeof *t->action);
    if (order == NULL || t->flow == NULL || t->action == NULL)
        return -ENOMEM;
    if (n_actions != 0)
        memcpy(t->action, actions, n_actions * sizeof *actions);
    t->bytes = sizeof *t + t->n_flows * sizeof *t->flow + n_actions * sizeof *t->action;
    int rc = subtables_find(t, flows, order);
    if (rc == 0)
        rc = subtables_size(t);
    if (rc != 0)
        return rc;
    uint64_t *reduced = t->keys;
    for (uint32_t r = 0; r < t->n_flows; r++) {
        const struct pvs_flow_conf *conf = &flows[(uint32_t)order[r]];
        t->flow[r].action = t->action + conf->first;
        t->flow[r].n_actions = conf->n_actions;
        t->flow[r].counter = conf->counter;
        insert(t, r, conf->key, reduced);
        reduced += t->subtable[t->flow[r].subtable].mask.n;
        for (uint32_t w = 0; w < PVS_FLOW_WORDS; w++)
            all[w] |= conf->mask[w];
    }
    t->mask = mask_of(all);
    for (uint32_t i = 0; i < t->mask.n; i++)
        if (t->mask.word[i] >= PVS_WORD_L4)
            t->depth = PVS_DEPTH_L3;
    for (uint32_t i = 0; i < n_actions; i++) /* what they edit must be in the head as well */
        if (actions[i].kind >= PVS_ACT_SET_NW_SRC && actions[i].kind <= PVS_ACT_DEC_TTL)
            t->depth = PVS_DEPTH_L3;
    return caches_make(t, n_workers);
}

int
pvs_flow_table_make(uint32_t n_workers, const struct pvs_flow_conf *flows, uint32_t n_flows,
                    const struct pvs_flow_action *actions, uint32_t n_actions, uint64_t seed,
                    struct pvs_flow_table **out)
{
    int rc = check(flows, n_flows, actions, n_actions);

    if (rc != 0)
        return rc;
    struct pvs_flow_table *t = calloc(1, sizeof *t);
    uint64_t *order = rank(flows, n_flows);
    if (t != NULL) {
        t->n_flows = n_flows;
        t->seed = seed;
        rc = fill(t, flows, actions, n_actions, order, n_workers);
    }
    free(order);
    if (t == NULL || rc != 0) {
        pvs_flow_table_destroy(t);
        return rc != 0 ? rc : -ENOMEM;
    }
    *out = t;
    return 0;
}

void
pvs_flow_table_destroy(struct pvs_flow_table *t)
{
    if (t == NULL)
        return;
    for (uint32_t i = 0; i < t->n_subtables; i++) {
        free(t->subtable[i].place);
        free(t->subtable[i].seen);
    }
    for (uint32_t i = 0; i < t->n_caches; i++)
        munmap(t->cache[i], cache_bytes(t));
    free(t->subtable);
    free(t->flow);
    free(t->keys);
    free(t->action);
    free(t);
}

void
pvs_flow_table_info(const struct pvs_flow_table *t, struct pvs_flow_table_info *out)
{
    *out = (struct pvs_flow_table_info){ .flows = t->n_flows, .masks = t->n_subtables, .bytes = t->bytes };
}

uint32_t
pvs_flow_nearly(const struct pvs_flow_table *t, const uint64_t *key, uint32_t *counter, uint32_t *word, uint32_t max)
{
    uint32_t n = 0;

    for (uint32_t r = 0; r < t->n_flows && n < max; r++) {
        const struct pvs_flow_mask *mask = &t->subtable[t->flow[r].subtable].mask;
        uint32_t differ = 0, last = 0;
        for (uint32_t i = 0; i < mask->n && differ < 2; i++)
            if (((key[mask->word[i]] & mask->bits[i]) ^ t->flow[r].key[i]) != 0) {
                differ++;
                last = mask->word[i];
            }
        if (differ != 1)
            continue;
        counter[n] = t->flow[r].counter;
        word[n++] = last;
    }
    return n;
}
