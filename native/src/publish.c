/* SPDX-License-Identifier: Apache-2.0 */
/*
 * publish.c - hands workers the tables that tables.c makes, and does what must be done before and after (pvs_api.h).
 */
#include "switch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Do the ports name only captures that there are? */
static bool
captures_known(const struct pvs_switch *sw, const struct pvs_port_conf *ports, uint32_t n_ports)
{
    uint32_t known = 0, named = 0;

    for (uint32_t i = 0; i < PVS_MAX_CAPTURES; i++)
        known |= sw->capture[i] != NULL ? 1U << i : 0;
    for (uint32_t p = 0; p < n_ports; p++)
        named |= ports[p].capture_in | ports[p].capture_out;
    return (named & ~known) == 0;
}

/* Which ports keep what is learned there, of each bridge: those that are gone, or on another one, no longer do. */
static void
sticky_tell(const struct pvs_tables *t, const struct pvs_bridge_conf *bridges, uint32_t n_bridges)
{
    for (uint32_t b = 0; b < n_bridges; b++)
        for (uint32_t p = 0; p < PVS_MAX_PORTS; p++) {
            const struct pvs_port_view *port = &t->port[p];
            bool sticky = port->ref != 0 && port->bridge == b && port->security != NULL && port->security->sticky;
            pvs_fdb_set_sticky(bridges[b].fdb, p, sticky ? port->ref : 0);
        }
}

/*
 * A bucket knows when it will be full at the rate that it had; at another one that may be years away. So a port whose limits
 * change begins with full ones, as soon as no worker charges by the old.
 */
static void
limits_compare(struct pvs_switch *sw, const struct pvs_tables *t)
{
    for (uint32_t p = 0; p < PVS_MAX_PORTS; p++) {
        const struct pvs_policy *now = t->port[p].policy, *before = sw->tables->port[p].policy;
        if (now != NULL && (before == NULL || memcmp(now, before, sizeof *now) != 0))
            t->port[p].port->limits_changed = true;
    }
}

void
pvs_tables_settled(struct pvs_switch *sw)
{
    for (uint32_t p = 0; p < PVS_MAX_PORTS; p++) {
        struct pvs_port *port = sw->port[p];
        if (port == NULL || !port->limits_changed)
            continue;
        port->limits_changed = false;
        for (uint32_t kind = 0; kind < PVS_STORM_CLASSES; kind++)
            pvs_meter_fill(&port->meters.storm[kind]);
        pvs_meter_fill(&port->meters.policing);
        pvs_meter_fill(&port->meters.shaping);
    }
    pvs_flow_meters_settle(sw->tables);
}

int64_t
pvs_publish(struct pvs_switch *sw, const struct pvs_port_conf *ports, uint32_t n_ports,
            const struct pvs_bridge_conf *bridges, uint32_t n_bridges)
{
    int rc;

    if (n_ports > PVS_MAX_PORTS || n_bridges > PVS_MAX_BRIDGES || !captures_known(sw, ports, n_ports))
        return -EINVAL;
    struct pvs_command *command = pvs_command_new(sw, PVS_OP_PUBLISH, 0, &rc);
    if (command == NULL)
        return rc;
    struct pvs_tables *tables;
    rc = pvs_tables_make(ports, n_ports, bridges, n_bridges, &tables);
    if (rc != 0) {
        free(command);
        return rc;
    }
    sticky_tell(tables, bridges, n_bridges);
    limits_compare(sw, tables);
    command->publish.tables = tables;
    command->publish.old = sw->tables;
    sw->tables = tables;
    command->publish.number = ++sw->published;
    for (uint32_t i = 0; i < n_ports; i++) {
        ports[i].port->published = sw->published;
        if (ports[i].tunnel != NULL)
            ports[i].tunnel->endpoint->published = sw->published;
    }
    return pvs_command_submit(sw, command);
}
