/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port_vhost.h - a vhost-user port: its rings, its memory, and the two movements of a frame through them.
 *
 * How it works: `guest_tx` rings are fetched from in bursts: chains are looked at ahead of taking them, so a burst may
 * end early and leave the rest as it was. `guest_rx` rings are delivered into: room is reserved first (across mergeable
 * buffers), then header, head and tail are written straight into the guest's buffers: the one copy of the payload.
 * Nothing is shown to a guest before pvs_ring_publish.
 *
 * Who may call: the worker that owns the ring. A port's fields are set by control while its rings are stopped.
 */
#ifndef PVS_PORT_VHOST_H
#define PVS_PORT_VHOST_H

#include "counters.h"
#include "frame.h"
#include "virtqueue.h"

struct pvs_ring {
    struct pvs_vq vq;
    struct pvs_port *port;
    uint16_t index;     /* in the port: even = guest_rx, odd = guest_tx */
    bool touched;       /* has used elements that the guest wasn't shown yet */
    bool notify;        /* published; whether to call is looked at when the loop ends */
    bool active;        /* in its worker's polled set */
    bool started;       /* control's view: from pvs_ring_start until its stop is reaped */
    bool stopping;      /* its stop is under way */
    bool call_owed;     /* a new call fd wants one call, whatever the event index says */
    uint32_t active_at; /* where in that set */
    uint32_t worker;    /* who owns it */
    int kick_fd, call_fd;
    uint64_t idle_since_ns; /* when it last had work, or was started */
    _Atomic bool running, enabled;
    _Atomic uint64_t kicks, packets, bytes, notifications, notifications_suppressed;
};

struct pvs_port {
    struct pvs_switch *sw;
    uint32_t ref; /* generation << 16 | index */
    uint32_t n_rings;
    uint32_t in_flight; /* commands under way that name it; control only */
    struct pvs_memory *memory;
    _Atomic bool memory_lost; /* set by the SIGBUS handler */
    _Atomic bool carrier;     /* a receive ring runs and is enabled */
    _Atomic uint32_t broken;  /* enum pvs_broken; latched until the rings are started afresh */
    struct pvs_counters *counters[PVS_MAX_WORKERS];
    struct pvs_ring ring[];
};

enum { PVS_BURST = 32, PVS_ARENA = 4 * PVS_MAX_SEGS };

/* The frames of one burst, and the segments they point into. */
struct pvs_burst {
    struct pvs_frame frame[PVS_BURST];
    struct pvs_seg arena[PVS_ARENA];
};

static inline bool
pvs_ring_is_guest_tx(const struct pvs_ring *ring)
{
    return (ring->index & 1) != 0;
}

/* Look at up to PVS_BURST available chains as frames (gathered, not parsed). *broken: why it stopped, if not NONE. */
uint32_t pvs_guest_tx_fetch(struct pvs_ring *ring, struct pvs_burst *burst, enum pvs_broken *broken);

/* Take the first n of them off the ring and give their chains back. */
void pvs_guest_tx_finish(struct pvs_ring *ring, const struct pvs_burst *burst, uint32_t n);

/* Write one frame into the guest's buffers. `scratch` has PVS_MAX_SEGS places. none, or why the copy was dropped. */
enum pvs_drop pvs_guest_rx_deliver(struct pvs_ring *ring, const struct pvs_frame *frame, struct pvs_seg *scratch,
                                   enum pvs_broken *broken);

#endif
