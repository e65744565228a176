/* SPDX-License-Identifier: Apache-2.0 */
/* flow_count.c - see flow_count.h. */
#include "flow_count.h"

#include <errno.h>
#include <stdlib.h>

int
pvs_flow_counters_take(struct pvs_flow_counters *c, uint32_t *counter)
{
    if (c->n_free != 0) {
        *counter = c->free[--c->n_free];
        return 0;
    }
    if (c->n == PVS_FLOW_COUNTERS)
        return -ENOSPC;
    uint32_t chunk = c->n / PVS_FLOW_CHUNK;
    if (c->chunk[chunk] == NULL) {
        /* room for all that may be given back, so that giving back can't fail */
        uint32_t *room = realloc(c->free, (size_t)(chunk + 1) * PVS_FLOW_CHUNK * sizeof *room);
        if (room == NULL)
            return -ENOMEM;
        c->free = room;
        c->chunk[chunk] = calloc((size_t)c->n_workers * PVS_FLOW_CHUNK, sizeof *c->chunk[chunk]);
        if (c->chunk[chunk] == NULL)
            return -ENOMEM;
    }
    *counter = c->n++;
    return 0;
}

void
pvs_flow_counters_give(struct pvs_flow_counters *c, uint32_t counter)
{
    c->free[c->n_free++] = counter;
}

void
pvs_flow_counters_free(struct pvs_flow_counters *c)
{
    for (uint32_t i = 0; i < PVS_FLOW_CHUNKS; i++)
        free(c->chunk[i]);
    free(c->free);
    c->free = NULL;
}

int
pvs_flow_meter_create(struct pvs_switch *sw, struct pvs_flow_meter **out)
{
    (void)sw;
    struct pvs_flow_meter *meter = aligned_alloc(64, sizeof *meter);
    if (meter == NULL)
        return -ENOMEM;
    *meter = (struct pvs_flow_meter){ 0 };
    *out = meter;
    return 0;
}

void
pvs_flow_meter_destroy(struct pvs_flow_meter *meter)
{
    free(meter);
}

void
pvs_flow_meter_read(const struct pvs_flow_meter *meter, uint64_t *packets, uint64_t *bytes, uint64_t *dropped_packets,
                    uint64_t *dropped_bytes)
{
    *packets = *bytes = *dropped_packets = *dropped_bytes = 0;
    for (uint32_t i = 0; i < PVS_MAX_WORKERS; i++) {
        *packets += atomic_load_explicit(&meter->of[i].packets, memory_order_relaxed);
        *bytes += atomic_load_explicit(&meter->of[i].bytes, memory_order_relaxed);
        *dropped_packets += atomic_load_explicit(&meter->of[i].dropped_packets, memory_order_relaxed);
        *dropped_bytes += atomic_load_explicit(&meter->of[i].dropped_bytes, memory_order_relaxed);
    }
}
