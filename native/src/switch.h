/* SPDX-License-Identifier: Apache-2.0 */
/*
 * switch.h - what the control thread owns: the workers, the port indices, the commands under way.
 *
 * Shared by the files that implement pvs_api.h (switch.c, tables.c, publish.c, flows.c, ports.c, uplinks.c,
 * moves.c, vlan_counters.c); nobody else may include it.
 */
#ifndef PVS_SWITCH_H
#define PVS_SWITCH_H

#include "worker.h"

struct pvs_switch {
    struct pvs_switch_conf conf;
    int wake_fd;
    _Atomic bool wake_pending;
    bool running;
    uint64_t next_seq;
    uint32_t in_flight;        /* commands that were not reaped yet */
    uint64_t published;        /* publications so far, */
    uint64_t settled;          /* and the last that all workers have: they use no older tables */
    struct pvs_tables *tables; /* as last published */
    struct pvs_port *port[PVS_MAX_PORTS];
    uint16_t generation[PVS_MAX_PORTS];
    struct pvs_worker *worker[PVS_MAX_WORKERS];
    uint32_t queues_on[PVS_MAX_WORKERS]; /* started queues of each worker */
    struct pvs_vteps *vteps;
    struct pvs_flow_counters flow_counters;
    struct pvs_filter *samples; /* of the recorder, as last asked for */
    struct pvs_capture *capture[PVS_MAX_CAPTURES];
};

/* A command with `extra` bytes behind it, or NULL with -ENOMEM or -EAGAIN (too many under way) in *error. */
struct pvs_command *pvs_command_new(struct pvs_switch *sw, enum pvs_op op, uint32_t extra, int *error);
/* Give it a sequence number, which is returned; from now on it is under way. */
int64_t pvs_command_number(struct pvs_switch *sw, struct pvs_command *command);
/* Hand it to every worker. */
void pvs_command_hand(struct pvs_switch *sw, struct pvs_command *command);
/* Both. */
int64_t pvs_command_submit(struct pvs_switch *sw, struct pvs_command *command);

/* A command on a queue has come back: record what has become true. */
void pvs_queue_command_finish(struct pvs_queue *queue, enum pvs_op op, int64_t result);
/* The first half of a move has come back: begin the second. */
void pvs_move_released(struct pvs_switch *sw, struct pvs_command *command);
/* And the second: a stop that was kept back goes on its way. */
void pvs_move_adopted(struct pvs_queue *queue);

/* The tables for these ports and bridges. -EINVAL, -ENOMEM */
int pvs_tables_make(const struct pvs_port_conf *ports, uint32_t n_ports, const struct pvs_bridge_conf *bridges,
                    uint32_t n_bridges, struct pvs_tables **out);
void pvs_tables_free(struct pvs_tables *tables);
/* All workers have the tables that were published last. */
void pvs_tables_settled(struct pvs_switch *sw);

/* What the tables say of bridges' flows. -EINVAL, -ENOMEM */
int pvs_flows_fill(struct pvs_tables *tables, const struct pvs_bridge_conf *bridges, uint32_t n_bridges);
/* All workers have these tables: buckets of meters whose rate has changed begin full, as those of ports do (publish.c). */
void pvs_flow_meters_settle(struct pvs_tables *tables);

/* ---- between ports.c and uplinks.c ---- */

/* A port without queues, with its index. */
int pvs_port_allocate(struct pvs_switch *sw, struct pvs_port **out);
void pvs_port_free(struct pvs_port *port);
/* Say to which queues frames may go. */
void pvs_port_update_rx_up(struct pvs_port *port);
/* Who has the fewest queues, or who was named. */
uint32_t pvs_choose_worker(const struct pvs_switch *sw, int32_t wanted);
int64_t pvs_queue_command(struct pvs_queue *queue, enum pvs_op op);
/* The same for a start, which makes the queue its worker's. */
int64_t pvs_queue_start(struct pvs_queue *queue, enum pvs_op op);
/* The same for a stop: from now on nothing is delivered to it. */
int64_t pvs_queue_stop(struct pvs_queue *queue, enum pvs_op op);

#endif
