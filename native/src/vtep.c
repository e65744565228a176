/* SPDX-License-Identifier: Apache-2.0 */
/* vtep.c - see vtep.h for how it works and who may call it. */
#include "vtep.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum { BUCKETS = PVS_MAX_VTEPS, LEARNED_MAX = PVS_MAX_VTEPS * 3 / 4 };
#define NEVER UINT32_MAX

enum state { FREE, LINKED, UNLINKED };

struct vtep {
    uint8_t address[PVS_ADDRESS];
    _Atomic uint32_t seen_s;
    _Atomic uint16_t next; /* in its bucket, or in the free list */
    _Atomic uint8_t state; /* enum state; changed under the lock */
    bool learned;          /* under the lock */
};

struct pvs_vteps {
    atomic_flag lock;
    uint64_t seed;
    uint32_t n_learned;
    uint32_t fresh; /* numbers from this one on were never used */
    /* those that were, in a list: who was freed last comes last, so that a number stands for nobody as long as can be */
    uint16_t free, free_last;
    _Atomic uint16_t bucket[BUCKETS];
    struct vtep vtep[PVS_MAX_VTEPS];
};

int
pvs_vteps_create(uint64_t seed, struct pvs_vteps **out)
{
    struct pvs_vteps *v = calloc(1, sizeof *v);

    if (v == NULL)
        return -ENOMEM;
    v->seed = seed;
    v->fresh = 1; /* 0 is none */
    atomic_flag_clear(&v->lock);
    *out = v;
    return 0;
}

void
pvs_vteps_destroy(struct pvs_vteps *v)
{
    free(v);
}

static bool
lock_try(struct pvs_vteps *v)
{
    return !atomic_flag_test_and_set_explicit(&v->lock, memory_order_acquire);
}

static void
lock_wait(struct pvs_vteps *v)
{
    while (!lock_try(v))
        sched_yield(); /* control only; a worker holds it for the time of one insertion */
}

static void
unlock(struct pvs_vteps *v)
{
    atomic_flag_clear_explicit(&v->lock, memory_order_release);
}

/* All bits of it in each bit: neighbours differ only in the last bytes of an address, which are the highest bits here. */
static uint64_t
mix(uint64_t h)
{
    h = (h ^ h >> 32) * 0x9e3779b97f4a7c15ULL;
    h = (h ^ h >> 29) * 0xd6e8feb86659fd93ULL;
    return h ^ h >> 32;
}

static _Atomic uint16_t *
bucket_of(struct pvs_vteps *v, const uint8_t *address)
{
    uint64_t high, low;

    memcpy(&high, address, sizeof high);
    memcpy(&low, address + sizeof high, sizeof low);
    return &v->bucket[mix(mix(high ^ v->seed) ^ low) % BUCKETS];
}

static uint16_t
find(struct pvs_vteps *v, const uint8_t *address)
{
    /* acquire, here and below: what a number leads to is complete */
    uint16_t i = atomic_load_explicit(bucket_of(v, address), memory_order_acquire);

    while (i != 0 && memcmp(v->vtep[i].address, address, PVS_ADDRESS) != 0)
        i = atomic_load_explicit(&v->vtep[i].next, memory_order_acquire);
    return i;
}

/* The lock is held, and the address isn't there. 0: no room. */
static uint16_t
insert(struct pvs_vteps *v, const uint8_t *address, bool learned, uint32_t seen_s)
{
    _Atomic uint16_t *head = bucket_of(v, address);
    uint16_t i = v->free;

    if (learned && v->n_learned == LEARNED_MAX)
        return 0;
    if (v->fresh < PVS_MAX_VTEPS)
        i = (uint16_t)v->fresh++;
    else if (i != 0)
        v->free = atomic_load_explicit(&v->vtep[i].next, memory_order_relaxed);
    else
        return 0;
    struct vtep *e = &v->vtep[i];
    memcpy(e->address, address, PVS_ADDRESS);
    atomic_store_explicit(&e->state, LINKED, memory_order_relaxed);
    e->learned = learned;
    v->n_learned += learned;
    atomic_store_explicit(&e->seen_s, seen_s, memory_order_relaxed);
    atomic_store_explicit(&e->next, atomic_load_explicit(head, memory_order_relaxed), memory_order_relaxed);
    atomic_store_explicit(head, i, memory_order_release); /* see find */
    return i;
}

uint16_t
pvs_vtep_seen(struct pvs_vteps *v, const uint8_t *address, uint32_t now_s)
{
    uint16_t i = find(v, address);

    if (i != 0 && atomic_load_explicit(&v->vtep[i].seen_s, memory_order_relaxed) != now_s)
        atomic_store_explicit(&v->vtep[i].seen_s, now_s, memory_order_relaxed);
    return i;
}

uint16_t
pvs_vtep_learn(struct pvs_vteps *v, const uint8_t *address, uint32_t now_s)
{
    if (!lock_try(v))
        return 0;
    uint16_t i = find(v, address); /* another worker may have been faster: then it isn't news */
    i = i == 0 ? insert(v, address, true, now_s) : 0;
    unlock(v);
    return i;
}

const uint8_t *
pvs_vtep_address(const struct pvs_vteps *v, uint16_t number)
{
    return v->vtep[number].address;
}

/* relaxed: whoever asks has been told of the change by a command */
bool
pvs_vtep_is_linked(const struct pvs_vteps *v, uint16_t number)
{
    return atomic_load_explicit(&v->vtep[number].state, memory_order_relaxed) == LINKED;
}

/* ---- control ---- */

int
pvs_vteps_add(struct pvs_vteps *v, const uint8_t *address, uint32_t *number)
{
    lock_wait(v);
    uint16_t i = find(v, address);
    if (i == 0) {
        i = insert(v, address, false, NEVER);
    } else if (v->vtep[i].learned) {
        v->vtep[i].learned = false;
        v->n_learned--;
    }
    unlock(v);
    *number = i;
    return i != 0 ? 0 : -ENOSPC;
}

static bool
in_state(const struct pvs_vteps *v, uint32_t number, enum state state)
{
    return number != 0 && number < v->fresh &&
           atomic_load_explicit(&v->vtep[number].state, memory_order_relaxed) == state;
}

int
pvs_vteps_info(const struct pvs_vteps *v, uint32_t number, uint32_t now_s, struct pvs_vtep_info *out)
{
    struct pvs_vteps *locked = (struct pvs_vteps *)(uintptr_t)v;

    lock_wait(locked);
    bool known = in_state(v, number, LINKED);
    if (known) {
        const struct vtep *e = &v->vtep[number];
        uint32_t seen = atomic_load_explicit(&e->seen_s, memory_order_relaxed);
        memcpy(out->address, e->address, PVS_ADDRESS);
        out->learned = e->learned;
        /* signed: a worker's clock may have been looked at after ours */
        out->age_s = seen == NEVER ? UINT32_MAX : (int32_t)(now_s - seen) < 0 ? 0 : now_s - seen;
    }
    unlock(locked);
    return known ? 0 : -ENOENT;
}

int
pvs_vteps_unlink(struct pvs_vteps *v, uint32_t number)
{
    lock_wait(v);
    bool known = in_state(v, number, LINKED);
    if (known) {
        struct vtep *e = &v->vtep[number];
        _Atomic uint16_t *link = bucket_of(v, e->address);
        while (atomic_load_explicit(link, memory_order_relaxed) != number)
            link = &v->vtep[atomic_load_explicit(link, memory_order_relaxed)].next;
        /* release: who comes by here finds what follows complete. Its own `next` stays, for who is at it now */
        atomic_store_explicit(link, atomic_load_explicit(&e->next, memory_order_relaxed), memory_order_release);
        atomic_store_explicit(&e->state, UNLINKED, memory_order_relaxed);
        v->n_learned -= e->learned;
    }
    unlock(v);
    return known ? 0 : -ENOENT;
}

int
pvs_vteps_free(struct pvs_vteps *v, uint32_t number)
{
    lock_wait(v);
    bool known = in_state(v, number, UNLINKED);
    if (known) {
        atomic_store_explicit(&v->vtep[number].state, FREE, memory_order_relaxed);
        atomic_store_explicit(&v->vtep[number].next, 0, memory_order_relaxed);
        if (v->free == 0)
            v->free = (uint16_t)number;
        else
            atomic_store_explicit(&v->vtep[v->free_last].next, (uint16_t)number, memory_order_relaxed);
        v->free_last = (uint16_t)number;
    }
    unlock(v);
    return known ? 0 : -ENOENT;
}
