/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uplinks.c - the control thread's side of uplinks: starting and stopping their queues (pvs_api.h).
 */
#include <errno.h>
#include <stdlib.h>

#include "switch.h"

int
pvs_uplink_create(struct pvs_switch *sw, uint32_t queues, struct pvs_port **out)
{
    struct pvs_port *port;

    if (queues == 0 || queues > PVS_MAX_PAIRS)
        return -EINVAL;
    int rc = pvs_port_allocate(sw, &port);
    if (rc != 0)
        return rc;
    port->uplink = calloc(queues, sizeof *port->uplink);
    if (port->uplink == NULL) {
        pvs_port_free(port);
        return -ENOMEM;
    }
    port->n_uplinks = queues;
    for (uint32_t i = 0; i < queues; i++)
        port->uplink[i] =
            (struct pvs_uplink){ .queue = { .port = port, .kind = PVS_QUEUE_UPLINK, .index = (uint16_t)i }, .fd = -1 };
    *out = port;
    return 0;
}

int64_t
pvs_uplink_start(struct pvs_port *port, uint32_t index, const struct pvs_uplink_conf *conf)
{
    if (index >= port->n_uplinks || conf->worker < -1 || conf->worker >= (int32_t)port->sw->conf.n_workers)
        return -EINVAL;
    struct pvs_uplink *u = &port->uplink[index];
    if (u->queue.started)
        return -EBUSY;
    int rc = pvs_uplink_attach(u, conf);
    if (rc != 0)
        return rc;
    u->queue.worker = pvs_choose_worker(port->sw, conf->worker);
    int64_t seq = pvs_queue_start(&u->queue, PVS_OP_UPLINK_START);
    if (seq < 0)
        pvs_uplink_detach(u);
    return seq;
}

int64_t
pvs_uplink_stop(struct pvs_port *port, uint32_t index)
{
    if (index >= port->n_uplinks || !port->uplink[index].queue.started)
        return -EINVAL;
    return pvs_queue_stop(&port->uplink[index].queue, PVS_OP_UPLINK_STOP);
}

int
pvs_uplink_status(const struct pvs_port *port, uint32_t index, struct pvs_uplink_status *out)
{
    if (index >= port->n_uplinks)
        return -EINVAL;
    const struct pvs_uplink *u = &port->uplink[index];
    *out = (struct pvs_uplink_status){
        .running = atomic_load_explicit(&u->queue.running, memory_order_relaxed),
        .error = atomic_load_explicit(&u->error, memory_order_relaxed),
        .rx_packets = atomic_load_explicit(&u->rx_packets, memory_order_relaxed),
        .rx_bytes = atomic_load_explicit(&u->rx_bytes, memory_order_relaxed),
        .tx_packets = atomic_load_explicit(&u->tx_packets, memory_order_relaxed),
        .tx_bytes = atomic_load_explicit(&u->tx_bytes, memory_order_relaxed),
        .cycles = atomic_load_explicit(&u->queue.cycles, memory_order_relaxed),
        .worker = u->queue.worker,
    };
    return 0;
}
