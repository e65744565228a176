/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port.h - what all ports have in common: an index in the tables, counters, and queues that workers take frames from.
 *
 * How it works: a port is a guest's (rings in its memory, port_vhost.h) or an uplink (descriptors of the kernel,
 * port_uplink.h). What a worker polls is a `struct pvs_queue`, the first member of a ring and of an uplink's queue; a
 * frame that has to wait for its receiver waits in the queue it came by. Frames may be delivered to the queues whose bit
 * stands in `rx_up`: control sets a bit once every worker knows that the queue was started, and clears it before it asks
 * for a stop, so when the stop has been carried out by all workers none of them can be inside.
 *
 * Who may call: see at each field.
 */
#ifndef PVS_PORT_H
#define PVS_PORT_H

#include "counters.h"
#include "policy.h"
#include "pvs_api.h"
#include "steer.h"

struct pvs_command;

enum pvs_queue_kind { PVS_QUEUE_RING, PVS_QUEUE_UPLINK };

/* A move from worker to worker: from RELEASE on nobody has the queue, from ADOPT on the new one will have it (moves.c). */
enum pvs_move { PVS_MOVE_NONE, PVS_MOVE_RELEASE, PVS_MOVE_ADOPT };

struct pvs_queue {
    struct pvs_port *port;
    uint32_t worker; /* who polls it, or (of a guest_rx ring) watches its kick */
    uint16_t index;  /* in its port; of a ring: even = guest_rx, odd = guest_tx */
    uint8_t kind;    /* enum pvs_queue_kind */

    /* its worker's, where frames come from it */
    bool active;   /* in the polled set */
    bool waiting;  /* its first frame waits for a receiver: for room, or for the ring's lock */
    bool kickless; /* no descriptor wakes us for it: it is polled */
    struct {
        uint32_t ref;       /* the receiver's port */
        uint32_t n;         /* pieces that the frame makes for it */
        uint32_t done;      /* of these, already delivered */
    } progress;             /* of its first frame, while that waits half delivered; all zero: nothing is */
    uint32_t active_at;     /* where in the polled set */
    uint64_t idle_since_ns; /* when it last had work, or was started */
    uint64_t poll_ns;       /* how long it stays in the polled set without work */
    uint64_t rested_ns;     /* while it is at rest: its idle_since_ns then */

    _Atomic bool running;    /* its worker's; read by all */
    _Atomic uint64_t cycles; /* likewise: spent on turns that gave frames, idle ones just before them included */

    /* control's view */
    bool started;  /* from its start until its stop is reaped */
    bool ready;    /* its start is reaped */
    bool stopping; /* its stop is under way */
    uint8_t move;  /* enum pvs_move */
    uint32_t move_to;
    struct pvs_command *stop_after; /* a stop that was asked for during a move, kept back until that has ended */
};

struct pvs_port {
    struct pvs_switch *sw;
    uint32_t ref;                /* generation << 16 | index */
    uint32_t n_rings, n_uplinks; /* one of them is 0 */
    uint32_t in_flight;          /* commands under way that name it; control only */
    struct pvs_ring *ring;
    struct pvs_uplink *uplink;
    _Atomic uint32_t rx_up;   /* pairs (or uplink queues) that may be delivered to, a bit for each */
    _Atomic uint32_t broken;  /* enum pvs_broken; latched until the rings are started afresh */
    _Atomic bool memory_lost; /* set by the SIGBUS handler */
    struct pvs_memory *memory;
    struct pvs_counters *counters[PVS_MAX_WORKERS];
    struct pvs_steering steering;
    struct pvs_meters meters;
    /* control's */
    uint64_t published;  /* the last publication that it was part of, or the endpoint of a part; counted from 1 */
    bool limits_changed; /* the meters begin anew when all workers have the tables */
};

/* At most one of its queue pairs receives: nothing is to be chosen, or noted. */
static inline bool
pvs_one_pair(const struct pvs_port *port)
{
    uint32_t up = atomic_load_explicit(&port->rx_up, memory_order_relaxed);
    return (up & (up - 1)) == 0;
}

#endif
