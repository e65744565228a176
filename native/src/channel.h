/* SPDX-License-Identifier: Apache-2.0 */
/*
 * channel.h - the two single-producer, single-consumer rings between control and a worker.
 *
 * pvs_mail carries pointers (commands down, completions up); it is sized so that it can't be full: control never has
 * more commands under way than it has slots. pvs_spool carries records of bytes (events, punted frames) up; when it is
 * full the producer counts a loss and goes on: a slow reader never slows the data path.
 * Both: the producer publishes by a release store of `head`, the consumer hands space back by a release store of `tail`.
 */
#ifndef PVS_CHANNEL_H
#define PVS_CHANNEL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pvs_api.h"

struct pvs_mail {
    _Alignas(64) _Atomic uint32_t head;
    _Alignas(64) _Atomic uint32_t tail;
    void *slot[PVS_COMMANDS];
};

static inline void
pvs_mail_put(struct pvs_mail *mail, void *item)
{
    uint32_t head = atomic_load_explicit(&mail->head, memory_order_relaxed);
    mail->slot[head % PVS_COMMANDS] = item;
    atomic_store_explicit(&mail->head, head + 1, memory_order_release);
}

static inline void *
pvs_mail_take(struct pvs_mail *mail)
{
    uint32_t tail = atomic_load_explicit(&mail->tail, memory_order_relaxed);
    if (atomic_load_explicit(&mail->head, memory_order_acquire) == tail)
        return NULL;
    void *item = mail->slot[tail % PVS_COMMANDS];
    atomic_store_explicit(&mail->tail, tail + 1, memory_order_release);
    return item;
}

static inline bool
pvs_mail_waiting(struct pvs_mail *mail)
{
    return atomic_load_explicit(&mail->head, memory_order_acquire) !=
           atomic_load_explicit(&mail->tail, memory_order_relaxed);
}

struct pvs_spool {
    _Alignas(64) _Atomic uint32_t head; /* free-running byte counts */
    _Alignas(64) _Atomic uint32_t tail;
    uint32_t size; /* a power of two */
    uint8_t *data;
};

int pvs_spool_init(struct pvs_spool *spool, uint32_t size);
void pvs_spool_fini(struct pvs_spool *spool);

/* Producer: room for a contiguous record of `len` bytes, or NULL; it is visible after pvs_spool_commit. */
uint8_t *pvs_spool_reserve(struct pvs_spool *spool, uint32_t len);
void pvs_spool_commit(struct pvs_spool *spool, uint32_t len);
/* Consumer: the oldest record and its length, or NULL; it stays until pvs_spool_drop. */
const uint8_t *pvs_spool_peek(struct pvs_spool *spool, uint32_t *len);
void pvs_spool_drop(struct pvs_spool *spool, uint32_t len);

#endif
