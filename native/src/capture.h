/* SPDX-License-Identifier: Apache-2.0 */
/*
 * capture.h - frames that pass by ports, copied to who reads them.
 *
 * How it works: a capture has a slot in the switch, whose bit ports name in the tables, a filter, and for each worker a spool (channel.h)
 * of records: struct pvs_captured and the first bytes of the frame. What finds no room in it is counted, and the next record that does
 * says how many those were.
 *
 * Who may call: a worker puts into its own spool; control makes, reads and removes a capture. It is removed when no worker has tables
 * any more that name it.
 */
#ifndef PVS_CAPTURE_H
#define PVS_CAPTURE_H

#include "bpf.h"
#include "channel.h"

enum { PVS_CAPTURE_MIN = 64 * 1024, PVS_CAPTURE_MAX = 16 * 1024 * 1024 };

struct pvs_capture {
    struct pvs_capture **place; /* its slot, which is empty when it is gone */
    uint32_t slot, snaplen, n_workers;
    struct pvs_filter *filter; /* NULL: every frame */
    struct {
        struct pvs_spool spool;
        _Atomic uint64_t lost; /* its worker's; read by all */
        uint32_t lost_before;  /* likewise: since the last one that found room */
    } of[PVS_MAX_WORKERS];
};

/* Put a frame in, if it passes the filter; its lengths, and what was lost, are filled in. Nobody is woken:
 * a reader looks from time to time, and a system call for each burst would cost the traffic more than the copies. */
void pvs_capture_put(struct pvs_capture *capture, uint32_t worker, const struct pvs_frame *frame,
                     struct pvs_captured *captured);

#endif
