/* SPDX-License-Identifier: Apache-2.0 */
/* fdb_control.c - see fdb.h for how it works: what control does with it, a bounded number of entries for each holding of the lock. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "fdb_entry.h"
#include "parse.h"

#define NS_PER_S 1000000000ULL

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
        atomic_init(&fdb->bucket[i].head, PVS_FDB_NIL);
    for (uint32_t i = 0; i < limit; i++)
        atomic_init(&fdb->entry[i].next, i + 1 < limit ? i + 1 : PVS_FDB_NIL);
    for (uint32_t p = 0; p < PVS_MAX_PORTS; p++)
        fdb->list[p] = (struct pvs_fdb_list){ PVS_FDB_NIL, PVS_FDB_NIL };
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
    uint64_t key = pvs_fdb_key_of(pvs_mac_load(mac), vid);

    pvs_fdb_lock(fdb);
    struct pvs_fdb_found f = pvs_fdb_find_key(fdb, key);
    if (f.index != PVS_FDB_NIL)
        pvs_fdb_entry_remove(fdb, f.index);
    bool done = pvs_fdb_entry_insert(fdb, key | PVS_FDB_STATIC, PVS_FDB_AT(port_ref, vtep), 0);
    pvs_fdb_unlock(fdb);
    return done ? 0 : -ENOSPC;
}

int
pvs_fdb_remove(struct pvs_fdb *fdb, const uint8_t *mac, uint16_t vid)
{
    pvs_fdb_lock(fdb);
    struct pvs_fdb_found f = pvs_fdb_find_key(fdb, pvs_fdb_key_of(pvs_mac_load(mac), vid));
    if (f.index != PVS_FDB_NIL)
        pvs_fdb_entry_remove(fdb, f.index);
    pvs_fdb_unlock(fdb);
    return f.index != PVS_FDB_NIL ? 0 : -ENOENT;
}

static bool
filter_matches(const struct pvs_fdb *fdb, const struct pvs_fdb_filter *filter, const struct pvs_fdb_entry *e)
{
    uint64_t key = atomic_load_explicit(&e->key, memory_order_relaxed);
    if (key == 0 || (key & PVS_FDB_STATIC))
        return false;
    if (filter->by_port && pvs_fdb_port_of(e) != filter->port_ref)
        return false;
    if (filter->by_sticky && pvs_fdb_is_sticky(fdb, pvs_fdb_port_of(e)) != filter->sticky)
        return false;
    if (filter->by_vtep && pvs_fdb_where(e) >> 32 != filter->vtep)
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
        pvs_fdb_lock(fdb);
        for (uint32_t i = from; i < fdb->limit && i < from + SLICE; i++) {
            if (filter_matches(fdb, filter, &fdb->entry[i])) {
                pvs_fdb_entry_remove(fdb, i);
                removed++;
            }
        }
        pvs_fdb_unlock(fdb);
    }
    return removed;
}

/* An entry as it is told to control; under the lock. */
static struct pvs_fdb_item
item_of(const struct pvs_fdb *fdb, const struct pvs_fdb_entry *e, uint32_t now_s)
{
    uint64_t key = atomic_load_explicit(&e->key, memory_order_relaxed);
    uint32_t stamp = atomic_load_explicit(&e->stamp, memory_order_relaxed);
    bool fixed = (key & PVS_FDB_STATIC) != 0;
    struct pvs_fdb_item item = { .vid = (uint16_t)(key >> 48 & 0xfff), .is_static = fixed };

    item.port_ref = pvs_fdb_port_of(e);
    item.vtep = (uint16_t)(pvs_fdb_where(e) >> 32);
    item.is_sticky = !fixed && pvs_fdb_is_sticky(fdb, item.port_ref);
    item.age_s = fixed || (int32_t)(now_s - stamp) < 0 ? 0 : now_s - stamp;
    pvs_mac_store(item.mac, key & PVS_MAC_BROADCAST);
    return item;
}

int
pvs_fdb_lookup(struct pvs_fdb *fdb, const uint8_t *mac, uint16_t vid, uint64_t now_ns, struct pvs_fdb_item *out)
{
    uint32_t now_s = (uint32_t)(now_ns / NS_PER_S);

    pvs_fdb_lock(fdb);
    struct pvs_fdb_found f = pvs_fdb_find_key(fdb, pvs_fdb_key_of(pvs_mac_load(mac), vid));
    bool known = f.index != PVS_FDB_NIL && (f.is_static || !pvs_fdb_entry_too_old(fdb, &fdb->entry[f.index], now_s));
    if (known)
        *out = item_of(fdb, &fdb->entry[f.index], now_s);
    pvs_fdb_unlock(fdb);
    return known ? 0 : -ENOENT;
}

int
pvs_fdb_sweep(struct pvs_fdb *fdb, uint64_t now_ns, uint32_t *cursor, uint32_t budget, struct pvs_fdb_item *out,
              uint32_t max)
{
    uint32_t now_s = (uint32_t)(now_ns / NS_PER_S), removed = 0;
    for (uint32_t looked = 0; looked < budget && *cursor < fdb->limit; looked += SLICE) {
        pvs_fdb_lock(fdb);
        for (uint32_t k = 0; k < SLICE && *cursor < fdb->limit; k++, ++*cursor) {
            struct pvs_fdb_entry *e = &fdb->entry[*cursor];
            if (atomic_load_explicit(&e->key, memory_order_relaxed) != 0 && !pvs_fdb_is_static(e) &&
                pvs_fdb_entry_too_old(fdb, e, now_s)) {
                if (removed++ < max)
                    out[removed - 1] = item_of(fdb, e, now_s);
                pvs_fdb_entry_remove(fdb, *cursor);
            }
        }
        pvs_fdb_unlock(fdb);
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
        pvs_fdb_lock(fdb);
        for (uint32_t k = 0; k < SLICE && n < max && *cursor < fdb->limit; k++, ++*cursor) {
            struct pvs_fdb_entry *e = &fdb->entry[*cursor];
            if (atomic_load_explicit(&e->key, memory_order_relaxed) != 0 &&
                (pvs_fdb_is_static(e) || !pvs_fdb_entry_too_old(fdb, e, now_s)))
                out[n++] = item_of(fdb, e, now_s);
        }
        pvs_fdb_unlock(fdb);
    }
    if (*cursor >= fdb->limit)
        *cursor = 0;
    return (int)n;
}

void
pvs_fdb_copy(struct pvs_fdb *to, struct pvs_fdb *from)
{
    /* static entries first: they must fit, dynamic ones may */
    pvs_fdb_lock(to);
    for (uint32_t at = 0; at < 2 * from->limit; at++) {
        struct pvs_fdb_entry *e = &from->entry[at % from->limit];
        uint64_t wanted = at < from->limit ? PVS_FDB_STATIC : 0;
        if (at % SLICE == 0)
            pvs_fdb_lock(from);
        uint64_t key = atomic_load_explicit(&e->key, memory_order_relaxed);
        if (key != 0 && (key & PVS_FDB_STATIC) == wanted && to->free != PVS_FDB_NIL &&
            pvs_fdb_find_key(to, key & ~PVS_FDB_STATIC).index == PVS_FDB_NIL)
            pvs_fdb_entry_insert(to, key, pvs_fdb_where(e), atomic_load_explicit(&e->stamp, memory_order_relaxed));
        if (at % SLICE == SLICE - 1 || at + 1 == 2 * from->limit)
            pvs_fdb_unlock(from);
    }
    pvs_fdb_unlock(to);
}

void
pvs_fdb_set_sticky(struct pvs_fdb *fdb, uint32_t port, uint32_t port_ref)
{
    atomic_store_explicit(&fdb->sticky[port], port_ref, memory_order_relaxed);
}
