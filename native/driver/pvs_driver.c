/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Life of a driver guest, and what it tells a front end. See pvs_driver.h.
 */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

/* ---- Life ---- */

void
pvd_conf_default(struct pvd_conf *conf)
{
    *conf = (struct pvd_conf){
        .queue_size = 256,
        .queue_pairs = 1,
        .rx_buf_size = 2048,
        .tx_buf_size = 2048,
        .n_regions = 1,
        .features = 1ull << PVD_F_VERSION_1 | 1ull << PVD_F_ANY_LAYOUT | 1ull << PVD_F_MRG_RXBUF |
                    1ull << PVD_F_INDIRECT_DESC | 1ull << PVD_F_EVENT_IDX,
        .seed = 1,
    };
}

static bool
size_valid(uint32_t n, uint64_t features)
{
    bool packed = (features >> PVD_F_RING_PACKED & 1) != 0;
    return n <= 32768 && (packed ? n >= 1 : n >= 2 && (n & (n - 1)) == 0);
}

static bool
conf_valid(const struct pvd_conf *c)
{
    bool ring = size_valid(c->queue_size, c->features) && c->queue_pairs >= 1 && c->queue_pairs <= PVD_MAX_PAIRS;
    bool memory = c->n_regions >= 1 && c->n_regions <= PVD_MAX_REGIONS;
    uint32_t max_buf = 1u << 20;
    bool buffers = c->rx_buf_size > PVD_MAX_HDR_LEN && c->rx_buf_size <= max_buf && c->tx_buf_size > PVD_MAX_HDR_LEN &&
                   c->tx_buf_size <= max_buf;
    return ring && memory && buffers;
}

static void
set_features(struct pvd_guest *g, uint64_t features)
{
    g->conf.features = features;
    bool modern = pvd_has(g, PVD_F_MRG_RXBUF) || pvd_has(g, PVD_F_VERSION_1);
    g->hdr_len = modern ? PVD_MAX_HDR_LEN : PVD_MAX_HDR_LEN - 2;
}

static int
build(struct pvd_guest *g)
{
    g->view = malloc(sizeof(*g->view));
    g->queues = calloc(g->n_rings, sizeof(*g->queues));
    if (g->queues == NULL || g->view == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < g->n_rings; i++) {
        g->queues[i].kick_fd = -1;
        g->queues[i].call_fd = -1;
    }
    for (uint32_t i = 0; i < g->n_rings; i++) {
        int rc = pvd_queue_create(g, i);
        if (rc != 0) {
            return rc;
        }
    }
    return pvd_memory_place_rings(g);
}

int
pvd_guest_create(const struct pvd_conf *conf, pvd_guest **out)
{
    *out = NULL;
    if (!conf_valid(conf)) {
        return -EINVAL;
    }
    struct pvd_guest *g = calloc(1, sizeof(*g));
    if (g == NULL) {
        return -ENOMEM;
    }
    g->conf = *conf;
    g->n_rings = 2 * conf->queue_pairs;
    g->made_with = conf->features;
    g->rng = conf->seed != 0 ? conf->seed : 1;
    for (uint32_t i = 0; i < PVD_MAX_REGIONS; i++) {
        g->regions[i].fd = -1;
    }
    set_features(g, conf->features);
    int rc = pvd_memory_create(g);
    if (rc == 0) {
        rc = build(g);
    }
    if (rc != 0) {
        pvd_guest_destroy(g);
        return rc;
    }
    for (uint32_t i = 0; i < g->n_rings; i++) {
        pvd_queue_reset(&g->queues[i]);
    }
    *out = g;
    return 0;
}

void
pvd_guest_destroy(pvd_guest *guest)
{
    if (guest == NULL) {
        return;
    }
    for (uint32_t i = 0; guest->queues != NULL && i < guest->n_rings; i++) {
        pvd_queue_destroy(&guest->queues[i]);
    }
    pvd_memory_destroy(guest);
    free(guest->queues);
    free(guest->view);
    free(guest);
}

int
pvd_guest_reset(pvd_guest *guest, uint64_t features)
{
    uint64_t table = 1ull << PVD_F_INDIRECT_DESC;
    if (guest->mute) {
        return -EFAULT;
    }
    if ((features & ~guest->made_with & table) != 0 || !size_valid(guest->conf.queue_size, features)) {
        /* Slots were placed without room for a table, or the ring's size is none of a split ring. */
        return -EINVAL;
    }
    set_features(guest, features);
    for (uint32_t b = 0; b < guest->n_bridges; b++) {
        guest->bridges[b].busy = false;
    }
    for (uint32_t i = 0; i < guest->n_rings; i++) {
        pvd_queue_reset(&guest->queues[i]);
    }
    return 0;
}

void
pvd_stop(pvd_guest *guest, int stop)
{
    atomic_store_explicit(&guest->stop, stop != 0, memory_order_relaxed);
}

/* ---- Descriptions ---- */

uint32_t
pvd_n_regions(const pvd_guest *guest)
{
    return guest->conf.n_regions;
}

int
pvd_region_get(const pvd_guest *guest, uint32_t i, struct pvd_region *out)
{
    if (i >= guest->conf.n_regions) {
        return -EINVAL;
    }
    *out = guest->regions[i];
    return 0;
}

uint32_t
pvd_n_rings(const pvd_guest *guest)
{
    return guest->n_rings;
}

int
pvd_vring_get(const pvd_guest *guest, uint32_t ring, struct pvd_vring *out)
{
    const struct pvd_queue *q = pvd_queue_of(guest, ring);
    if (q == NULL) {
        return -EINVAL;
    }
    *out = (struct pvd_vring){ .num = q->num,
                               .desc_uva = (uint64_t)(uintptr_t)q->desc_area,
                               .avail_uva = (uint64_t)(uintptr_t)q->driver_area,
                               .used_uva = (uint64_t)(uintptr_t)q->device_area,
                               .kick_fd = q->kick_fd,
                               .call_fd = q->call_fd };
    return 0;
}

uint32_t
pvd_vring_base(const pvd_guest *guest, uint32_t ring)
{
    const struct pvd_queue *q = pvd_queue_of(guest, ring);
    return q == NULL || guest->mute ? 0 : q->ops->base(q);
}

uint32_t
pvd_hdr_len(const pvd_guest *guest)
{
    return guest->hdr_len;
}

int
pvd_counters_get(const pvd_guest *guest, uint32_t ring, struct pvd_counters *out)
{
    const struct pvd_queue *q = pvd_queue_of(guest, ring);
    if (q == NULL) {
        return -EINVAL;
    }
    *out = q->counters;
    out->in_flight = pvd_in_flight(q);
    return 0;
}
