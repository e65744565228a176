/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver's own structures. Private to native/driver; users see pvs_driver.h only.
 *
 * memory.c    regions, the placement of rings and slots, translation
 * ring.c      a split virtqueue from the driver's side: chains, publishing, notifications, used entries
 * net.c       virtio-net on it: transmit, receive
 * generate.c  closed-loop load; latency.c one frame at a time
 * pvs_driver.c  life of a guest, descriptions, raw access
 */
#ifndef PVD_INTERNAL_H
#define PVD_INTERNAL_H

#include "pvs_driver.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "virtio 1.x is little-endian and this driver doesn't swap: build it on a little-endian machine"
#endif

#define PVD_CACHE_LINE   64u
#define PVD_MAX_SEGS     (PVD_MAX_CUTS + 1u)
#define PVD_GUARD_LEN    8u
#define PVD_GUARD_BYTE   0xa5
#define PVD_SCRATCH_SIZE 65536u
#define PVD_MAX_HDR_LEN  12u

/* Ring layout: virtio 1.2, sections 2.7.5 to 2.7.8. Flags of avail and used, event fields behind the rings.
 */
#define PVD_AVAIL_NO_INTERRUPT 1u
#define PVD_USED_NO_NOTIFY     1u

struct pvd_avail {
    _Atomic uint16_t flags;
    _Atomic uint16_t idx;
    uint16_t ring[]; /* [num], then used_event */
};

struct pvd_used_elem {
    uint32_t id;
    uint32_t len;
};

struct pvd_used {
    _Atomic uint16_t flags;
    _Atomic uint16_t idx;
    struct pvd_used_elem ring[]; /* [num], then avail_event */
};

_Static_assert(sizeof(struct pvd_desc) == 16, "a descriptor has 16 bytes");
_Static_assert(sizeof(struct pvd_used_elem) == 8, "a used element has 8 bytes");
_Static_assert(sizeof(_Atomic uint16_t) == 2, "atomics lie in shared memory, so they must be plain integers");

/* Buffer memory of one descriptor number. `ptr` is NULL for memory that straddles two regions. */
struct pvd_slot {
    uint64_t gpa;
    uint8_t *ptr;
};

/* A piece of a chain as the device sees it. */
struct pvd_seg {
    uint64_t gpa;
    uint32_t len;
};

enum pvd_chain_state { PVD_IDLE = 0, PVD_IN_FLIGHT, PVD_RAW };

/* What was posted under a head. `segs` is NULL for the plain case: one segment at the slot's beginning. */
struct pvd_chain {
    struct pvd_seg *segs;
    uint32_t len;    /* bytes of all segments */
    uint16_t n_segs; /* pieces of the byte string */
    uint16_t n_desc; /* entries of the descriptor table, the indirect one included */
    uint16_t direct; /* segments that lie in the descriptor table */
    uint8_t state;   /* enum pvd_chain_state */
    uint8_t shuffle; /* the indirect table is written in random order */
    uint8_t bridge;  /* 1 + index of the straddling slot in use, 0 for none */
};

/* A slot on the border of two adjacent regions; it belongs to one ring. */
struct pvd_bridge {
    uint64_t border; /* GPA at which the upper region begins */
    uint32_t ring;
    bool busy;
};

struct pvd_queue {
    struct pvd_guest *guest;
    uint32_t index;
    uint32_t num;
    uint32_t mask;
    uint32_t slot_size; /* bytes of data area in a slot: buffer, and a guard behind each segment */
    bool writable;      /* receive ring: descriptors are for the device to write */
    bool event_idx;

    struct pvd_desc *desc; /* the three parts in shared memory */
    struct pvd_avail *avail;
    struct pvd_used *used;
    _Atomic uint16_t *used_event;
    _Atomic uint16_t *avail_event;

    uint16_t avail_idx; /* what avail->idx is or will be when published */
    uint16_t kicked;    /* avail_idx at the last decision about a kick */
    uint16_t last_used; /* used entries before this one are taken */

    uint16_t *free_ids; /* FIFO of descriptor numbers */
    uint32_t free_head;
    uint32_t free_count;
    uint16_t *link;  /* successor of a direct descriptor in its chain */
    uint16_t *order; /* heads as posted, by avail position */
    struct pvd_chain *chains;
    struct pvd_slot *slots;
    struct pvd_layout rx_layout; /* of the last pvd_rx_fill, for frames received later */

    int kick_fd;
    int call_fd;
    struct pvd_counters counters;
};

struct pvd_view;

struct pvd_guest {
    struct pvd_conf conf;
    uint32_t hdr_len;
    uint32_t n_rings;
    uint32_t n_bridges;
    uint64_t made_with; /* the features that memory was laid out for */
    bool mute;          /* memory was truncated: never touch it again */
    _Atomic bool stop;  /* asked for by pvd_stop, possibly from another thread */
    uint64_t rng;
    struct pvd_region regions[PVD_MAX_REGIONS];
    uint64_t place_next[PVD_MAX_REGIONS]; /* GPA of the first byte not yet placed, and the end of what may be */
    uint64_t place_end[PVD_MAX_REGIONS];
    struct pvd_bridge bridges[PVD_MAX_REGIONS];
    uint64_t scratch_gpa;
    struct pvd_queue *queues;
    struct pvd_view *view; /* scratch of pvd_rx and the generator: too large for a stack */
};

static inline bool
pvd_has(const struct pvd_guest *g, unsigned bit)
{
    return (g->conf.features >> bit & 1) != 0;
}

/* NULL for a ring or pair that doesn't exist. */
static inline struct pvd_queue *
pvd_queue_of(const struct pvd_guest *g, uint32_t ring)
{
    return ring < g->n_rings ? &g->queues[ring] : NULL;
}

static inline uint32_t
pvd_in_flight(const struct pvd_queue *q)
{
    return (uint16_t)(q->avail_idx - q->last_used);
}

static inline uint64_t
pvd_round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

/* xorshift64*: shuffles only, so that a seed repeats a test. */
static inline uint32_t
pvd_random(struct pvd_guest *g, uint32_t below)
{
    g->rng ^= g->rng >> 12;
    g->rng ^= g->rng << 25;
    g->rng ^= g->rng >> 27;
    return (uint32_t)(g->rng * 0x2545f4914f6cdd1dull >> 32) % below;
}

/* memory.c */
int pvd_memory_create(struct pvd_guest *g);
void pvd_memory_destroy(struct pvd_guest *g);
int pvd_memory_place_rings(struct pvd_guest *g);
uint64_t pvd_table_gpa(const struct pvd_queue *q, uint16_t head);
/* The longest piece at gpa that lies in one region, at most len bytes; NULL when gpa isn't mapped. */
uint8_t *pvd_piece(const struct pvd_guest *g, uint64_t gpa, uint32_t *len);
void pvd_copy_in(const struct pvd_guest *g, uint64_t gpa, const void *src, uint32_t len);
void pvd_copy_out(const struct pvd_guest *g, void *dst, uint64_t gpa, uint32_t len);

/* ring.c */
int pvd_queue_create(struct pvd_guest *g, uint32_t index);
void pvd_queue_destroy(struct pvd_queue *q);
void pvd_queue_reset(struct pvd_queue *q);
int pvd_chain_build(struct pvd_queue *q, uint32_t len, const struct pvd_layout *layout);
void pvd_chain_seg(const struct pvd_queue *q, uint16_t head, uint32_t i, struct pvd_seg *out);
void pvd_chain_post(struct pvd_queue *q, uint16_t head);
void pvd_chain_free(struct pvd_queue *q, uint16_t head);
void pvd_publish(struct pvd_queue *q);
int pvd_queue_kick(struct pvd_queue *q);
uint32_t pvd_used_pending(struct pvd_queue *q);
int pvd_used_take(struct pvd_queue *q, uint32_t *len);
int pvd_fail(struct pvd_queue *q, uint32_t error);

/* net.c */

#define PVD_MAX_PIECES 4096u

struct pvd_piece_ref {
    const uint8_t *ptr;
    uint32_t len;
};

/* A received frame where it lies: pieces of guest memory behind the net header, and the buffers that hold it.
 */
struct pvd_view {
    uint32_t len; /* of the frame */
    uint32_t n_pieces;
    uint32_t n_heads;
    struct pvd_rx_info info;
    uint16_t heads[PVD_MAX_PIECES];
    struct pvd_piece_ref pieces[PVD_MAX_PIECES];
};

int pvd_tx_post(struct pvd_queue *q, const void *hdr, const void *frame, uint32_t len, const struct pvd_layout *layout);
int pvd_tx_reap_queue(struct pvd_queue *q);
int pvd_rx_fill_queue(struct pvd_queue *q, uint32_t max, const struct pvd_layout *layout);
int pvd_rx_view(struct pvd_queue *q, struct pvd_view *view, bool guards);
void pvd_rx_release(struct pvd_queue *q, const struct pvd_view *view, bool repost);

#endif
