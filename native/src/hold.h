/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hold.h - frames that outlive their burst, and the timers that release them.
 *
 * How it works: a slab of equal blocks, mapped once per worker; what was never used takes no memory. pvs_own copies a
 * borrowed frame into as many blocks as it needs, once; the copy has one owner, who gives it back with pvs_owned_free. Each
 * port may hold a bounded number of blocks, so that no guest can empty the slab for the others. A hashed timer wheel calls back at a time: its tick is
 * 131 us, its turn 67 ms; a timer further away stays in its slot for several turns.
 *
 * Who may call: the worker that owns the slab and the wheel. Time is an argument.
 */
#ifndef PVS_HOLD_H
#define PVS_HOLD_H

#include <stdint.h>

#include "frame.h"

struct pvs_timer {
    struct pvs_timer *next, **link; /* in its slot; link is NULL while it isn't set */
    uint64_t at_ns;
    void (*fire)(struct pvs_timer *timer, uint64_t now_ns);
};

enum { PVS_WHEEL_SHIFT = 17, PVS_WHEEL_SLOTS = 512 };

struct pvs_wheel {
    struct pvs_timer *slot[PVS_WHEEL_SLOTS];
    uint64_t tick; /* the next one to run */
    uint32_t n;
};

void pvs_wheel_init(struct pvs_wheel *wheel, uint64_t now_ns);
void pvs_wheel_set(struct pvs_wheel *wheel, struct pvs_timer *timer, uint64_t at_ns);
void pvs_wheel_cancel(struct pvs_wheel *wheel, struct pvs_timer *timer);
/* Fire what is due; a timer may be set again, or freed, by its own call. Returns how many fired. */
uint32_t pvs_wheel_run(struct pvs_wheel *wheel, uint64_t now_ns);
/* When to look again: never later than the earliest timer needs, UINT64_MAX when none is set. */
uint64_t pvs_wheel_next(const struct pvs_wheel *wheel);

enum { PVS_BLOCK = 4096, PVS_OWNED_SEGS = 18 };

struct pvs_block;
struct pvs_slab;

struct pvs_owned {
    struct pvs_frame frame; /* its tail lies in this frame's own blocks */
    struct pvs_seg seg[PVS_OWNED_SEGS];
    struct pvs_timer timer;
    struct pvs_wheel *wheel; /* that the timer is in, if it was held */
    struct pvs_slab *slab;
    struct pvs_block *blocks; /* beyond the one that holds this struct */
    uint32_t n_blocks;        /* all of them */
    uint32_t port;            /* index of the port they are charged to */
    struct pvs_owned *next;   /* its owner's */
    uint64_t at_ns;           /* likewise */
    uint16_t vid, vtep;       /* likewise */
};

struct pvs_slab {
    uint8_t *memory;
    struct pvs_block *free;
    uint32_t n_blocks, n_free, per_port;
    uint32_t fresh;               /* blocks from this one on were never used */
    uint64_t refused;             /* no block left, or the port's bound reached */
    uint32_t held[PVS_MAX_PORTS]; /* blocks */
};

/* -ENOMEM. At most `per_port` blocks are held for each port. */
int pvs_slab_init(struct pvs_slab *slab, uint32_t n_blocks, uint32_t per_port);
void pvs_slab_fini(struct pvs_slab *slab);

/* A copy of `frame`, charged to the port at index `port`; NULL (and counted) when there is no room. */
struct pvs_owned *pvs_own(struct pvs_slab *slab, const struct pvs_frame *frame, uint32_t port);
void pvs_owned_free(struct pvs_owned *owned);

/* Own it and call `fire` at at_ns with the timer inside it (PVS_OWNED_OF gives the frame back). NULL as pvs_own. */
struct pvs_owned *pvs_hold(struct pvs_slab *slab, struct pvs_wheel *wheel, const struct pvs_frame *frame, uint32_t port,
                           uint64_t at_ns, void (*fire)(struct pvs_timer *, uint64_t));
#define PVS_OWNED_OF(t) ((struct pvs_owned *)(void *)((char *)(t)-offsetof(struct pvs_owned, timer)))

#endif
