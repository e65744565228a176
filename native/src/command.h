/* SPDX-License-Identifier: Apache-2.0 */
/*
 * command.h - what control asks of the workers, and how it learns that it is done.
 *
 * How it works: a command is handed to EVERY worker. Each carries out its part between two bursts (most have one only at
 * the worker that has the queue) and counts itself off; the last one sends the command back. So a finished command also
 * says that every worker has crossed a burst boundary since: the grace period of what it replaced has passed.
 * Who hands over a command then fences and looks at `sleeping`; who goes to sleep sets it, fences and looks at its mail.
 */
#ifndef PVS_COMMAND_H
#define PVS_COMMAND_H

#include "decide.h"
#include "port_vhost.h"

enum pvs_op {
    PVS_OP_PUBLISH,
    PVS_OP_SYNC,
    PVS_OP_REMOTES,
    PVS_OP_INJECT,
    PVS_OP_TRACE,
    PVS_OP_RECORDER,
    PVS_OP_RING_START, /* from here on: about a queue */
    PVS_OP_RING_STOP,
    PVS_OP_RING_ENABLE,
    PVS_OP_RING_CALL,
    PVS_OP_UPLINK_START,
    PVS_OP_UPLINK_STOP,
    PVS_OP_RELEASE, /* the two halves of a move */
    PVS_OP_ADOPT
};

/* No worker's index. */
enum { PVS_NOBODY = PVS_MAX_WORKERS };

struct pvs_command {
    enum pvs_op op;
    uint64_t seq;
    _Atomic uint32_t remaining; /* workers that have not yet carried it out */
    int64_t result;
    union {
        struct {
            struct pvs_tables *tables; /* to publish; after completion: to free */
            struct pvs_tables *old;
            uint64_t number;
        } publish;
        struct pvs_remotes *remotes; /* to free after completion */
        struct {
            struct pvs_queue *queue;
            uint32_t worker; /* whose part it is; the others only cross a burst boundary */
        };
        struct {
            uint32_t every;
            struct pvs_filter *filter, *old; /* from now on; to free after completion */
        } recorder;
        struct {
            uint32_t port_ref, direction, len;
        } inject;
        struct {
            uint32_t port_ref;
            struct pvs_trace_conf conf;
            struct pvs_trace *out;
        } trace;
    };
    uint8_t bytes[]; /* the frame that is injected, or traced */
};

#endif
