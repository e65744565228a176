/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest RAM: regions, what is placed where, and translation.
 *
 * Rings and slots never cross a border by accident: each item is placed within one region, and items go to
 * the regions in turn, so that a back end that can only see the first region fails at once. Crossing on
 * purpose is what bridges are for: one slot on each border of adjacent regions, used by PVD_LAYOUT_STRADDLE.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE      4096u
#define GPA_BASE  0x40000000ull /* so that low addresses, 0 above all, are never guest memory */
#define FILE_SKEW PAGE          /* ONE_FILE: so that no region begins at offset 0 */

static uint64_t
table_size(const struct pvd_guest *g)
{
    return pvd_has(g, PVD_F_INDIRECT_DESC) ? PVD_MAX_SEGS * sizeof(struct pvd_desc) : 0;
}

static uint32_t
data_size(const struct pvd_guest *g, uint32_t ring)
{
    uint32_t buffer = ring % 2 == 0 ? g->conf.rx_buf_size : g->conf.tx_buf_size;
    return (uint32_t)pvd_round_up(buffer + PVD_MAX_SEGS * PVD_GUARD_LEN, PVD_CACHE_LINE);
}

/* Data and indirect table. An odd number of cache lines, so that slots don't all fall into the same cache
 * sets. */
static uint64_t
slot_stride(const struct pvd_guest *g, uint32_t ring)
{
    uint64_t lines = pvd_round_up(data_size(g, ring) + table_size(g), PVD_CACHE_LINE) / PVD_CACHE_LINE;
    return (lines | 1) * PVD_CACHE_LINE;
}

static uint64_t
bridge_half(const struct pvd_guest *g)
{
    uint32_t rx = data_size(g, 0);
    uint32_t tx = data_size(g, 1);
    return pvd_round_up(rx > tx ? rx : tx, PAGE);
}

/* The parts of a ring are placed for the split format: descriptors are as large in the packed one, and its event areas
 * are smaller, so that a reset may change the format. */
static uint64_t
desc_bytes(const struct pvd_guest *g)
{
    return (uint64_t)g->conf.queue_size * sizeof(struct pvd_desc);
}

static uint64_t
avail_bytes(const struct pvd_guest *g)
{
    return sizeof(struct pvd_avail) + ((uint64_t)g->conf.queue_size + 1) * sizeof(uint16_t);
}

static uint64_t
used_bytes(const struct pvd_guest *g)
{
    return sizeof(struct pvd_used) + (uint64_t)g->conf.queue_size * sizeof(struct pvd_used_elem) + sizeof(uint16_t);
}

/* Bytes of each region when nobody said: an equal share of everything, and room for what the shares can't
 * halve. */
static uint64_t
region_size_needed(const struct pvd_guest *g)
{
    uint64_t rings = 3 * (uint64_t)PVD_CACHE_LINE + desc_bytes(g) + avail_bytes(g) + used_bytes(g);
    uint64_t total = 0;
    for (uint32_t ring = 0; ring < g->n_rings; ring++) {
        total += rings + g->conf.queue_size * slot_stride(g, ring);
    }
    uint64_t slack = desc_bytes(g) + used_bytes(g) + slot_stride(g, 0) + slot_stride(g, 1) + PVD_SCRATCH_SIZE;
    return total / g->conf.n_regions + slack + 2 * bridge_half(g);
}

static int
region_open(struct pvd_guest *g, uint32_t i, uint64_t size)
{
    struct pvd_region *r = &g->regions[i];
    bool one_file = (g->conf.flags & PVD_CONF_ONE_FILE) != 0;
    bool adjacent = (g->conf.flags & PVD_CONF_ADJACENT) != 0;
    r->size = size;
    r->gpa = GPA_BASE + i * size * (adjacent ? 1 : 2);
    r->mmap_offset = one_file ? FILE_SKEW + i * size : 0;
    if (one_file && i > 0) {
        r->fd = dup(g->regions[0].fd);
    } else {
        r->fd = memfd_create("pvswitch-guest", MFD_CLOEXEC);
    }
    if (r->fd < 0) {
        return -errno;
    }
    uint64_t file_size = one_file ? FILE_SKEW + g->conf.n_regions * size : size;
    if ((!one_file || i == 0) && ftruncate(r->fd, (off_t)file_size) != 0) {
        return -errno;
    }
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, (off_t)r->mmap_offset);
    if (p == MAP_FAILED) {
        return -errno;
    }
    r->uva = (uint64_t)(uintptr_t)p;
    return 0;
}

int
pvd_memory_create(struct pvd_guest *g)
{
    uint32_t n = g->conf.n_regions;
    uint64_t size = g->conf.mem_size != 0 ? g->conf.mem_size / n : region_size_needed(g);
    size = pvd_round_up(size, PAGE);
    uint64_t half = bridge_half(g);
    if (size < 2 * half + PVD_SCRATCH_SIZE) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n; i++) {
        g->regions[i].fd = -1;
    }
    for (uint32_t i = 0; i < n; i++) {
        int rc = region_open(g, i, size);
        if (rc != 0) {
            return rc;
        }
        g->place_next[i] = g->regions[i].gpa;
        g->place_end[i] = g->regions[i].gpa + size;
    }
    g->place_end[n - 1] -= PVD_SCRATCH_SIZE;
    g->scratch_gpa = g->place_end[n - 1];
    if ((g->conf.flags & PVD_CONF_ADJACENT) != 0) {
        /* Transmit rings first: the border of a guest of two regions is best used by what a switch reads. */
        for (uint32_t b = 0; b + 1 < n; b++) {
            g->bridges[b] = (struct pvd_bridge){ .border = g->regions[b + 1].gpa, .ring = (b + 1) % g->n_rings };
            g->place_end[b] -= half;
            g->place_next[b + 1] += half;
        }
        g->n_bridges = n - 1;
    }
    return 0;
}

void
pvd_memory_destroy(struct pvd_guest *g)
{
    for (uint32_t i = 0; i < g->conf.n_regions; i++) {
        struct pvd_region *r = &g->regions[i];
        if (r->uva != 0) {
            munmap((void *)(uintptr_t)r->uva, r->size);
        }
        if (r->fd >= 0) {
            close(r->fd);
        }
    }
}

/* Place `size` bytes in region `first` or, when it is full there, in the next that has room. 0 when none has.
 */
static uint64_t
place(struct pvd_guest *g, uint32_t first, uint64_t size)
{
    for (uint32_t i = 0; i < g->conf.n_regions; i++) {
        uint32_t r = (first + i) % g->conf.n_regions;
        uint64_t at = pvd_round_up(g->place_next[r], PVD_CACHE_LINE);
        if (at + size <= g->place_end[r]) {
            g->place_next[r] = at + size;
            return at;
        }
    }
    return 0;
}

/* With SHUFFLE a buffer's address tells nothing of its neighbour's in the ring, as in a guest that ran for a while. */
static int
place_slots(struct pvd_queue *q)
{
    struct pvd_guest *g = q->guest;
    uint64_t stride = slot_stride(g, q->index);
    for (uint32_t i = 0; i < q->num; i++) {
        uint64_t gpa = place(g, i, stride);
        if (gpa == 0) {
            return -ENOMEM;
        }
        q->slots[i] = (struct pvd_slot){ .gpa = gpa, .ptr = pvd_ptr(g, gpa, stride) };
        if ((g->conf.flags & PVD_CONF_PRESET) != 0 && q->index % 2 == 0) {
            const struct pvd_net_header preset = { .num_buffers = 1 };
            memcpy(q->slots[i].ptr, &preset, sizeof(preset));
        }
    }
    for (uint32_t i = q->num; (g->conf.flags & PVD_CONF_SHUFFLE) != 0 && i > 1; i--) {
        uint32_t pick = pvd_random(g, i);
        struct pvd_slot other = q->slots[pick];
        q->slots[pick] = q->slots[i - 1];
        q->slots[i - 1] = other;
    }
    return 0;
}

/* The three parts of a ring in three regions, where there are as many, and its slots over all of them. */
static int
place_queue(struct pvd_queue *q)
{
    struct pvd_guest *g = q->guest;
    uint64_t desc = place(g, q->index, desc_bytes(g));
    uint64_t avail = place(g, q->index + 1, avail_bytes(g));
    uint64_t used = place(g, q->index + 2, used_bytes(g));
    if (desc == 0 || avail == 0 || used == 0) {
        return -ENOMEM;
    }
    q->desc_area = pvd_ptr(g, desc, desc_bytes(g));
    q->driver_area = pvd_ptr(g, avail, avail_bytes(g));
    q->device_area = pvd_ptr(g, used, used_bytes(g));
    q->slot_size = data_size(g, q->index);
    return place_slots(q);
}

int
pvd_memory_place_rings(struct pvd_guest *g)
{
    for (uint32_t i = 0; i < g->n_rings; i++) {
        int rc = place_queue(&g->queues[i]);
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

/* The indirect table of a head lies behind the data area of its slot. */
uint64_t
pvd_table_gpa(const struct pvd_queue *q, uint16_t head)
{
    return q->slots[head].gpa + q->slot_size;
}

static const struct pvd_region *
region_of(const struct pvd_guest *g, uint64_t gpa)
{
    for (uint32_t i = 0; i < g->conf.n_regions; i++) {
        if (gpa >= g->regions[i].gpa && gpa - g->regions[i].gpa < g->regions[i].size) {
            return &g->regions[i];
        }
    }
    return NULL;
}

uint8_t *
pvd_piece(const struct pvd_guest *g, uint64_t gpa, uint32_t *len)
{
    const struct pvd_region *r = region_of(g, gpa);
    if (r == NULL) {
        return NULL;
    }
    uint64_t room = r->gpa + r->size - gpa;
    if (*len > room) {
        *len = (uint32_t)room;
    }
    return (uint8_t *)(uintptr_t)(r->uva + (gpa - r->gpa));
}

void
pvd_copy_in(const struct pvd_guest *g, uint64_t gpa, const void *src, uint32_t len)
{
    const uint8_t *from = src;
    while (len > 0) {
        uint32_t n = len;
        uint8_t *to = pvd_piece(g, gpa, &n);
        memcpy(to, from, n);
        gpa += n;
        from += n;
        len -= n;
    }
}

void
pvd_copy_out(const struct pvd_guest *g, void *dst, uint64_t gpa, uint32_t len)
{
    uint8_t *to = dst;
    while (len > 0) {
        uint32_t n = len;
        const uint8_t *from = pvd_piece(g, gpa, &n);
        memcpy(to, from, n);
        gpa += n;
        to += n;
        len -= n;
    }
}

void *
pvd_ptr(const pvd_guest *guest, uint64_t gpa, uint64_t len)
{
    const struct pvd_region *r = region_of(guest, gpa);
    if (r == NULL || len > r->gpa + r->size - gpa) {
        return NULL;
    }
    return (void *)(uintptr_t)(r->uva + (gpa - r->gpa));
}

uint64_t
pvd_gpa(const pvd_guest *guest, const void *ptr)
{
    uint64_t uva = (uint64_t)(uintptr_t)ptr;
    for (uint32_t i = 0; i < guest->conf.n_regions; i++) {
        const struct pvd_region *r = &guest->regions[i];
        if (uva >= r->uva && uva - r->uva < r->size) {
            return r->gpa + (uva - r->uva);
        }
    }
    return 0;
}

uint64_t
pvd_scratch_gpa(const pvd_guest *guest)
{
    return guest->scratch_gpa;
}

int
pvd_truncate_memory(pvd_guest *guest, uint32_t region, uint64_t size)
{
    if (region >= guest->conf.n_regions || size > guest->regions[region].size) {
        return -EINVAL;
    }
    const struct pvd_region *r = &guest->regions[region];
    guest->mute = true;
    return ftruncate(r->fd, (off_t)(r->mmap_offset + size)) == 0 ? 0 : -errno;
}
