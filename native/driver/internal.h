/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver's own structures. Private to native/driver; users see pvs_driver.h only.
 *
 * memory.c       regions, the placement of rings and slots, translation
 * ring.c         a virtqueue from the driver's side, whatever its format: ids, chains, used elements
 * ring_notify.c  kicks and calls
 * ring_split.c   what of it the split format decides
 * ring_packed.c  what of it the packed format decides
 * net.c          virtio-net on it: transmit, receive
 * generate.h     load; there
 * raw.c          raw access to rings, for tests that break them
 * pvs_driver.c   life of a guest, descriptions
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

/* Packed: virtio 1.2, sections 2.8.13 and 2.8.14. `flags` is what driver and device tell each other by. */
struct pvd_slot_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t id;
    _Atomic uint16_t flags;
};

_Static_assert(sizeof(struct pvd_desc) == 16, "a descriptor has 16 bytes");
_Static_assert(sizeof(struct pvd_slot_desc) == 16, "a packed descriptor has 16 bytes");
_Static_assert(sizeof(struct pvd_used_elem) == 8, "a used element has 8 bytes");
_Static_assert(sizeof(_Atomic uint16_t) == 2, "atomics lie in shared memory, so they must be plain integers");

/* A place in a packed ring: the index of a descriptor, and the wrap counter of who is there. */
struct pvd_place {
    uint16_t at;
    uint16_t wrap;
};

/* Buffer memory of one id (split: descriptor number; packed: buffer id). `ptr` is NULL for memory that straddles two regions. */
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

/* What was posted under an id. `segs` is NULL for the plain case: one segment at the slot's beginning. A chain
 * posted raw has no segments of ours. */
struct pvd_chain {
    struct pvd_seg *segs;
    uint32_t len;    /* bytes of all segments */
    uint32_t turn;   /* which one it was of all chains posted, modulo 2^32 */
    uint16_t n_segs; /* pieces of the byte string */
    uint16_t n_desc; /* descriptors of the ring that it takes, the indirect one included */
    uint16_t direct; /* segments that have such a descriptor of their own */
    uint8_t state;   /* enum pvd_chain_state */
    uint8_t shuffle; /* split: the indirect table is written in random order */
    uint8_t bridge;  /* 1 + index of the straddling slot in use, 0 for none */
};

/* A chain in the order in which it was posted. */
struct pvd_turn {
    uint16_t id;
    uint16_t n_desc;
    bool stray; /* posted raw under an id that no chain can be noted for */
};

/* A slot on the border of two adjacent regions; it belongs to one ring. */
struct pvd_bridge {
    uint64_t border; /* GPA at which the upper region begins */
    uint32_t ring;
    bool busy;
};

struct pvd_queue;

/* What a format decides; chosen once, when the queue is reset. A "head" is a chain's id. */
struct pvd_ring_ops {
    void (*reset)(struct pvd_queue *q);
    /* Write a chain's descriptors; the device sees them from `publish` on. */
    void (*write)(struct pvd_queue *q, uint16_t head);
    void (*publish)(struct pvd_queue *q);
    /* Whether anything was published since the last decision about a kick, and whether the device wants to know. The
     * decision is made with that. */
    bool (*to_kick)(const struct pvd_queue *q);
    bool (*kick_wanted)(struct pvd_queue *q);
    void (*arm)(struct pvd_queue *q);
    void (*disarm)(struct pvd_queue *q);
    /* How many chains are used and not yet taken; it need not count beyond `limit`. */
    uint32_t (*pending)(const struct pvd_queue *q, uint32_t limit);
    /* The used element at the present place. */
    void (*element)(const struct pvd_queue *q, uint32_t *id, uint32_t *len);
    /* Go on behind a chain that took `n_desc` descriptors. */
    void (*advance)(struct pvd_queue *q, uint16_t n_desc);
    /* What a front end says in SET_VRING_BASE. */
    uint32_t (*base)(const struct pvd_queue *q);
};

struct pvd_queue {
    struct pvd_guest *guest;
    const struct pvd_ring_ops *ops;
    uint32_t index;
    uint32_t num;
    uint32_t mask;      /* split: of ring positions */
    uint32_t list_mask; /* of the lists below, whose lengths are powers of two in either format */
    uint32_t slot_size; /* bytes of data area in a slot: buffer, and a guard behind each segment */
    bool writable;      /* receive ring: descriptors are for the device to write */
    bool packed;
    bool in_order;
    bool event_idx;

    /* The three parts in shared memory: descriptor area, driver area, device area. */
    union {
        struct pvd_desc *desc;
        struct pvd_slot_desc *ring;
        void *desc_area;
    };
    union {
        struct pvd_avail *avail;
        _Atomic uint32_t *driver_event;
        void *driver_area;
    };
    union {
        struct pvd_used *used;
        _Atomic uint32_t *device_event;
        void *device_area;
    };

    union {
        struct {
            _Atomic uint16_t *used_event; /* behind avail and used */
            _Atomic uint16_t *avail_event;
            uint16_t avail_idx; /* what avail->idx is or will be when published */
            uint16_t kicked;    /* avail_idx at the last decision about a kick */
            uint16_t last_used; /* used entries before this one are taken */
        } s;                    /* split */
        struct {
            struct pvd_place next_avail;
            struct pvd_place next_used;
            struct pvd_place hidden; /* the head whose flags aren't written yet, for the device waits at it */
            uint16_t hidden_flags;
            bool hiding;
            uint32_t unkicked; /* descriptors published since the last decision about a kick */
        } p;                   /* packed */
    };

    uint32_t n_posted; /* chains posted and taken ever, modulo 2^32: the difference is in flight */
    uint32_t n_taken;
    uint32_t batch;     /* IN_ORDER: chains used by an element that was read already */
    uint32_t batch_len; /* the length that it told */
    uint32_t n_free;    /* descriptors that no chain holds */
    uint16_t *free_ids; /* FIFO */
    uint32_t free_head;
    uint32_t free_tail;
    uint16_t *link;         /* split: successor of a descriptor in its chain */
    struct pvd_turn *order; /* chains as posted, by n_posted */
    struct pvd_chain *chains;
    struct pvd_slot *slots;
    struct pvd_layout rx_layout; /* of the last pvd_rx_fill, for what is posted again */

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

/* Whether net header and frame may be spread in any way; without it the header stands alone. */
static inline bool
pvd_any_layout(const struct pvd_guest *g)
{
    return pvd_has(g, PVD_F_VERSION_1) || pvd_has(g, PVD_F_ANY_LAYOUT);
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
    return q->n_posted - q->n_taken;
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
void pvd_chain_repost(struct pvd_queue *q, uint16_t head);
void pvd_chain_free(struct pvd_queue *q, uint16_t head);
void pvd_order_add(struct pvd_queue *q, uint16_t head, uint16_t n_desc, bool stray);
void pvd_publish(struct pvd_queue *q);
uint32_t pvd_used_pending(const struct pvd_queue *q, uint32_t limit);
int pvd_used_take(struct pvd_queue *q, uint32_t *len);
int pvd_fail(struct pvd_queue *q, uint32_t error);
void pvd_write_guard(const struct pvd_queue *q, uint64_t gpa);

/* ring_notify.c */
int pvd_queue_kick(struct pvd_queue *q);

/* ring_split.c, ring_packed.c */
extern const struct pvd_ring_ops pvd_split_ops;
extern const struct pvd_ring_ops pvd_packed_ops;
static inline struct pvd_place
pvd_place_add(const struct pvd_queue *q, struct pvd_place place, uint32_t n)
{
    uint32_t at = place.at + n;
    if (at >= q->num) {
        return (struct pvd_place){ .at = (uint16_t)(at - q->num), .wrap = !place.wrap };
    }
    return (struct pvd_place){ .at = (uint16_t)at, .wrap = place.wrap };
}

/* Write `n` descriptors at the next places as one chain; the flags given, and AVAIL and USED as they must be. */
void pvd_packed_write(struct pvd_queue *q, const struct pvd_packed_desc *descs, uint32_t n);
/* Whether the device wrote a used element there. */
bool pvd_packed_used(const struct pvd_queue *q, struct pvd_place place);

/* net.c */

#define PVD_MAX_PIECES 4096u

/* virtio 1.2, section 5.1.6.1. */
struct pvd_net_header {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t hdr_len;
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
    uint16_t num_buffers; /* absent in the 10 bytes of a legacy header without MRG_RXBUF */
};

_Static_assert(sizeof(struct pvd_net_header) == PVD_MAX_HDR_LEN, "no padding in the net header");

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
/* Whether num_buffers can be right when `more` further buffers are used; and what else the header says of a frame of
 * `len` bytes. */
bool pvd_buffers_plausible(const struct pvd_guest *g, uint32_t n, uint32_t more);
bool pvd_offload_plausible(const struct pvd_guest *g, const struct pvd_net_header *h, uint32_t len);
int pvd_rx_view(struct pvd_queue *q, struct pvd_view *view, bool guards);
void pvd_rx_release(struct pvd_queue *q, const struct pvd_view *view, bool repost);

#endif
