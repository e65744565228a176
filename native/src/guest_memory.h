/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guest_memory.h - a guest's RAM as we see it: mapped regions, the address map over them, and what happens when it shrinks.
 *
 * How it works: control maps regions and builds an immutable, sorted map; workers translate through it without locks.
 * A map is replaced only while no ring of the port runs, so a worker never sees one vanish.
 * A front end may truncate the file behind a region. Touching the lost pages raises SIGBUS; the handler finds the region
 * by address, maps anonymous memory over the whole of it and marks the port: the access is repeated and reads zeros.
 *
 * Who may call: everything but the inline translators belongs to the control thread.
 */
#ifndef PVS_GUEST_MEMORY_H
#define PVS_GUEST_MEMORY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pvs_api.h"

struct pvs_region {
    uint64_t gpa, size, uva;
    uint8_t *host; /* where gpa lies in this process */
    void *map;     /* the mapping itself, page aligned */
    uint64_t map_len;
    uint32_t refs;
    _Atomic bool lost;       /* set by the SIGBUS handler, never cleared */
    _Atomic bool *port_lost; /* the owner's latch, set together with `lost` */
};

/* The hot part of a region, one per 24 bytes, sorted by gpa. */
struct pvs_span {
    uint64_t gpa, size;
    uint8_t *host;
};

struct pvs_memory {
    uint32_t n;
    struct pvs_region **regions; /* in the order of spans */
    struct pvs_span spans[];
};

/* A piece of a buffer: host memory that is contiguous, and the region it lies in. */
struct pvs_seg {
    uint8_t *base;
    uint32_t len;
    uint32_t region;
};

/* Install the SIGBUS handler (once per process, chained to the one before). */
int pvs_sigbus_install(void);

int pvs_region_create(_Atomic bool *port_lost, int fd, uint64_t gpa, uint64_t size, uint64_t uva, uint64_t offset,
                      struct pvs_region **out);

/* Where [uva, uva + len) lies, or NULL unless the whole range is inside one region that is not lost. */
void *pvs_memory_from_uva(const struct pvs_memory *memory, uint64_t uva, uint64_t len);

/* Index of the region that holds gpa, or memory->n; `hint` is tried first. */
static inline uint32_t
pvs_memory_find(const struct pvs_memory *memory, uint64_t gpa, uint32_t hint)
{
    if (hint < memory->n && gpa - memory->spans[hint].gpa < memory->spans[hint].size)
        return hint;
    uint32_t low = 0, high = memory->n;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (gpa - memory->spans[mid].gpa < memory->spans[mid].size)
            return mid;
        if (gpa < memory->spans[mid].gpa)
            high = mid;
        else
            low = mid + 1;
    }
    return memory->n;
}

/*
 * Translate [gpa, gpa + len) into at most `cap` segments, one for each region it crosses.
 * Returns how many; 0 when a part isn't mapped; more than `cap` when that was too small.
 */
static inline uint32_t
pvs_memory_translate(const struct pvs_memory *memory, uint64_t gpa, uint32_t len, uint32_t *hint, struct pvs_seg *seg,
                     uint32_t cap)
{
    uint32_t n = 0;
    while (len != 0) {
        uint32_t r = pvs_memory_find(memory, gpa, *hint);
        if (r == memory->n)
            return 0;
        if (n == cap)
            return cap + 1;
        const struct pvs_span *span = &memory->spans[r];
        uint64_t room = span->size - (gpa - span->gpa);
        uint32_t part = room < len ? (uint32_t)room : len;
        seg[n++] = (struct pvs_seg){ .base = span->host + (gpa - span->gpa), .len = part, .region = r };
        *hint = r;
        gpa += part;
        len -= part;
        if (gpa == 0 && len != 0)
            return 0; /* wrapped past the end of the address space */
    }
    return n;
}

#endif
