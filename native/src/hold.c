/* SPDX-License-Identifier: Apache-2.0 */
/* hold.c - see hold.h for how it works and who may call it. */
#include "hold.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>

/* ---- timers ---- */

void
pvs_wheel_init(struct pvs_wheel *wheel, uint64_t now_ns)
{
    *wheel = (struct pvs_wheel){ .tick = now_ns >> PVS_WHEEL_SHIFT };
}

void
pvs_wheel_set(struct pvs_wheel *wheel, struct pvs_timer *timer, uint64_t at_ns)
{
    /* round up: a timer never fires early; what is past fires at the next run */
    uint64_t tick = (at_ns >> PVS_WHEEL_SHIFT) + ((at_ns & ((1ULL << PVS_WHEEL_SHIFT) - 1)) != 0);
    if (tick < wheel->tick)
        tick = wheel->tick;
    struct pvs_timer **slot = &wheel->slot[tick % PVS_WHEEL_SLOTS];

    pvs_wheel_cancel(wheel, timer);
    timer->at_ns = tick > UINT64_MAX >> PVS_WHEEL_SHIFT ? UINT64_MAX : tick << PVS_WHEEL_SHIFT;
    timer->next = *slot;
    timer->link = slot;
    if (timer->next != NULL)
        timer->next->link = &timer->next;
    *slot = timer;
    wheel->n++;
}

void
pvs_wheel_cancel(struct pvs_wheel *wheel, struct pvs_timer *timer)
{
    if (timer->link == NULL)
        return;
    *timer->link = timer->next;
    if (timer->next != NULL)
        timer->next->link = timer->link;
    timer->link = NULL;
    wheel->n--;
}

uint32_t
pvs_wheel_run(struct pvs_wheel *wheel, uint64_t now_ns)
{
    uint64_t now = now_ns >> PVS_WHEEL_SHIFT;
    uint32_t fired = 0;

    if (wheel->n == 0 || now < wheel->tick) {
        if (now >= wheel->tick)
            wheel->tick = now + 1;
        return 0;
    }
    /* after a long sleep one turn over all slots is enough */
    uint64_t first = now - wheel->tick >= PVS_WHEEL_SLOTS ? now - PVS_WHEEL_SLOTS + 1 : wheel->tick;
    wheel->tick = now + 1; /* what is set from now on, by a timer that fires, belongs to a later run */
    for (uint64_t tick = first; tick <= now; tick++) {
        struct pvs_timer **slot = &wheel->slot[tick % PVS_WHEEL_SLOTS], *todo = *slot;
        *slot = NULL;
        if (todo != NULL)
            todo->link = &todo; /* so that a timer that fires may cancel one that is still in the list */
        while (todo != NULL) {
            struct pvs_timer *t = todo;
            pvs_wheel_cancel(wheel, t);
            if (t->at_ns >> PVS_WHEEL_SHIFT <= now) {
                t->fire(t, now_ns);
                fired++;
            } else {
                pvs_wheel_set(wheel, t, t->at_ns);
            }
        }
    }
    return fired;
}

uint64_t
pvs_wheel_next(const struct pvs_wheel *wheel)
{
    if (wheel->n == 0)
        return UINT64_MAX;
    for (uint64_t tick = wheel->tick; tick < wheel->tick + PVS_WHEEL_SLOTS; tick++)
        for (const struct pvs_timer *t = wheel->slot[tick % PVS_WHEEL_SLOTS]; t != NULL; t = t->next)
            if (t->at_ns >> PVS_WHEEL_SHIFT == tick)
                return t->at_ns;
    return (wheel->tick + PVS_WHEEL_SLOTS) << PVS_WHEEL_SHIFT; /* all are more than a turn away */
}

/* ---- owned frames ---- */

struct pvs_block {
    struct pvs_block *next;
    uint8_t data[];
};

#define FIRST_ROOM (PVS_BLOCK - sizeof(struct pvs_owned))
#define MORE_ROOM  (PVS_BLOCK - sizeof(struct pvs_block))
_Static_assert(FIRST_ROOM + (PVS_OWNED_SEGS - 1) * MORE_ROOM >= PVS_MAX_FRAME + PVS_VLAN_HLEN,
               "the largest frame fits");

static uint8_t *
block_at(const struct pvs_slab *slab, uint32_t i)
{
    return slab->memory + (size_t)i * PVS_BLOCK;
}

static struct pvs_block *
block_take(struct pvs_slab *slab)
{
    struct pvs_block *b = slab->free;

    if (b == NULL)
        b = (struct pvs_block *)(void *)block_at(slab, slab->fresh++);
    else
        slab->free = b->next;
    slab->n_free--;
    return b;
}

static void
block_give(struct pvs_slab *slab, void *memory)
{
    struct pvs_block *b = memory;
    b->next = slab->free;
    slab->free = b;
    slab->n_free++;
}

int
pvs_slab_init(struct pvs_slab *slab, uint32_t n_blocks, uint32_t per_port)
{
    *slab = (struct pvs_slab){ .n_blocks = n_blocks, .n_free = n_blocks, .per_port = per_port };
    void *memory = mmap(NULL, (size_t)n_blocks * PVS_BLOCK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return -ENOMEM;
    slab->memory = memory;
    return 0;
}

void
pvs_slab_fini(struct pvs_slab *slab)
{
    if (slab->memory != NULL)
        munmap(slab->memory, (size_t)slab->n_blocks * PVS_BLOCK);
    slab->memory = NULL;
}

struct pvs_owned *
pvs_own(struct pvs_slab *slab, const struct pvs_frame *frame, uint32_t port)
{
    uint32_t tail = frame->len - frame->head_len;
    uint32_t more = tail <= FIRST_ROOM ? 0 : (uint32_t)((tail - FIRST_ROOM + MORE_ROOM - 1) / MORE_ROOM);

    if (slab->n_free < 1 + more || slab->held[port] + 1 + more > slab->per_port) {
        slab->refused++;
        return NULL;
    }
    struct pvs_owned *owned = (struct pvs_owned *)(void *)block_take(slab);
    owned->slab = slab;
    owned->blocks = NULL;
    owned->wheel = NULL;
    owned->port = port;
    owned->n_blocks = 1 + more;
    owned->timer = (struct pvs_timer){ 0 };
    owned->seg[0] = (struct pvs_seg){ .base = (uint8_t *)(owned + 1), .len = FIRST_ROOM };
    for (uint32_t i = 1; i <= more; i++) {
        struct pvs_block *b = block_take(slab);
        b->next = owned->blocks;
        owned->blocks = b;
        owned->seg[i] = (struct pvs_seg){ .base = b->data, .len = MORE_ROOM };
    }
    slab->held[port] += owned->n_blocks;

    struct pvs_cursor c = { .seg = owned->seg, .n = more + 1 };
    for (uint32_t i = 0; i < frame->n_seg; i++)
        pvs_cursor_write(&c, frame->seg[i].base, frame->seg[i].len);
    owned->frame = *frame;
    owned->frame.seg = owned->seg;
    owned->frame.n_seg = tail == 0 ? 0 : more + 1;
    if (tail != 0)
        owned->seg[more].len = (uint32_t)(more == 0 ? tail : tail - FIRST_ROOM - (more - 1) * MORE_ROOM);
    return owned;
}

void
pvs_owned_free(struct pvs_owned *owned)
{
    struct pvs_slab *slab = owned->slab;
    struct pvs_block *next;

    if (owned->wheel != NULL)
        pvs_wheel_cancel(owned->wheel, &owned->timer);
    slab->held[owned->port] -= owned->n_blocks;
    for (struct pvs_block *b = owned->blocks; b != NULL; b = next) {
        next = b->next;
        block_give(slab, b);
    }
    block_give(slab, owned);
}

struct pvs_owned *
pvs_hold(struct pvs_slab *slab, struct pvs_wheel *wheel, const struct pvs_frame *frame, uint32_t port, uint64_t at_ns,
         void (*fire)(struct pvs_timer *, uint64_t))
{
    struct pvs_owned *owned = pvs_own(slab, frame, port);
    if (owned != NULL) {
        owned->timer.fire = fire;
        owned->wheel = wheel;
        pvs_wheel_set(wheel, &owned->timer, at_ns);
    }
    return owned;
}
