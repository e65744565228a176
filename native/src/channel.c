/* SPDX-License-Identifier: Apache-2.0 */
/* channel.c - the spool of channel.h. A record is a 4-byte length and its bytes, padded to 8; SKIP fills up to the end. */
#include "channel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SKIP UINT32_MAX

static uint32_t
padded(uint32_t len)
{
    return (uint32_t)((len + sizeof(uint32_t) + 7) & ~7U);
}

static void
length_put(struct pvs_spool *spool, uint32_t at, uint32_t len)
{
    memcpy(spool->data + (at & (spool->size - 1)), &len, sizeof len);
}

static uint32_t
length_get(const struct pvs_spool *spool, uint32_t at)
{
    uint32_t len;
    memcpy(&len, spool->data + (at & (spool->size - 1)), sizeof len);
    return len;
}

int
pvs_spool_init(struct pvs_spool *spool, uint32_t size)
{
    atomic_init(&spool->head, 0);
    atomic_init(&spool->tail, 0);
    spool->size = size;
    spool->data = malloc(size);
    return spool->data != NULL ? 0 : -ENOMEM;
}

void
pvs_spool_fini(struct pvs_spool *spool)
{
    free(spool->data);
    spool->data = NULL;
}

uint8_t *
pvs_spool_reserve(struct pvs_spool *spool, uint32_t len)
{
    uint32_t head = atomic_load_explicit(&spool->head, memory_order_relaxed);
    /* acquire: the consumer has finished reading what it handed back */
    uint32_t free = spool->size - (head - atomic_load_explicit(&spool->tail, memory_order_acquire));
    uint32_t to_end = spool->size - (head & (spool->size - 1));
    uint32_t want = padded(len);

    if (want > to_end) { /* a record doesn't wrap: skip to the beginning */
        if (to_end + want > free)
            return NULL;
        length_put(spool, head, SKIP);
        head += to_end;
        atomic_store_explicit(&spool->head, head, memory_order_release);
    } else if (want > free) {
        return NULL;
    }
    return spool->data + (head & (spool->size - 1)) + sizeof(uint32_t);
}

void
pvs_spool_commit(struct pvs_spool *spool, uint32_t len)
{
    uint32_t head = atomic_load_explicit(&spool->head, memory_order_relaxed);
    length_put(spool, head, len);
    atomic_store_explicit(&spool->head, head + padded(len), memory_order_release);
}

const uint8_t *
pvs_spool_peek(struct pvs_spool *spool, uint32_t *len)
{
    for (;;) {
        uint32_t tail = atomic_load_explicit(&spool->tail, memory_order_relaxed);
        if (atomic_load_explicit(&spool->head, memory_order_acquire) == tail)
            return NULL;
        *len = length_get(spool, tail);
        if (*len != SKIP)
            return spool->data + (tail & (spool->size - 1)) + sizeof(uint32_t);
        uint32_t to_end = spool->size - (tail & (spool->size - 1));
        atomic_store_explicit(&spool->tail, tail + to_end, memory_order_release);
    }
}

void
pvs_spool_drop(struct pvs_spool *spool, uint32_t len)
{
    uint32_t tail = atomic_load_explicit(&spool->tail, memory_order_relaxed);
    atomic_store_explicit(&spool->tail, tail + padded(len), memory_order_release);
}
