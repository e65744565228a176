/* SPDX-License-Identifier: Apache-2.0 */
/*
 * steer.h - by which of a guest's queue pairs a frame is delivered (virtio 1.2, 5.1.6.5.5: automatic receive steering).
 *
 * How it works: a flow hash that is the same in both directions. When a guest with several pairs sends, its port notes
 * by which pair that flow came; frames of the flow to the guest use the same pair while it can receive. Flows that the
 * guest has not sent spread over the pairs that can receive. Two flows may share a place in the note: the later one
 * wins, which costs the earlier one its affinity and nothing else.
 *
 * Any worker, no lock: a place is one atomic byte.
 */
#ifndef PVS_STEER_H
#define PVS_STEER_H

#include <stdatomic.h>

#include "parse.h"

enum { PVS_STEER_PLACES = 256 };

struct pvs_steering {
    _Atomic uint8_t pair[PVS_STEER_PLACES]; /* by flow hash: the pair plus 1; 0 = not seen */
};

/* Of addresses, protocol and ports (not those of fragments), the same for a flow's two directions; else of the MACs. */
uint32_t pvs_flow_hash(const struct pvs_frame *frame);

/* The guest sent this frame by its queue pair frame->pair. */
void pvs_steer_note(struct pvs_steering *steering, const struct pvs_frame *frame);

/* The pair to deliver by, one of those set in `up`, which has at least one. */
uint32_t pvs_steer_choose(const struct pvs_steering *steering, const struct pvs_frame *frame, uint32_t up);

#endif
