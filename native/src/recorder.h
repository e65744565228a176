/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recorder.h - the flight recorder: a worker's last drops and sampled frames, which anybody may look at while it goes on.
 *
 * How it works: two rings of PVS_RECORDS records each, allocated with the worker. The worker writes over the oldest record and waits
 * for nobody. The first word of a record is its number, or BUSY while the rest is written; who reads looks at it before and after, and
 * leaves out what has changed meanwhile. All words are atomic, so that a torn record is found out and is no data race.
 * Which frames are samples is counted down: the `left`th from now on, of those that pass the filter, is the next one.
 *
 * Who may call: the worker that owns it; pvs_record_ring_read any thread.
 */
#ifndef PVS_RECORDER_H
#define PVS_RECORDER_H

#include <stdatomic.h>

#include "bpf.h"

enum { PVS_RECORD_WORDS = sizeof(struct pvs_record) / sizeof(uint64_t), PVS_RECORD_RINGS = 2 };
/* One frame of so many is recorded until something else is asked for. */
enum { PVS_SAMPLE_EVERY = 4096 };

_Static_assert(sizeof(struct pvs_record) == 128, "two cache lines");

struct pvs_record_slot {
    _Atomic uint64_t word[PVS_RECORD_WORDS];
};

struct pvs_record_ring {
    _Atomic uint64_t next; /* the number of the next record */
    struct pvs_record_slot *slot;
};

struct pvs_recorder {
    struct pvs_record_ring ring[PVS_RECORD_RINGS]; /* PVS_RECORD_DROPS, PVS_RECORD_FRAMES */
    const struct pvs_filter *filter;               /* NULL: any frame may be a sample */
    uint64_t every, left;
};

/* -ENOMEM */
int pvs_recorder_init(struct pvs_recorder *recorder);
void pvs_recorder_fini(struct pvs_recorder *recorder);
/* From now on one of `every` (0: none) of the frames that pass the filter is a sample. */
void pvs_recorder_choose(struct pvs_recorder *recorder, uint32_t every, const struct pvs_filter *filter);
/* Is this frame one? It counts as the next. */
bool pvs_recorder_wants(struct pvs_recorder *recorder, const struct pvs_frame *frame);

/* Write a record in the place of the oldest; its number is given to it. */
void pvs_record_put(struct pvs_record_ring *ring, struct pvs_record *record);
/* Copy records, oldest first, from `number` on: how many. */
uint32_t pvs_record_ring_read(const struct pvs_record_ring *ring, uint64_t number, struct pvs_record *out,
                              uint32_t max);

#endif
