/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port_vhost.h - a vhost-user port: its rings, its memory, and the two movements of a frame through them.
 *
 * How it works: `guest_tx` rings are fetched from in bursts: chains are looked at ahead of taking them, so a burst may
 * end early and leave the rest as it was. `guest_rx` rings are delivered into: room is reserved first (across mergeable
 * buffers), for all frames that go there, so that cache misses overlap; then header, head and tail are written straight
 * into the guest's buffers: the one copy of the payload. Nothing is shown to a guest before pvs_vq_publish.
 *
 * Who may call: a guest_tx ring belongs to one worker. A guest_rx ring is everybody's: whoever holds its lock may
 * deliver; nobody holds two. Other fields are set by control while the port's rings are stopped.
 */
#ifndef PVS_PORT_VHOST_H
#define PVS_PORT_VHOST_H

#include "offload.h"
#include "port.h"
#include "virtqueue.h"

struct pvs_ring {
    struct pvs_queue queue;
    struct pvs_vq vq;
    uint8_t offloads; /* PVS_OFFLOAD_*: what its guest may ask for (guest_tx), or takes as it is (guest_rx) */
    int kick_fd;
    _Atomic int call_fd;
    _Atomic bool enabled;

    /* a guest_rx ring: under `lock`; a guest_tx ring: its worker's */
    _Atomic bool lock;
    uint16_t touched; /* workers that have put used elements in which the guest wasn't shown yet, a bit for each */
    uint16_t notify;  /* workers that have published, and look at the end of their loop whether to call */
    bool call_owed;   /* a new call fd wants one call, whatever the event index says */
    bool room_armed;  /* a kick was asked for when the guest posts buffers beyond room_at */
    uint16_t room_at;
    uint64_t full_since_ns;   /* a frame found no room, and none was taken since; 0: it has room */
    _Atomic uint16_t waiters; /* workers in which a frame waits for room here */

    _Atomic uint64_t kicks, packets, bytes, notifications, notifications_suppressed;
};

enum { PVS_BURST = 64, PVS_ARENA = 4 * PVS_MAX_SEGS, PVS_LANDING = 2 * PVS_MAX_SEGS };

/* The frames of one burst, in a ring the position behind each, and the segments they point into. */
struct pvs_burst {
    struct pvs_frame frame[PVS_BURST];
    uint16_t next[PVS_BURST];
    struct pvs_seg arena[PVS_ARENA];
};

/* Where copies are to go: chains of a receive ring that were looked at, and their segments. */
struct pvs_landing {
    uint32_t n_chain, n_seg;
    struct {
        uint16_t id, next;
        uint32_t room;
    } chain[PVS_LANDING];
    struct pvs_seg seg[PVS_LANDING];
};

/* What became of some frames for one receive ring. */
struct pvs_delivery {
    uint32_t packets;
    uint64_t bytes;
    enum pvs_broken broken;
    bool dropped;            /* any of them */
    uint8_t drop[PVS_BURST]; /* enum pvs_drop of each */
};

static inline bool
pvs_ring_is_guest_tx(const struct pvs_ring *ring)
{
    return (ring->queue.index & 1) != 0;
}

/* The ring that a queue of the kind PVS_QUEUE_RING is the first member of. */
static inline struct pvs_ring *
pvs_ring_of(struct pvs_queue *queue)
{
    return (struct pvs_ring *)(void *)queue;
}

/* Look at up to PVS_BURST available chains as frames (gathered, not parsed). *broken: why it stopped, if not NONE. */
uint32_t pvs_guest_tx_fetch(struct pvs_ring *ring, struct pvs_burst *burst, enum pvs_broken *broken);

/* Take the first n of them off the ring and give their chains back. */
void pvs_guest_tx_finish(struct pvs_ring *ring, const struct pvs_burst *burst, uint32_t n);

/* Write the piece at hand into the guest's buffers. none, or why it wasn't. */
enum pvs_drop pvs_guest_rx_deliver(struct pvs_ring *ring, struct pvs_pieces *pieces, struct pvs_landing *landing,
                                   enum pvs_broken *broken);

/* Write the frames with these numbers, each as it is: its receiver takes what it leaves to be done. */
void pvs_guest_rx_deliver_whole(struct pvs_ring *ring, const struct pvs_frame *frame, const uint8_t *number, uint32_t n,
                                struct pvs_landing *landing, struct pvs_delivery *delivery);

static inline bool
pvs_ring_try(struct pvs_ring *ring)
{
    /* acquire: what the last holder did to the ring is visible; the look before spares the line when it is taken */
    return !atomic_load_explicit(&ring->lock, memory_order_relaxed) &&
           !atomic_exchange_explicit(&ring->lock, true, memory_order_acquire);
}

/* Waits; whoever has the lock holds it for a burst at most and waits for nothing meanwhile. */
void pvs_ring_lock(struct pvs_ring *ring);

static inline void
pvs_ring_unlock(struct pvs_ring *ring)
{
    atomic_store_explicit(&ring->lock, false, memory_order_release);
}

#endif
