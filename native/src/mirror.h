/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mirror.h - which frames are sent once more, to somebody who watches.
 *
 * How it works: a bridge has up to PVS_MAX_MIRRORS mirrors. Each port has two sets of them: those that want what comes in by it, and
 * those that want what goes out by it. Once a frame's copies are decided on, the sets of the ports it touches are put together, so that each
 * mirror gets a frame once, however many of its ports it touches. A mirror's copies stand behind the others in the verdict: what has to
 * wait for its receiver is not mirrored twice.
 *
 * A mirror sends to a port, as that port's VLAN mode says; the port then takes no other frames and gives none (it is no
 * member of its bridge). Or it sends into a VLAN: the frame's outermost tag names that VLAN then, and whoever is a member gets it
 * (the switches behind a trunk, too); frames that are in it already, and those that are for a bridge itself (IEEE 802.1Q, 8.6.3),
 * are left out, as they would go in circles.
 *
 * Pure functions; called by pvs_decide, and by control when it builds the tables.
 */
#ifndef PVS_MIRROR_H
#define PVS_MIRROR_H

#include "frame.h"
#include "pvs_api.h"
#include "vlan.h"

struct pvs_tables;
struct pvs_verdict;

struct pvs_mirror {
    uint32_t out_ref;            /* the port it sends to; 0: into a VLAN, */
    uint16_t vid;                /* this one */
    bool drops;                  /* frames that are dropped, as well */
    uint16_t snaplen;            /* bytes that are kept; 0 = all */
    uint64_t set[PVS_VIDS / 64]; /* VLANs whose frames it wants */
};

/* A verdict has been reached: add the copies of the mirrors to it. Its VLAN is known, unless it was dropped before that. */
void pvs_mirror(const struct pvs_frame *frame, const struct pvs_tables *tables, struct pvs_verdict *verdict);

#endif
