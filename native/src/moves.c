/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moves.c - the control thread's side of a move: a queue that frames come from goes from one worker to another
 * (pvs_api.h).
 *
 * How it works: one command goes round twice under one number. As RELEASE it has the old worker take the queue out of its
 * set and its descriptor out of its epoll; when that is reaped the queue is nobody's. Then it goes round as ADOPT: the new
 * worker has the descriptor wake it, and looks once. All else of the queue's state stays as it is in between: what the
 * ring has seen, frames that an uplink has fetched, a frame that is half delivered. The channels between control and the
 * workers carry it over, so nobody needs a lock. All that can fail, a place in the new worker's epoll, is done before.
 *
 * Other commands on the queue go to who has it; while nobody has it they need nobody, since ADOPT does what they would. A
 * stop is the exception: it is kept back until the move has ended. So a caller that stops a queue need not know of moves.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "switch.h"

static int64_t
move(struct pvs_queue *queue, uint32_t worker)
{
    struct pvs_switch *sw = queue->port->sw;
    int fd = pvs_queue_wake_fd(queue), rc;

    if (!queue->started || worker >= sw->conf.n_workers)
        return -EINVAL;
    if (!queue->ready || queue->stopping)
        return -EBUSY;
    if (queue->move != PVS_MOVE_NONE || queue->worker == worker)
        return -EALREADY;
    struct pvs_command *command = pvs_command_new(sw, PVS_OP_RELEASE, 0, &rc);
    if (command == NULL)
        return rc;
    /* a place that wakes nobody yet; without the edge trigger an error of the descriptor would, again and again */
    struct epoll_event place = { .events = EPOLLET };
    if (fd >= 0 && epoll_ctl(sw->worker[worker]->epoll_fd, EPOLL_CTL_ADD, fd, &place) != 0) {
        rc = -errno;
        free(command);
        return rc;
    }
    command->queue = queue;
    command->worker = queue->worker;
    queue->move = PVS_MOVE_RELEASE;
    queue->move_to = worker;
    queue->port->in_flight++;
    return pvs_command_submit(sw, command);
}

int64_t
pvs_ring_move(struct pvs_port *port, uint32_t index, uint32_t worker)
{
    if (index >= port->n_rings || !pvs_ring_is_guest_tx(&port->ring[index]))
        return -EINVAL;
    return move(&port->ring[index].queue, worker);
}

int64_t
pvs_uplink_move(struct pvs_port *port, uint32_t index, uint32_t worker)
{
    if (index >= port->n_uplinks)
        return -EINVAL;
    return move(&port->uplink[index].queue, worker);
}

void
pvs_move_released(struct pvs_switch *sw, struct pvs_command *command)
{
    struct pvs_queue *queue = command->queue;

    sw->queues_on[queue->worker]--;
    queue->worker = queue->move_to;
    sw->queues_on[queue->worker]++;
    queue->move = PVS_MOVE_ADOPT;
    command->op = PVS_OP_ADOPT;
    command->worker = queue->worker;
    pvs_command_hand(sw, command);
}

void
pvs_move_adopted(struct pvs_queue *queue)
{
    struct pvs_command *stop = queue->stop_after;

    queue->move = PVS_MOVE_NONE;
    queue->stop_after = NULL;
    if (stop != NULL) {
        stop->worker = queue->worker;
        pvs_command_hand(queue->port->sw, stop);
    }
}
