/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flow_action.h - what a flow's actions do to a frame's headers.
 *
 * How it works: pvs_decide carries a flow's actions out one by one. Those that send the frame somewhere are its own; those that edit it
 * are here: they change the private head of a *variant* of the frame (decide.h). Checksums are kept right by what has changed
 * (RFC 1624), so that the payload need not be read: those that are still to be filled in by a receiver, which hold the sum of the
 * pseudo header, as well as finished ones. A checksum that was wrong stays as wrong as it was. SCTP's CRC is linear: it changes by
 * the CRC of what has changed, wherever that stands (RFC 9260, appendix A).
 * An edit of a header that isn't there does nothing, as in Open vSwitch.
 *
 * Called by pvs_decide; and by control, which lets in lists of actions that can be carried out.
 */
#ifndef PVS_FLOW_ACTION_H
#define PVS_FLOW_ACTION_H

#include "counters.h"
#include "flow_key.h"
#include "pvs_api.h"

/* Actions that flood, or may, in one flow; and tags that it may push. */
enum { PVS_MAX_FLOODS = 4, PVS_MAX_PUSHES = 2 };

/* Within all bounds (pvs_flow_table_create), so that nothing of a verdict overflows? */
bool pvs_flow_actions_are_valid(const struct pvs_flow_action *action, uint32_t n);

/* Does it change the frame for the actions behind it? */
static inline bool
pvs_flow_action_edits(const struct pvs_flow_action *action)
{
    return action->kind >= PVS_ACT_PUSH_VLAN && action->kind <= PVS_ACT_DEC_TTL;
}

/* Edit a frame; not none: it can't be, and goes no further. `*done`: something has changed. */
enum pvs_drop pvs_flow_edit(struct pvs_frame *frame, const struct pvs_flow_action *action, bool *done);

#endif
