/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tunnels.c - the control thread's side of tunnels: their ports, their remotes, the VTEPs that the switch knows (pvs_api.h).
 */
#include <errno.h>
#include <stdlib.h>

#include "switch.h"

int
pvs_tunnel_port_create(struct pvs_switch *sw, struct pvs_port **out)
{
    return pvs_port_allocate(sw, out);
}

int
pvs_tunnel_create(struct pvs_switch *sw, const struct pvs_tunnel_conf *conf, struct pvs_tunnel **out)
{
    int rc = pvs_tunnel_check(conf);

    return rc != 0 ? rc : pvs_tunnel_make(sw, conf, out);
}

void
pvs_tunnel_destroy(struct pvs_tunnel *tunnel)
{
    pvs_tunnel_free(tunnel);
}

static bool
are_numbers(const uint16_t *vtep, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (vtep[i] == 0 || vtep[i] >= PVS_MAX_VTEPS)
            return false;
    return true;
}

int64_t
pvs_tunnel_set_remotes(struct pvs_tunnel *tunnel, uint32_t segment, const uint16_t *flood, uint32_t n_flood,
                       const uint16_t *others, uint32_t n_others)
{
    int rc;

    if (segment >= tunnel->n_segments || n_flood > PVS_MAX_VTEPS || n_others > PVS_MAX_VTEPS ||
        !are_numbers(flood, n_flood) || !are_numbers(others, n_others))
        return -EINVAL;
    struct pvs_command *command = pvs_command_new(tunnel->sw, PVS_OP_REMOTES, 0, &rc);
    if (command == NULL)
        return rc;
    struct pvs_remotes *remotes = pvs_remotes_make(flood, n_flood, others, n_others);
    if (remotes == NULL) {
        free(command);
        return -ENOMEM;
    }
    /* release: the list is complete when it can be seen; what was there before is freed once nobody reads it */
    command->remotes = atomic_exchange_explicit(&tunnel->segment[segment].remotes, remotes, memory_order_acq_rel);
    return pvs_command_submit(tunnel->sw, command);
}

uint32_t
pvs_tunnel_error(const struct pvs_tunnel *tunnel)
{
    return atomic_load_explicit(&tunnel->error, memory_order_relaxed);
}

int
pvs_vtep_add(struct pvs_switch *sw, const uint8_t *address, uint32_t *number)
{
    return pvs_vteps_add(sw->vteps, address, number);
}

int
pvs_vtep_info(const struct pvs_switch *sw, uint32_t number, uint64_t now_ns, struct pvs_vtep_info *out)
{
    return pvs_vteps_info(sw->vteps, number, (uint32_t)(now_ns / 1000000000ULL), out);
}

int
pvs_vtep_unlink(struct pvs_switch *sw, uint32_t number)
{
    return pvs_vteps_unlink(sw->vteps, number);
}

int
pvs_vtep_free(struct pvs_switch *sw, uint32_t number)
{
    return pvs_vteps_free(sw->vteps, number);
}
