/* SPDX-License-Identifier: Apache-2.0 */
/*
 * switch.h - what the control thread owns: the workers, the port indices, the commands under way.
 *
 * Shared by the files that implement pvs_api.h (switch.c, ports.c); nobody else may include it.
 */
#ifndef PVS_SWITCH_H
#define PVS_SWITCH_H

#include "worker.h"

struct pvs_switch {
    struct pvs_switch_conf conf;
    int wake_fd;
    _Atomic bool wake_pending;
    bool running;
    uint64_t next_seq;
    uint32_t in_flight;        /* commands that were not reaped yet */
    uint32_t publishing;       /* of these, publications: workers may still use older tables */
    struct pvs_tables *tables; /* as last published */
    struct pvs_port *port[PVS_MAX_PORTS];
    uint16_t generation[PVS_MAX_PORTS];
    struct pvs_worker *worker[PVS_MAX_WORKERS];
    uint32_t rings_on[PVS_MAX_WORKERS]; /* started rings of each worker */
};

/* A command with `extra` bytes behind it, or NULL with -ENOMEM or -EAGAIN (too many under way) in *error. */
struct pvs_command *pvs_command_new(struct pvs_switch *sw, enum pvs_op op, uint32_t extra, int *error);
/* Hand it to every worker; returns its sequence number. */
int64_t pvs_command_submit(struct pvs_switch *sw, struct pvs_command *command);

/* A command on a ring has come back: record what has become true. */
void pvs_ring_command_finish(struct pvs_ring *ring, enum pvs_op op, int64_t result);

#endif
