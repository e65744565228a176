/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Notifications of either format: kicks to the device, and the wish to be called by it.
 *
 * "I published something, do you sleep?" needs store-load order on both sides: a full fence between publishing and reading
 * what the device wants (kick), and between writing what the driver wants and looking at the ring once more (arm). Without
 * it both sides may see the other's old value and wait for ever.
 */
#include "internal.h"

#include <errno.h>
#include <unistd.h>

static void
write_kick(const struct pvd_queue *q)
{
    uint64_t one = 1;
    /* EAGAIN means that the counter is full, so that the device has been told often enough. */
    ssize_t n = write(q->kick_fd, &one, sizeof(one));
    (void)n;
}

/* Kick if something was published since the last decision and the device wants to know
 * (sections 2.7.7, 2.7.10, 2.8.10). */
int
pvd_queue_kick(struct pvd_queue *q)
{
    if (!q->ops->to_kick(q)) {
        return 0;
    }
    atomic_thread_fence(memory_order_seq_cst);
    if (!q->ops->kick_wanted(q)) {
        q->counters.suppressed++;
        return 0;
    }
    q->counters.kicks++;
    write_kick(q);
    return 1;
}

int
pvd_kick(pvd_guest *guest, uint32_t ring)
{
    struct pvd_queue *q = pvd_queue_of(guest, ring);
    if (q == NULL || guest->mute) {
        return q == NULL ? -EINVAL : -EFAULT;
    }
    return pvd_queue_kick(q);
}

int
pvd_kick_force(pvd_guest *guest, uint32_t ring)
{
    struct pvd_queue *q = pvd_queue_of(guest, ring);
    if (q == NULL) {
        return -EINVAL;
    }
    if (!guest->mute) {
        (void)q->ops->kick_wanted(q);
    }
    q->counters.kicks++;
    write_kick(q);
    return 0;
}

int
pvd_call_arm(pvd_guest *guest, uint32_t ring)
{
    struct pvd_queue *q = pvd_queue_of(guest, ring);
    if (q == NULL || guest->mute) {
        return q == NULL ? -EINVAL : -EFAULT;
    }
    q->ops->arm(q);
    atomic_thread_fence(memory_order_seq_cst);
    return pvd_used_pending(q, 1) > 0;
}

int
pvd_call_disarm(pvd_guest *guest, uint32_t ring)
{
    struct pvd_queue *q = pvd_queue_of(guest, ring);
    if (q == NULL || guest->mute) {
        return q == NULL ? -EINVAL : -EFAULT;
    }
    q->ops->disarm(q);
    return 0;
}
