/* SPDX-License-Identifier: Apache-2.0 */
/* recorder.c - see recorder.h. */
#include "recorder.h"

#include <errno.h>
#include <stdlib.h>

/* In the place of a number: this record is being written. */
#define BUSY UINT64_MAX

int
pvs_recorder_init(struct pvs_recorder *recorder)
{
    for (uint32_t i = 0; i < PVS_RECORD_RINGS; i++) {
        recorder->ring[i].slot = calloc(PVS_RECORDS, sizeof *recorder->ring[i].slot);
        if (recorder->ring[i].slot == NULL)
            return -ENOMEM;
    }
    pvs_recorder_choose(recorder, PVS_SAMPLE_EVERY, NULL);
    return 0;
}

void
pvs_recorder_fini(struct pvs_recorder *recorder)
{
    for (uint32_t i = 0; i < PVS_RECORD_RINGS; i++)
        free(recorder->ring[i].slot);
}

/* ---- samples ---- */

void
pvs_recorder_choose(struct pvs_recorder *recorder, uint32_t every, const struct pvs_filter *filter)
{
    recorder->filter = every != 0 ? filter : NULL; /* without samples nobody need look at each frame */
    recorder->every = recorder->left = every != 0 ? every : UINT64_MAX;
}

bool
pvs_recorder_wants(struct pvs_recorder *recorder, const struct pvs_frame *frame)
{
    if (!pvs_filter_passes(recorder->filter, frame) || --recorder->left != 0)
        return false;
    recorder->left = recorder->every;
    return true;
}

/* ---- a ring ---- */

void
pvs_record_put(struct pvs_record_ring *ring, struct pvs_record *record)
{
    uint64_t number = atomic_load_explicit(&ring->next, memory_order_relaxed), word[PVS_RECORD_WORDS];
    struct pvs_record_slot *slot = &ring->slot[number % PVS_RECORDS];

    record->number = number;
    memcpy(word, record, sizeof word);
    atomic_store_explicit(&slot->word[0], BUSY, memory_order_relaxed);
    /* release fence: who sees one of the words below, and fences, sees that the record is busy, or a later number */
    atomic_thread_fence(memory_order_release);
    for (uint32_t i = 1; i < PVS_RECORD_WORDS; i++)
        atomic_store_explicit(&slot->word[i], word[i], memory_order_relaxed);
    /* release: who sees the number sees the words of its record */
    atomic_store_explicit(&slot->word[0], number, memory_order_release);
    /* release: who sees that there is one more sees it */
    atomic_store_explicit(&ring->next, number + 1, memory_order_release);
}

/* False: it is being written over, or has been. */
static bool
read_one(const struct pvs_record_slot *slot, uint64_t number, struct pvs_record *out)
{
    uint64_t word[PVS_RECORD_WORDS] = { number };

    /* acquire: the words are at least as new as their number */
    if (atomic_load_explicit(&slot->word[0], memory_order_acquire) != number)
        return false;
    for (uint32_t i = 1; i < PVS_RECORD_WORDS; i++)
        word[i] = atomic_load_explicit(&slot->word[i], memory_order_relaxed);
    /* acquire fence: pairs with the writer's; if any of them was newer, so is the number now */
    atomic_thread_fence(memory_order_acquire);
    if (atomic_load_explicit(&slot->word[0], memory_order_relaxed) != number)
        return false;
    memcpy(out, word, sizeof word);
    return true;
}

uint32_t
pvs_record_ring_read(const struct pvs_record_ring *ring, uint64_t number, struct pvs_record *out, uint32_t max)
{
    /* acquire: the records before this one have been written */
    uint64_t end = atomic_load_explicit(&ring->next, memory_order_acquire);
    uint32_t n = 0;

    if (end > PVS_RECORDS && number < end - PVS_RECORDS)
        number = end - PVS_RECORDS;
    for (; number < end && n < max; number++)
        n += read_one(&ring->slot[number % PVS_RECORDS], number, &out[n]);
    return n;
}
