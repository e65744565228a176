/* SPDX-License-Identifier: Apache-2.0 */
/* vlan_counters.c - what has come in each VLAN of a bridge, counted by each worker for itself (pvs_api.h). */
#include "switch.h"

#include <errno.h>
#include <stdlib.h>

int
pvs_vlan_counters_create(struct pvs_switch *sw, struct pvs_vlan_counters **out)
{
    struct pvs_vlan_counters *c = calloc(1, sizeof *c);
    int rc = c == NULL ? -ENOMEM : 0;

    for (uint32_t i = 0; rc == 0 && i < sw->conf.n_workers; i++) {
        c->of[i] = calloc(PVS_VIDS, sizeof *c->of[i]);
        rc = c->of[i] == NULL ? -ENOMEM : 0;
    }
    if (rc != 0) {
        pvs_vlan_counters_destroy(c);
        return rc;
    }
    *out = c;
    return 0;
}

void
pvs_vlan_counters_destroy(struct pvs_vlan_counters *c)
{
    for (uint32_t i = 0; c != NULL && i < PVS_MAX_WORKERS; i++)
        free(c->of[i]);
    free(c);
}

void
pvs_vlan_counters_read(const struct pvs_vlan_counters *c, uint16_t vid, uint64_t *packets, uint64_t *bytes)
{
    *packets = *bytes = 0;
    for (uint32_t i = 0; i < PVS_MAX_WORKERS && c->of[i] != NULL; i++) {
        *packets += atomic_load_explicit(&c->of[i][vid % PVS_VIDS].packets, memory_order_relaxed);
        *bytes += atomic_load_explicit(&c->of[i][vid % PVS_VIDS].bytes, memory_order_relaxed);
    }
}
