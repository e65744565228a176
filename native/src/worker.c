/* SPDX-License-Identifier: Apache-2.0 */
/* worker.c - see worker.h for how it works and who may call it. */
#include "worker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "virtqueue_any.h"

enum { MAX_RINGS = PVS_MAX_PORTS * PVS_MAX_PAIRS * 2 };
enum { EVENT_SPOOL = 1 << 18, PUNT_SPOOL = 1 << 20, SLAB_BLOCKS = 8192, BLOCKS_PER_PORT = 1024 };
enum { EPOLL_BATCH = 64, MAX_SLEEP_MS = 3600000 };
/* How often epoll is asked while there is other work: bounds what a kick waits. */
static const uint64_t KICK_CHECK_NS = 50000;
/* A busy worker keeps an empty ring in its set much longer: its users pay for latency. */
static const uint64_t BUSY_POLL_NS = 100000000;
/* How long a worker sleeps at most while a ring without a kick runs. */
static const uint64_t KICKLESS_POLL_NS = 1000000;

uint64_t
pvs_clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

/* ---- up to control ---- */

void
pvs_event(struct pvs_worker *w, const struct pvs_event *event)
{
    uint8_t *place = pvs_spool_reserve(&w->events, sizeof *event);
    if (place == NULL) {
        pvs_count(&w->lost_events, 1);
        return;
    }
    memcpy(place, event, sizeof *event);
    pvs_spool_commit(&w->events, sizeof *event);
    w->wake_control = true;
}

void
pvs_punt_frame(struct pvs_worker *w, const struct pvs_frame *frame, uint16_t vid, enum pvs_punt_reason why)
{
    struct pvs_punt punt = {
        .time_ns = w->now_ns, .port_ref = frame->in_ref, .len = frame->len, .vid = vid, .reason = (uint16_t)why
    };
    uint32_t size = (uint32_t)sizeof punt + frame->len;
    uint8_t *place = NULL;

    if (pvs_allow(&w->punting[why], w->now_s, PVS_PUNT_PER_SECOND))
        place = pvs_spool_reserve(&w->punts, size);
    if (place == NULL) {
        pvs_count(&w->lost_punts[why], 1);
        return;
    }
    struct pvs_seg to = { .base = place + sizeof punt, .len = frame->len };
    struct pvs_cursor c = { .seg = &to, .n = 1 };
    memcpy(place, &punt, sizeof punt);
    pvs_frame_write(frame, &c);
    pvs_spool_commit(&w->punts, size);
    w->wake_control = true;
}

static void
tell_control(struct pvs_worker *w)
{
    if (!w->wake_control)
        return;
    w->wake_control = false;
    /* seq_cst exchange: pairs with pvs_wake_clear, which clears the flag before it drains */
    if (!atomic_exchange_explicit(w->wake_pending, true, memory_order_seq_cst)) {
        uint64_t one = 1;
        (void)!write(w->wake_fd, &one, sizeof one); /* an eventfd that is full is readable as well */
    }
}

/* ---- a round ---- */

static uint32_t
take_mail(struct pvs_worker *w)
{
    struct pvs_command *command;
    uint32_t n = 0;
    while (n < PVS_BURST && (command = pvs_mail_take(&w->mail)) != NULL) {
        pvs_command_run(w, command);
        n++;
    }
    return n;
}

/* The guest has posted buffers: the frames that wait for them may be in any worker's rings. */
static void
wake_waiters(struct pvs_worker *w, struct pvs_ring *ring)
{
    uint32_t waiters = atomic_exchange_explicit(&ring->waiters, 0, memory_order_relaxed);
    for (uint32_t i = 0; i < w->n_peers; i++)
        if ((waiters >> i & 1) != 0 && w->peer[i] != w)
            pvs_worker_ring_bell(w->peer[i]);
}

/* Wait for kicks, frames of uplinks and the bell at most `timeout_ns`, and bring their queues into the set. */
static void
wait_for_kicks(struct pvs_worker *w, uint64_t timeout_ns)
{
    struct epoll_event event[EPOLL_BATCH];
    uint64_t ms = timeout_ns / 1000000 + (timeout_ns % 1000000 != 0);
    int n = epoll_wait(w->epoll_fd, event, EPOLL_BATCH, ms > MAX_SLEEP_MS ? MAX_SLEEP_MS : (int)ms);

    for (int i = 0; i < n; i++) {
        struct pvs_queue *queue = event[i].data.ptr;
        if (queue == NULL) {
            uint64_t drained;
            (void)!read(w->bell_fd, &drained, sizeof drained);
            continue;
        }
        bool ring = queue->kind == PVS_QUEUE_RING;
        if (ring) {
            pvs_count(&pvs_ring_of(queue)->kicks, 1);
            pvs_count(&w->perf.kicks, 1);
        }
        if (ring && !pvs_ring_is_guest_tx(pvs_ring_of(queue)))
            wake_waiters(w, pvs_ring_of(queue));
        else if (!queue->active && atomic_load_explicit(&queue->running, memory_order_relaxed) &&
                 atomic_load_explicit(&queue->port->broken, memory_order_relaxed) == PVS_BROKEN_NONE)
            pvs_queue_activate(w, queue);
    }
}

/* Show the receivers of a burst what they got, and send what goes to the kernel. */
static void
publish_touched(struct pvs_worker *w)
{
    pvs_worker_send(w);
    for (uint32_t i = 0; i < w->n_touched; i++) {
        struct pvs_ring *ring = w->touched[i];
        pvs_worker_hold(w, ring, true);
        ring->touched &= (uint16_t)~pvs_worker_bit(w);
        pvs_ring_show(w, ring);
    }
    w->n_touched = 0;
    pvs_worker_release(w);
}

/* A ring that its front end has disabled is drained, so that the guest doesn't hang on a full one. */
static uint32_t
discard(struct pvs_worker *w, struct pvs_ring *ring, uint32_t n)
{
    ring->queue.progress.done = 0;
    pvs_queue_set_waiting(w, &ring->queue, false);
    pvs_drop_received(w, ring->queue.port, w->burst.frame, n, PVS_DROP_queue_disabled);
    return n;
}

/*
 * An empty ring leaves the set once its kick is armed, unless it has none or something came meanwhile. Polling that found
 * nothing was wasted: next time it is half as long.
 */
static void
maybe_rest_ring(struct pvs_worker *w, struct pvs_ring *ring)
{
    if (w->now_ns - ring->queue.idle_since_ns < ring->queue.poll_ns || ring->queue.kickless || ring->queue.waiting)
        return;
    if (pvs_vq_kick_arm(&ring->vq, ring->vq.next_avail)) {
        pvs_vq_kick_suppress(&ring->vq);
        return;
    }
    if (w->polling == PVS_POLL_ADAPTIVE)
        ring->queue.poll_ns /= 2;
    ring->queue.rested_ns = ring->queue.idle_since_ns;
    pvs_queue_deactivate(w, &ring->queue);
}

/* It has work again: had it come within the polling time, it would have been found without a kick. */
static void
woke(const struct pvs_worker *w, struct pvs_ring *ring)
{
    if (ring->queue.rested_ns != 0 && w->now_ns - ring->queue.rested_ns < w->poll_ns)
        ring->queue.poll_ns = w->poll_ns;
    ring->queue.rested_ns = 0;
}

/* Forward a burst and show its receivers what they got. How many frames have left. */
static uint32_t
forward_burst(struct pvs_worker *w, struct pvs_port *port, struct pvs_queue *queue, struct pvs_frame *frame, uint32_t n)
{
    bool waiting;
    uint32_t done = pvs_forward_burst(w, port, queue, frame, n, &waiting);

    pvs_queue_set_waiting(w, queue, waiting);
    publish_touched(w); /* the receivers' used index before the sender's, whose buffers are free after it */
    return done;
}

/* Frames have been taken from a queue. */
static void
took(struct pvs_worker *w, struct pvs_queue *queue, uint32_t n)
{
    pvs_count(&w->perf.packets, n);
    pvs_count(&w->perf.bursts, 1);
    pvs_count(&w->perf.burst_histogram[n], 1);
    queue->idle_since_ns = w->now_ns;
}

/* One burst from one guest. Returns the number of frames taken. */
static uint32_t
serve_ring(struct pvs_worker *w, struct pvs_ring *ring)
{
    enum pvs_broken broken = PVS_BROKEN_NONE;
    uint32_t n = pvs_guest_tx_fetch(ring, &w->burst, &broken), done = 0;

    if (n == 0)
        pvs_queue_set_waiting(w, &ring->queue, false);
    else if (!atomic_load_explicit(&ring->enabled, memory_order_relaxed))
        done = discard(w, ring, n);
    else
        done = forward_burst(w, ring->queue.port, &ring->queue, w->burst.frame, n);
    if (done != 0) {
        woke(w, ring);
        took(w, &ring->queue, done);
        pvs_guest_tx_finish(ring, &w->burst, done);
        pvs_vq_publish(&ring->vq);
        pvs_ring_want_notify(w, ring);
        pvs_count(&ring->packets, w->taken_packets);
        pvs_count(&ring->bytes, w->taken_bytes);
    }
    if (atomic_load_explicit(&ring->queue.port->memory_lost, memory_order_relaxed))
        broken = PVS_BROKEN_MEMORY_LOST;
    if (broken != PVS_BROKEN_NONE)
        pvs_ring_broken(w, ring, broken);
    else if (done == 0)
        maybe_rest_ring(w, ring);
    return done;
}

/* A packet of a tunnel that no frame was made of. */
static void
drop_packet(void *worker, const struct pvs_uplink *u, const struct pvs_frame *frame, enum pvs_drop why)
{
    pvs_drop_rx(worker, u->queue.port, frame, why, 1);
}

/* The next packets of tunnels. */
static void
fetch_from_endpoint(struct pvs_worker *w, struct pvs_uplink *u)
{
    const struct pvs_port *port = u->queue.port;
    const struct pvs_port_view *view = &w->tables->port[pvs_ref_index(port->ref)];

    pvs_endpoint_fetch(u, view->ref == port->ref ? view->demux : NULL, w->vteps, w->now_s, drop_packet, w);
    for (uint32_t i = 0; i < u->in->n_fresh; i++)
        pvs_event(w, &(struct pvs_event){ .time_ns = w->now_ns, .kind = PVS_EV_VTEP, .vtep = u->in->fresh[i] });
}

/* Forward what a queue has fetched: of an endpoint the frames of one tunnel after the other, from one VTEP each. */
static uint32_t
forward_fetched(struct pvs_worker *w, struct pvs_uplink *u)
{
    struct pvs_frame *frame = u->in->frame + u->done;
    uint32_t n = u->n - u->done, run = u->kind == PVS_ENDPOINT ? pvs_endpoint_run(frame, n) : n;
    struct pvs_port *port = u->queue.port;

    if (u->kind == PVS_ENDPOINT) {
        const struct pvs_port_view *view = &w->tables->port[pvs_ref_index(frame->in_ref)];
        if (view->ref != frame->in_ref) { /* the tunnel has left the tables since they were fetched */
            u->queue.progress.done = 0;
            pvs_queue_set_waiting(w, &u->queue, false);
            pvs_drop_received(w, port, frame, run, PVS_DROP_unknown_vni);
            w->spent = 0;
            return run;
        }
        port = view->port;
    }
    return forward_burst(w, port, &u->queue, frame, run);
}

/* The same from an uplink, whose frames of a burst that have to wait stay where they are. */
static __attribute__((noinline)) uint32_t
serve_uplink(struct pvs_worker *w, struct pvs_uplink *u)
{
    bool fetched = u->done == u->n, over = false;
    uint32_t total = 0;
    uint64_t spent = 0;

    if (fetched && u->kind == PVS_ENDPOINT)
        fetch_from_endpoint(w, u);
    else if (fetched)
        pvs_uplink_fetch(u);
    while (u->done != u->n && !over) {
        uint32_t done = forward_fetched(w, u);
        u->done += done;
        total += done;
        pvs_count(&u->rx_packets, w->taken_packets);
        pvs_count(&u->rx_bytes, w->taken_bytes);
        spent += w->spent;
        /* an uplink has one burst a turn; an endpoint's are short, and all of them together have one budget */
        over = u->kind != PVS_ENDPOINT || u->queue.waiting || spent >= PVS_BUDGET;
    }
    if (total != 0)
        took(w, &u->queue, total);
    /* what has come since an earlier fetch may have made its edge already, so only this one tells that it is empty */
    bool empty = fetched && u->drained && u->done == u->n;
    if (u->overrun_seen_s != w->now_s || (empty && u->lost_some))
        pvs_uplink_count_overrun(w, u);
    if (empty)
        pvs_queue_deactivate(w, &u->queue);
    return total;
}

/* A queue's turn. Its time is taken from the end of the last turn that gave frames: one look at the clock for each. */
static uint32_t
serve(struct pvs_worker *w, struct pvs_queue *queue, uint64_t *stamp)
{
    uint32_t n =
        queue->kind == PVS_QUEUE_RING ? serve_ring(w, pvs_ring_of(queue)) : serve_uplink(w, pvs_uplink_of(queue));
    if (n != 0) {
        uint64_t now = pvs_cycles();
        pvs_count(&queue->cycles, now - *stamp);
        *stamp = now;
    }
    return n;
}

/*
 * Signal a call descriptor. False when the write had to be interrupted: O_NONBLOCK, which we set, is a flag of the shared
 * file, and the front end has cleared it and filled the file (see pvs_watchdog).
 */
static bool
call(struct pvs_worker *w, int fd)
{
    uint64_t one = 1;
    atomic_store_explicit(&w->calling_since, w->now_ns, memory_order_relaxed);
    ssize_t n = write(fd, &one, sizeof one); /* EAGAIN is fine: the guest has a call waiting already */
    bool blocked = n < 0 && errno == EINTR;
    atomic_store_explicit(&w->calling_since, 0, memory_order_relaxed);
    return !blocked;
}

/* Does the guest want a call for what was published? The fence between publishing and looking has been made. */
static bool
wants_call(struct pvs_worker *w, struct pvs_ring *ring)
{
    bool wanted = false;

    ring->notify &= (uint16_t)~pvs_worker_bit(w);
    if (atomic_load_explicit(&ring->queue.running, memory_order_relaxed) &&
        atomic_load_explicit(&ring->queue.port->broken, memory_order_relaxed) == PVS_BROKEN_NONE) {
        wanted = pvs_vq_wants_call(&ring->vq) || ring->call_owed;
        ring->call_owed = false;
        pvs_count(wanted ? &ring->notifications : &ring->notifications_suppressed, 1);
        pvs_count(wanted ? &w->perf.notifications : &w->perf.notifications_suppressed, 1);
    }
    return wanted;
}

static void
call_guests(struct pvs_worker *w)
{
    if (w->n_notify == 0)
        return;
    /* full fence, one for all: the used indices are visible before the guests' event indices and flags are read */
    atomic_thread_fence(memory_order_seq_cst);
    for (uint32_t i = 0; i < w->n_notify; i++) {
        struct pvs_ring *ring = w->notify[i];
        if (!pvs_ring_is_guest_tx(ring)) {
            pvs_worker_hold(w, ring, true);
            /* full fence: what another worker published since ours is accounted for here, so it must be visible as well */
            if (w->n_peers > 1)
                atomic_thread_fence(memory_order_seq_cst);
        }
        bool wanted = wants_call(w, ring);
        pvs_worker_release(w);
        /* acquire: a descriptor that control has just replaced is complete */
        int fd = atomic_load_explicit(&ring->call_fd, memory_order_acquire);
        if (wanted && fd >= 0 && !call(w, fd))
            pvs_ring_broken(w, ring, PVS_BROKEN_CALL_BLOCKED);
    }
    w->n_notify = 0;
}

void
pvs_worker_flush(struct pvs_worker *w)
{
    publish_touched(w);
    call_guests(w);
}

uint32_t
pvs_worker_round(struct pvs_worker *w, uint64_t now_ns)
{
    w->now_ns = now_ns;
    w->now_s = (uint32_t)(now_ns / 1000000000ULL);
    if (now_ns - w->kicks_seen_ns >= KICK_CHECK_NS) {
        w->kicks_seen_ns = now_ns;
        wait_for_kicks(w, 0);
    }
    uint32_t work = take_mail(w);
    publish_touched(w); /* what an injected frame left */
    uint64_t stamp = pvs_cycles();
    for (uint32_t i = 0; i < w->n_active;) {
        struct pvs_queue *queue = w->active[i];
        if (atomic_load_explicit(&queue->port->broken, memory_order_relaxed) != PVS_BROKEN_NONE)
            pvs_queue_deactivate(w, queue);
        else
            work += serve(w, queue, &stamp);
        if (i < w->n_active && w->active[i] == queue)
            i++; /* otherwise the last queue has taken this place */
    }
    work += pvs_wheel_run(&w->wheel, now_ns) + w->look_again;
    w->look_again = false;
    pvs_worker_flush(w);
    tell_control(w);
    if (work != 0)
        w->worked_ns = now_ns;
    return work;
}

/* ---- the thread ---- */

static void
sleep_until_needed(struct pvs_worker *w)
{
    uint64_t timeout = UINT64_MAX, next = pvs_wheel_next(&w->wheel);

    if (next != UINT64_MAX)
        timeout = next > w->now_ns ? next - w->now_ns : 0;
    if (w->n_kickless != 0 && timeout > KICKLESS_POLL_NS)
        timeout = KICKLESS_POLL_NS;
    atomic_store_explicit(&w->sleeping, true, memory_order_relaxed);
    /* full fence: who puts mail in does so, fences, and looks at `sleeping`; we do the reverse */
    atomic_thread_fence(memory_order_seq_cst);
    if (!pvs_mail_waiting(&w->mail) && !atomic_load_explicit(&w->stop, memory_order_relaxed)) {
        pvs_count(&w->perf.sleeps, 1);
        wait_for_kicks(w, timeout);
    }
    atomic_store_explicit(&w->sleeping, false, memory_order_relaxed);
}

/* With kickless rings the set is never empty: after the polling time they are looked at each time the sleep ends. */
static bool
may_sleep(const struct pvs_worker *w)
{
    if (w->polling == PVS_POLL_BUSY || w->n_active > w->n_kickless)
        return false;
    return w->n_kickless == 0 || w->now_ns - w->worked_ns >= w->poll_ns;
}

void *
pvs_worker_run(void *arg)
{
    struct pvs_worker *w = arg;
    uint64_t before = pvs_cycles();

    while (!atomic_load_explicit(&w->stop, memory_order_relaxed)) {
        uint32_t work = pvs_worker_round(w, pvs_clock_ns());
        uint64_t after = pvs_cycles();
        pvs_count(work != 0 ? &w->perf.busy_cycles : &w->perf.idle_cycles, after - before);
        pvs_count(&w->perf.loops, 1);
        before = after;
        if (work == 0 && may_sleep(w)) {
            sleep_until_needed(w);
            before = pvs_cycles(); /* sleeping is neither busy nor idle */
        }
    }
    return NULL;
}

void
pvs_worker_ring_bell(struct pvs_worker *w)
{
    /* full fence: the mail is visible before we look whether the worker sleeps */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&w->sleeping, memory_order_relaxed)) {
        uint64_t one = 1;
        (void)!write(w->bell_fd, &one, sizeof one);
    }
}

/* ---- life ---- */

int
pvs_worker_init(struct pvs_worker *w, struct pvs_worker *const *peer, uint32_t index,
                const struct pvs_switch_conf *conf, int wake_fd, _Atomic bool *wake_pending)
{
    w->peer = peer;
    w->n_peers = conf->n_workers;
    w->index = index;
    w->polling = (enum pvs_polling)conf->polling;
    w->poll_ns = conf->polling == PVS_POLL_ADAPTIVE ? conf->poll_us * 1000ULL
                 : conf->polling == PVS_POLL_BUSY   ? BUSY_POLL_NS
                                                    : 0;
    w->wake_fd = wake_fd;
    w->wake_pending = wake_pending;
    w->start_cycles = pvs_cycles();
    w->start_ns = pvs_clock_ns();
    pvs_wheel_init(&w->wheel, 0);
    w->bell_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (w->bell_fd < 0 || w->epoll_fd < 0)
        return -errno;
    struct epoll_event bell = { .events = EPOLLIN };
    if (epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, w->bell_fd, &bell) != 0)
        return -errno;
    w->active = calloc(MAX_RINGS, sizeof(struct pvs_queue *));
    w->touched = calloc(MAX_RINGS, sizeof(struct pvs_ring *));
    w->notify = calloc(MAX_RINGS, sizeof(struct pvs_ring *));
    if (w->active == NULL || w->touched == NULL || w->notify == NULL)
        return -ENOMEM;
    int rc = pvs_slab_init(&w->slab, SLAB_BLOCKS, BLOCKS_PER_PORT);
    if (rc == 0)
        rc = pvs_spool_init(&w->events, EVENT_SPOOL);
    if (rc == 0)
        rc = pvs_spool_init(&w->punts, PUNT_SPOOL);
    if (rc == 0)
        rc = pvs_recorder_init(&w->recorder);
    return rc;
}

void
pvs_worker_fini(struct pvs_worker *w)
{
    if (w->bell_fd >= 0)
        close(w->bell_fd);
    if (w->epoll_fd >= 0)
        close(w->epoll_fd);
    free(w->active);
    free(w->touched);
    free(w->notify);
    pvs_slab_fini(&w->slab);
    pvs_spool_fini(&w->events);
    pvs_spool_fini(&w->punts);
    pvs_recorder_fini(&w->recorder);
}
