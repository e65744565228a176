/* SPDX-License-Identifier: Apache-2.0 */
/*
 * effects.h - what a verdict changes besides the frames that are sent: addresses are learned, limits charged, flows and drops counted.
 *
 * Called by forward.c, once for each frame that doesn't have to wait: what has waited was not counted before.
 */
#ifndef PVS_EFFECTS_H
#define PVS_EFFECTS_H

#include "worker.h"

/* Learn the sender's address, or that it was seen. */
void pvs_learn(struct pvs_worker *w, const struct pvs_frame *frame, const struct pvs_verdict *v);
/* Charge the limits of the port it came by. */
void pvs_charge(struct pvs_worker *w, const struct pvs_frame *frame, const struct pvs_verdict *v);
/* Flows were asked: count a frame for its own, and charge the meters that have let it pass; one may have refused it. */
void pvs_count_flow(struct pvs_worker *w, const struct pvs_frame *frame, const struct pvs_verdict *v);
/* A copy goes nowhere. If it is too big for the tunnel that its receiver is behind, its sender may learn of that. */
void pvs_drop_copy(struct pvs_worker *w, const struct pvs_frame *frame, const struct pvs_egress *egress);

#endif
