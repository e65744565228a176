/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ports.c - the control thread's side of a port: its index, its memory, starting and stopping its queues (pvs_api.h).
 * What only uplinks have is in uplinks.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "switch.h"
#include "virtqueue_any.h"

int
pvs_port_allocate(struct pvs_switch *sw, struct pvs_port **out)
{
    uint32_t index = 0;

    while (index < PVS_MAX_PORTS && sw->port[index] != NULL)
        index++;
    if (index == PVS_MAX_PORTS)
        return -ENOSPC;
    struct pvs_port *port = calloc(1, sizeof *port);
    if (port == NULL)
        return -ENOMEM;
    port->sw = sw;
    for (uint32_t i = 0; i < sw->conf.n_workers; i++) {
        port->counters[i] = aligned_alloc(64, sizeof *port->counters[i]);
        if (port->counters[i] == NULL) {
            while (i-- > 0)
                free(port->counters[i]);
            free(port);
            return -ENOMEM;
        }
        memset(port->counters[i], 0, sizeof *port->counters[i]);
    }
    if (++sw->generation[index] == 0)
        sw->generation[index] = 1; /* so that no reference is ever 0 */
    port->ref = (uint32_t)sw->generation[index] << 16 | index;
    sw->port[index] = port;
    *out = port;
    return 0;
}

void
pvs_port_free(struct pvs_port *port)
{
    pvs_memory_destroy(port->memory);
    for (uint32_t i = 0; i < port->n_uplinks; i++)
        pvs_uplink_detach(&port->uplink[i]);
    for (uint32_t i = 0; i < port->sw->conf.n_workers; i++)
        free(port->counters[i]);
    port->sw->port[pvs_ref_index(port->ref)] = NULL;
    free(port->ring);
    free(port->uplink);
    free(port);
}

int
pvs_port_create(struct pvs_switch *sw, uint32_t pairs, struct pvs_port **out)
{
    struct pvs_port *port;

    if (pairs == 0 || pairs > PVS_MAX_PAIRS)
        return -EINVAL;
    int rc = pvs_port_allocate(sw, &port);
    if (rc != 0)
        return rc;
    port->ring = calloc(2 * pairs, sizeof *port->ring);
    if (port->ring == NULL) {
        pvs_port_free(port);
        return -ENOMEM;
    }
    port->n_rings = 2 * pairs;
    for (uint32_t i = 0; i < port->n_rings; i++)
        port->ring[i] = (struct pvs_ring){ .queue = { .port = port, .kind = PVS_QUEUE_RING, .index = (uint16_t)i },
                                           .kick_fd = -1,
                                           .call_fd = -1 };
    *out = port;
    return 0;
}

static bool
any_started(const struct pvs_port *port)
{
    for (uint32_t i = 0; i < port->n_rings; i++)
        if (port->ring[i].queue.started)
            return true;
    for (uint32_t i = 0; i < port->n_uplinks; i++)
        if (port->uplink[i].queue.started)
            return true;
    return false;
}

int
pvs_port_destroy(struct pvs_port *port)
{
    /* workers use a publication until they have the next one; those after it, which others make all the time, don't count */
    bool in_tables = port->published != 0 && port->sw->settled <= port->published;

    if (any_started(port) || port->in_flight != 0 || in_tables)
        return -EBUSY;
    pvs_port_free(port);
    return 0;
}

uint32_t
pvs_port_index(const struct pvs_port *port)
{
    return pvs_ref_index(port->ref);
}

uint32_t
pvs_port_ref(const struct pvs_port *port)
{
    return port->ref;
}

int
pvs_region_map(struct pvs_port *port, int fd, uint64_t gpa, uint64_t size, uint64_t uva, uint64_t offset,
               struct pvs_region **out)
{
    return pvs_region_create(&port->memory_lost, fd, gpa, size, uva, offset, out);
}

int
pvs_port_set_memory(struct pvs_port *port, struct pvs_memory *memory, struct pvs_memory **old)
{
    if (any_started(port))
        return -EBUSY;
    *old = port->memory;
    port->memory = memory;
    bool lost = false;
    for (uint32_t i = 0; memory != NULL && i < memory->n; i++)
        lost |= atomic_load_explicit(&memory->regions[i]->lost, memory_order_relaxed);
    atomic_store_explicit(&port->memory_lost, lost, memory_order_relaxed);
    return 0;
}

/* Without O_NONBLOCK a front end could make a call block the worker. The flag is the file's, so the peer can clear it. */
static int
make_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    return 0;
}

/* ---- what rings and uplinks have in common ---- */

static bool
is_up(const struct pvs_queue *queue)
{
    return queue->ready && !queue->stopping;
}

/*
 * Say to which queues frames may go. One is there once its start is reaped, so every worker knows it, and no longer from
 * the moment a stop is asked for: a worker that looked before is done with it when it has carried that out.
 */
void
pvs_port_update_rx_up(struct pvs_port *port)
{
    uint32_t up = 0;
    for (uint32_t i = 0; i < port->n_rings; i += 2)
        if (is_up(&port->ring[i].queue) && atomic_load_explicit(&port->ring[i].enabled, memory_order_relaxed))
            up |= 1U << (i / 2);
    for (uint32_t i = 0; i < port->n_uplinks; i++)
        if (is_up(&port->uplink[i].queue))
            up |= 1U << i;
    /* a worker that latches the port at this moment is not overlooked for long: it looks at `broken` before delivering */
    if (atomic_load_explicit(&port->broken, memory_order_relaxed) != PVS_BROKEN_NONE)
        up = 0;
    /* release: the queues are complete when their bits can be seen */
    atomic_store_explicit(&port->rx_up, up, memory_order_release);
}

void
pvs_queue_command_finish(struct pvs_queue *queue, enum pvs_op op, int64_t result)
{
    struct pvs_port *port = queue->port;
    bool start = op == PVS_OP_RING_START || op == PVS_OP_UPLINK_START;
    bool stop = op == PVS_OP_RING_STOP || op == PVS_OP_UPLINK_STOP;

    port->in_flight--;
    if (op == PVS_OP_ADOPT)
        pvs_move_adopted(queue);
    queue->ready |= start && result >= 0;
    if ((stop || (start && result < 0)) && queue->started) { /* a stop may follow a start that failed */
        queue->started = queue->ready = queue->stopping = false;
        port->sw->queues_on[queue->worker]--;
        if (queue->kind == PVS_QUEUE_UPLINK)
            pvs_uplink_detach(pvs_uplink_of(queue));
    }
    pvs_port_update_rx_up(port);
}

static struct pvs_command *
queue_command(struct pvs_queue *queue, enum pvs_op op, int *error)
{
    struct pvs_command *command = pvs_command_new(queue->port->sw, op, 0, error);
    if (command == NULL)
        return NULL;
    command->queue = queue;
    command->worker = queue->move == PVS_MOVE_RELEASE ? PVS_NOBODY : queue->worker;
    queue->port->in_flight++;
    return command;
}

int64_t
pvs_queue_command(struct pvs_queue *queue, enum pvs_op op)
{
    int rc;
    struct pvs_command *command = queue_command(queue, op, &rc);
    return command == NULL ? rc : pvs_command_submit(queue->port->sw, command);
}

int64_t
pvs_queue_start(struct pvs_queue *queue, enum pvs_op op)
{
    memset(&queue->progress, 0, sizeof queue->progress);
    int64_t seq = pvs_queue_command(queue, op);
    if (seq >= 0) {
        queue->started = true;
        queue->port->sw->queues_on[queue->worker]++;
    }
    return seq;
}

int64_t
pvs_queue_stop(struct pvs_queue *queue, enum pvs_op op)
{
    int rc;

    if (queue->stopping)
        return -EALREADY;
    struct pvs_command *command = queue_command(queue, op, &rc);
    if (command == NULL)
        return rc;
    queue->stopping = true;
    pvs_port_update_rx_up(queue->port);
    int64_t seq = pvs_command_number(queue->port->sw, command);
    if (queue->move != PVS_MOVE_NONE)
        queue->stop_after = command;
    else
        pvs_command_hand(queue->port->sw, command);
    return seq;
}

uint32_t
pvs_choose_worker(const struct pvs_switch *sw, int32_t wanted)
{
    uint32_t best = 0;

    if (wanted >= 0)
        return (uint32_t)wanted;
    for (uint32_t i = 1; i < sw->conf.n_workers; i++)
        if (sw->queues_on[i] < sw->queues_on[best])
            best = i;
    return best;
}

/* ---- rings ---- */

/* Who polls the pair of a ring that is about to start: whoever has its other ring, who was named, or has the fewest. */
static uint32_t
choose_worker(const struct pvs_port *port, uint32_t index, int32_t wanted)
{
    const struct pvs_queue *other = &port->ring[index ^ 1].queue;

    return other->started ? other->worker : pvs_choose_worker(port->sw, wanted);
}

/* Everything that a worker will look at; none of them does before the start command. */
static int
ring_prepare(struct pvs_port *port, struct pvs_ring *ring, const struct pvs_ring_conf *conf)
{
    int rc = pvs_vq_attach(&ring->vq, port->memory, conf);
    if (rc == 0 && conf->call_fd >= 0)
        rc = make_nonblocking(conf->call_fd);
    if (rc != 0)
        return rc;
    ring->offloads =
        pvs_ring_is_guest_tx(ring) ? pvs_offloads_sent(conf->features) : pvs_offloads_taken(conf->features);
    ring->queue.worker = choose_worker(port, ring->queue.index, conf->worker);
    ring->kick_fd = conf->kick_fd;
    ring->queue.kickless = conf->kick_fd < 0;
    ring->touched = ring->notify = 0;
    ring->room_armed = false;
    ring->full_since_ns = 0;
    atomic_store_explicit(&ring->waiters, 0, memory_order_relaxed);
    atomic_store_explicit(&ring->call_fd, conf->call_fd, memory_order_relaxed);
    atomic_store_explicit(&ring->kicks, 0, memory_order_relaxed);
    atomic_store_explicit(&ring->enabled, conf->enabled, memory_order_relaxed);
    return 0;
}

int64_t
pvs_ring_start(struct pvs_port *port, uint32_t index, const struct pvs_ring_conf *conf)
{
    if (index >= port->n_rings || conf->worker < -1 || conf->worker >= (int32_t)port->sw->conf.n_workers)
        return -EINVAL;
    struct pvs_ring *ring = &port->ring[index];
    if (ring->queue.started)
        return -EBUSY;
    if (atomic_load_explicit(&port->memory_lost, memory_order_relaxed))
        return -EFAULT;
    int rc = ring_prepare(port, ring, conf);
    if (rc != 0)
        return rc;
    if (!any_started(port))
        atomic_store_explicit(&port->broken, PVS_BROKEN_NONE, memory_order_relaxed);
    return pvs_queue_start(&ring->queue, PVS_OP_RING_START);
}

int64_t
pvs_ring_stop(struct pvs_port *port, uint32_t index)
{
    if (index >= port->n_rings || !port->ring[index].queue.started)
        return -EINVAL;
    return pvs_queue_stop(&port->ring[index].queue, PVS_OP_RING_STOP);
}

int64_t
pvs_ring_enable(struct pvs_port *port, uint32_t index, bool enabled)
{
    if (index >= port->n_rings)
        return -EINVAL;
    bool before = atomic_exchange_explicit(&port->ring[index].enabled, enabled, memory_order_relaxed);
    pvs_port_update_rx_up(port);
    int64_t seq = pvs_queue_command(&port->ring[index].queue, PVS_OP_RING_ENABLE);
    if (seq < 0) {
        atomic_store_explicit(&port->ring[index].enabled, before, memory_order_relaxed);
        pvs_port_update_rx_up(port);
    }
    return seq;
}

int64_t
pvs_ring_set_call(struct pvs_port *port, uint32_t index, int call_fd)
{
    int rc = index >= port->n_rings ? -EINVAL : call_fd >= 0 ? make_nonblocking(call_fd) : 0;
    if (rc != 0)
        return rc;
    /* release: see call_guests; what was there before is only put back */
    int old = atomic_exchange_explicit(&port->ring[index].call_fd, call_fd, memory_order_acq_rel);
    int64_t seq = pvs_queue_command(&port->ring[index].queue, PVS_OP_RING_CALL);
    if (seq < 0)
        atomic_store_explicit(&port->ring[index].call_fd, old, memory_order_relaxed);
    return seq;
}

int
pvs_ring_status(const struct pvs_port *port, uint32_t index, struct pvs_ring_status *out)
{
    if (index >= port->n_rings)
        return -EINVAL;
    const struct pvs_ring *ring = &port->ring[index];
    *out = (struct pvs_ring_status){
        .running = atomic_load_explicit(&ring->queue.running, memory_order_relaxed),
        .enabled = atomic_load_explicit(&ring->enabled, memory_order_relaxed),
        .kicks = atomic_load_explicit(&ring->kicks, memory_order_relaxed),
        .packets = atomic_load_explicit(&ring->packets, memory_order_relaxed),
        .bytes = atomic_load_explicit(&ring->bytes, memory_order_relaxed),
        .notifications = atomic_load_explicit(&ring->notifications, memory_order_relaxed),
        .notifications_suppressed = atomic_load_explicit(&ring->notifications_suppressed, memory_order_relaxed),
        .cycles = atomic_load_explicit(&ring->queue.cycles, memory_order_relaxed),
        .worker = ring->queue.worker,
    };
    /* the ring is mapped for as long as it is started, and control is who unmaps */
    if (ring->queue.started) {
        pvs_vq_progress(&ring->vq, &out->avail_idx, &out->used_idx);
        out->silent = out->avail_idx == (ring->vq.packed ? VRING_PACKED_WRAP : 0); /* where a driver begins */
    }
    return 0;
}

uint32_t
pvs_port_broken(const struct pvs_port *port)
{
    return atomic_load_explicit(&port->broken, memory_order_relaxed);
}

const char *
pvs_broken_reason(uint32_t code)
{
    static const char *const text[] = {
#define X(name, words) words,
        PVS_BROKEN_REASONS(X)
#undef X
    };
    return code < PVS_BROKEN_COUNT ? text[code] : "unknown";
}

int64_t
pvs_inject(struct pvs_port *port, uint32_t direction, const uint8_t *frame, uint32_t len)
{
    int rc;

    if (direction > PVS_EGRESS || len < PVS_ETH_HLEN || len > PVS_MAX_FRAME)
        return -EINVAL;
    struct pvs_command *command = pvs_command_new(port->sw, PVS_OP_INJECT, len, &rc);
    if (command == NULL)
        return rc;
    command->inject.port_ref = port->ref;
    command->inject.direction = direction;
    command->inject.len = len;
    memcpy(command->bytes, frame, len);
    return pvs_command_submit(port->sw, command);
}

void
pvs_port_counters(const struct pvs_port *port, uint64_t *counters, uint64_t *rx_drops, uint64_t *tx_drops)
{
    memset(counters, 0, PVS_COUNTER_COUNT * sizeof *counters);
    memset(rx_drops, 0, PVS_DROP_COUNT * sizeof *rx_drops);
    memset(tx_drops, 0, PVS_DROP_COUNT * sizeof *tx_drops);
    for (uint32_t w = 0; w < port->sw->conf.n_workers; w++) {
        const struct pvs_counters *c = port->counters[w];
        for (int i = 0; i < PVS_COUNTER_COUNT; i++)
            counters[i] += atomic_load_explicit(&c->value[i], memory_order_relaxed);
        for (int i = 0; i < PVS_DROP_COUNT; i++) {
            rx_drops[i] += atomic_load_explicit(&c->rx_drop[i], memory_order_relaxed);
            tx_drops[i] += atomic_load_explicit(&c->tx_drop[i], memory_order_relaxed);
        }
    }
}
