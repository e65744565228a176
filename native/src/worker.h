/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker.h - one poll thread's world.
 *
 * How it works: a round (pvs_worker_round) takes the mail, looks at kicks now and then, serves each queue of the active
 * set for one burst, fires timers, and asks once, after one fence, which guests want a call. A ring that has been empty
 * for the polling time leaves the active set with its kick armed; the kick brings it back. When the set is empty and
 * nothing else waits, the worker blocks in epoll. Kicks are watched edge-triggered and never read. A queue of an uplink
 * leaves the set as soon as it is empty, since polling it would be a system call; its descriptor is watched likewise.
 *
 * Each guest_tx ring is served by one worker; receive rings are shared. A worker holds the lock of one receive ring at a
 * time (`held`), for the list of a burst that goes there (deliver.c). Unicast that is delivered at once, as it is cut, summed
 * or may have to wait, is left in its sender's ring when another worker holds the lock, and tried again in the next round.
 *
 * Who may call: the thread that drives this worker; other threads only touch `mail`, `sleeping` and `bell`.
 */
#ifndef PVS_WORKER_H
#define PVS_WORKER_H

#include <pthread.h>

#include "capture.h"
#include "channel.h"
#include "command.h"
#include "hold.h"
#include "port_endpoint.h"
#include "port_tunnel.h"
#include "recorder.h"

/* Edited frames of a burst: two forms of each; where mirrors make more, lists are written in between. */
enum { PVS_EDITED = 2 * PVS_BURST, PVS_EDITED_SEGS = 4 * PVS_MAX_SEGS };

/* How long a frame may have to wait for a shaped port's rate; what would have to wait longer is dropped. */
#define PVS_SHAPING_NS 100000000ULL

/* Frames that wait for a port's rate, in order, with their moments. */
struct pvs_shaper {
    struct pvs_timer timer; /* set while there are any */
    struct pvs_worker *worker;
    uint32_t ref; /* the port's */
    struct pvs_owned *first, **end;
};

/* Bytes times copies (and 64 for each segment and dropped copy) that a queue may cost in a turn before others have theirs. */
enum { PVS_BUDGET = 512 * 1024 };

/* New or moved addresses that one port may have learned in a second. */
enum { PVS_LEARN_PER_SECOND = 8192 };

/* How long a write to a call descriptor may take before the watchdog interrupts it. */
#define PVS_CALL_PATIENCE_NS 100000000ULL

/* Frames of one reason that may be punted in a second. */
enum { PVS_PUNT_PER_SECOND = 1000 };

/* Packets that were too big of which control is told in a second. */
enum { PVS_TOO_BIG_PER_SECOND = 10 };

/* Senders that are told by ICMP in a second. */
enum { PVS_TOO_BIG_ANSWERS = 1000, PVS_ANSWER_MAX = 1302 };

/* What is left of a budget in the current second. */
struct pvs_allowance {
    uint32_t second, used;
};

struct pvs_worker_perf {
    _Atomic uint64_t busy_cycles, idle_cycles, packets, loops, sleeps, learn_skipped;
    _Atomic uint64_t bursts, queue_full, notifications, notifications_suppressed, kicks;
    _Atomic uint64_t burst_histogram[PVS_MAX_BURST + 1];
};

/* Copies of a burst that are to be written into one receive ring. */
struct pvs_destination {
    struct pvs_ring *ring;
    const struct pvs_frame *base; /* what `number` counts from: the burst's frames, or its edited ones */
    uint32_t direct; /* its port's reference, if what the FDB sends there may be added just so; 0: it may not */
    uint32_t mtu;    /* that has to be enforced then; 0 = none */
    uint16_t index;  /* its port's */
    bool captured;   /* somebody captures what leaves by it */
    uint32_t n;
    uint8_t number[PVS_BURST]; /* which frames */
};

/*
 * Frames of a burst as they leave by some of their ports: each the head of one, edited, before the same tail. They stay, as the
 * burst's own do, until what is on lists and in the outbox has left.
 */
struct pvs_edited {
    uint32_t n, n_seg;
    struct {
        uint8_t number, variant; /* of the burst's, and of that */
        struct pvs_edit edit;
    } of[PVS_EDITED];
    struct pvs_frame frame[PVS_EDITED];
    struct pvs_seg seg[PVS_EDITED_SEGS]; /* of those whose tail isn't whole */
};

struct pvs_worker {
    struct pvs_worker *const *peer; /* all workers of the switch, this one too */
    uint32_t n_peers;
    uint32_t index;
    enum pvs_polling polling;
    uint64_t poll_ns;
    int epoll_fd, bell_fd; /* bell_fd: an eventfd that wakes the worker for its mail */
    int wake_fd;           /* the switch's: tells control that something waits */
    _Atomic bool *wake_pending;
    _Atomic bool sleeping, stop;
    _Atomic uint64_t calling_since; /* when the write to a call descriptor began that is under way, or 0 */
    pthread_t thread;

    const struct pvs_tables *tables;
    struct pvs_vteps *vteps;                       /* the switch's, */
    const struct pvs_flow_counters *flow_counters; /* likewise */
    uint64_t now_ns;
    uint32_t now_s;
    uint64_t kicks_seen_ns;        /* when epoll was last asked */
    uint32_t n_active, n_kickless; /* queues in the set; those of them that no kick of their guest will wake us for */
    uint32_t n_touched, n_notify;
    uint64_t spent;        /* of the budget of the turn at hand */
    bool look_again;       /* something moved while we looked: don't go to sleep */
    struct pvs_ring *held; /* the receive ring whose lock we have, or NULL */
    uint64_t worked_ns;    /* when a round last found work */
    struct pvs_queue **active;
    struct pvs_ring **touched, **notify;
    bool wake_control;

    struct pvs_burst burst;
    struct pvs_edited edited;
    const struct pvs_frame *source;         /* the frames of the burst at hand */
    uint64_t taken_packets, taken_bytes;    /* those of it that have left, and were well-formed */
    uint32_t n_destinations;                /* rings that copies of it go to */
    uint16_t destination_of[PVS_MAX_PORTS]; /* by port index: the place in `destination`, plus 1; 0 = none */
    struct pvs_destination destination[PVS_MAX_PORTS];
    bool places_found;                     /* the FDB is large, and `place` of the burst at hand is known: */
    struct pvs_fdb_place place[PVS_BURST]; /* where the FDB has the destination of each frame */
    struct pvs_verdict verdict;
    struct pvs_pieces pieces;
    struct pvs_landing landing;
    struct pvs_delivery delivery;
    struct pvs_outbox outbox;
    struct pvs_tunnel_outbox tunnel_outbox;
    struct pvs_wheel wheel;
    struct pvs_slab slab;
    struct pvs_shaper shaper[PVS_MAX_PORTS]; /* by port index */
    struct pvs_allowance learning[PVS_MAX_PORTS];
    struct pvs_allowance punting[PVS_PUNT_REASONS];
    struct pvs_allowance too_big_told, too_big_answers;
    struct pvs_frame answer; /* to who sent what was too big, */
    struct pvs_seg answer_tail;
    uint8_t answer_bytes[PVS_ANSWER_MAX]; /* and what it consists of */
    struct pvs_recorder recorder;
    struct pvs_capture *const *captures; /* the switch's, by slot */
    struct pvs_worker_perf perf;
    uint64_t start_cycles, start_ns;

    struct pvs_mail mail, done;
    struct pvs_spool events, punts;
    _Atomic uint64_t lost_events, lost_punts[PVS_PUNT_REASONS];
};

int pvs_worker_init(struct pvs_worker *worker, struct pvs_worker *const *peer, uint32_t index,
                    const struct pvs_switch_conf *conf, int wake_fd, _Atomic bool *wake_pending);
void pvs_worker_fini(struct pvs_worker *worker);

/* One round; returns how many frames, commands and timers it handled. */
uint32_t pvs_worker_round(struct pvs_worker *worker, uint64_t now_ns);
/* The thread body: rounds, and sleep between them. `worker` is a struct pvs_worker. */
void *pvs_worker_run(void *worker);
/* Wake it if it sleeps. Called by control after it has put something into the mail (or set `stop`). */
void pvs_worker_ring_bell(struct pvs_worker *worker);

/* ---- between worker.c, queues.c, forward.c, deliver.c, seen.c and commands.c ---- */

/*
 * Forward frames that came by a port and one queue, which is the port's own or that of its endpoint, in order, until all are through, the budget is spent, or one has to wait for its
 * receiver (*waiting): nothing of that one was committed, it is to be tried again. How many have left.
 */
uint32_t pvs_forward_burst(struct pvs_worker *worker, struct pvs_port *port, struct pvs_queue *from,
                           struct pvs_frame *frame, uint32_t n, bool *waiting);
/* Forward a frame of the control plane's. Its port is in the tables. */
void pvs_forward_injected(struct pvs_worker *worker, struct pvs_frame *frame);
/* Count frames that came by a port and go nowhere. */
void pvs_drop_received(struct pvs_worker *worker, const struct pvs_port *port, const struct pvs_frame *frame,
                       uint32_t n, enum pvs_drop why);
/*
 * Count and record `n` frames that were dropped: that came by a port, or copies that were to leave by it. `frame` is one of them as far as it
 * is at hand, or NULL. A copy for a captured port is captured.
 */
void pvs_drop_rx(struct pvs_worker *worker, const struct pvs_port *port, const struct pvs_frame *frame,
                 enum pvs_drop why, uint32_t n);
void pvs_drop_tx(struct pvs_worker *worker, const struct pvs_port *port, const struct pvs_frame *frame,
                 enum pvs_drop why, uint32_t n);
/* Tell the captures of a port, which has some, of a copy as it leaves; or didn't. */
void pvs_capture_out(struct pvs_worker *worker, const struct pvs_port_view *out, const struct pvs_frame *frame,
                     enum pvs_drop why);
/* Tell captures and the recorder of a frame that has been forwarded, whose verdict is the worker's last one, or is malformed. */
void pvs_saw(struct pvs_worker *worker, const struct pvs_frame *frame);
/* Tell captures of one that was dropped without a verdict. */
void pvs_saw_dropped(struct pvs_worker *worker, const struct pvs_frame *frame, enum pvs_drop why);
/* The next frame, from number `from` on, that pvs_saw is to be told of; n: none of these. */
static inline uint32_t
pvs_next_seen(const struct pvs_worker *worker, const struct pvs_port_view *in, uint32_t from, uint32_t n)
{
    if (in->capture_in != 0 || worker->recorder.filter != NULL)
        return from;
    return worker->recorder.left <= n - from ? from + (uint32_t)worker->recorder.left - 1 : n;
}
/* Where a copy goes behind a tunnel: the VLAN that names the network, and a VTEP; 0: all that there are. */
struct pvs_toward {
    uint16_t vid, vtep;
};
/*
 * Deliver one copy and count it. False: it has to wait in `from` (NULL: it never does). What goes to an uplink is counted
 * when it is sent, by pvs_worker_send; until then the frame must stay where it is.
 */
bool pvs_deliver(struct pvs_worker *worker, const struct pvs_port_view *out, const struct pvs_frame *frame,
                 struct pvs_toward to, struct pvs_queue *from);
/* The same for an entry of the verdict on frame number `number` of the burst; it may be written only by pvs_deliver_lists. */
bool pvs_deliver_in_burst(struct pvs_worker *worker, const struct pvs_port_view *out, uint32_t number,
                          const struct pvs_egress *egress, struct pvs_queue *from);
/* To a tunnel: it never has to wait. */
void pvs_deliver_to_tunnel(struct pvs_worker *worker, const struct pvs_port_view *out, const struct pvs_frame *frame,
                           struct pvs_toward to);
/* Tell by ICMP who has sent a frame that a tunnel can't carry, for which its L3 packet would have to be of `mtu` bytes at most. */
void pvs_tell_too_big(struct pvs_worker *worker, const struct pvs_frame *frame, uint32_t mtu);
/* Send what waits for tunnels' sockets, and count it. */
void pvs_tunnels_send(struct pvs_worker *worker);
/*
 * Frame number `number` of the burst, or a variant of it (of the verdict at hand), as `edit` makes it: its number among the edited ones. Lists may be
 * written before.
 */
uint32_t pvs_edited(struct pvs_worker *worker, uint32_t number, uint8_t variant, const struct pvs_edit *edit);
/* A copy as it leaves; of one that isn't edited, the frame itself. */
const struct pvs_frame *pvs_copy_of(struct pvs_worker *worker, uint32_t number, const struct pvs_egress *egress);
/* The list that copies for a port are on, if there is one. */
static inline struct pvs_destination *
pvs_destination_of(struct pvs_worker *worker, uint16_t port)
{
    uint16_t place = worker->destination_of[port];
    return place == 0 ? NULL : &worker->destination[place - 1];
}

/* What a copy of a frame costs of the turn's budget. */
static inline uint32_t
pvs_copy_cost(const struct pvs_frame *frame)
{
    return frame->len + 64 * (frame->n_seg + 1);
}

/* Put a frame on a list, by its number. */
static inline void
pvs_destination_add(struct pvs_worker *worker, struct pvs_destination *destination, uint32_t number)
{
    destination->number[destination->n++] = (uint8_t)number;
    worker->spent += pvs_copy_cost(&destination->base[number]);
}

/*
 * May a frame leave by a shaped port now? It is charged then. If not it waits for its moment, or is dropped when that is too far
 * away; either way it is taken care of.
 */
bool pvs_shaper_passes(struct pvs_worker *worker, const struct pvs_port_view *out, const struct pvs_frame *frame,
                       struct pvs_toward to);
/* VTEPs have been unlinked: what waits for its moment goes to all that there are, if it was to go to one of them. */
void pvs_shapers_forget(struct pvs_worker *worker);

static inline bool
pvs_is_shaped(const struct pvs_port_view *out)
{
    return !out->plain && out->policy != NULL && out->policy->shaping.unit != 0;
}

/* Write what pvs_deliver_in_burst has put on lists. */
void pvs_deliver_lists(struct pvs_worker *worker);
/* Send what waits for the kernel, and count it. */
void pvs_worker_send(struct pvs_worker *worker);
/* Get the lock of a receive ring, letting go of the one held before. False: another worker has it (and not `wait`). */
bool pvs_worker_hold(struct pvs_worker *worker, struct pvs_ring *ring, bool wait);
void pvs_worker_release(struct pvs_worker *worker);
void pvs_command_run(struct pvs_worker *worker, struct pvs_command *command);
void pvs_queue_activate(struct pvs_worker *worker, struct pvs_queue *queue);
void pvs_queue_deactivate(struct pvs_worker *worker, struct pvs_queue *queue);
/* The queue's first frame has to wait for its receiver, or no longer does. */
void pvs_queue_set_waiting(struct pvs_worker *worker, struct pvs_queue *queue, bool waiting);
/* Has its guest's memory been truncated? Then the port is latched broken. */
bool pvs_ring_lost(struct pvs_worker *worker, struct pvs_ring *ring);
/* Latch the ring's port broken, tell control, and stop serving it. */
void pvs_ring_broken(struct pvs_worker *worker, struct pvs_ring *ring, enum pvs_broken why);
/* Show a receive ring's guest what it was given. Its lock is held. */
void pvs_ring_show(struct pvs_worker *worker, struct pvs_ring *ring);
/* Put the ring on the list of those to publish, or to notify, at the end. A receive ring's lock is held. */
void pvs_ring_touch(struct pvs_worker *worker, struct pvs_ring *ring);
void pvs_ring_want_notify(struct pvs_worker *worker, struct pvs_ring *ring);
/* Count what the kernel has dropped because it was not fetched in time. */
void pvs_uplink_count_overrun(struct pvs_worker *worker, struct pvs_uplink *uplink);
/* Show the guests what they were given, and call those that want it. */
void pvs_worker_flush(struct pvs_worker *worker);
void pvs_event(struct pvs_worker *worker, const struct pvs_event *event);
void pvs_punt_frame(struct pvs_worker *worker, const struct pvs_frame *frame, uint16_t vid, enum pvs_punt_reason why);
/* Take one from an allowance of `limit` a second. */
bool pvs_allow(struct pvs_allowance *allowance, uint32_t now_s, uint32_t limit);

/* Its bit in what a receive ring knows of each worker. */
static inline uint16_t
pvs_worker_bit(const struct pvs_worker *worker)
{
    return (uint16_t)(1U << worker->index);
}

/* The descriptor that wakes its worker for a queue; -1: none does. */
static inline int
pvs_queue_wake_fd(struct pvs_queue *queue)
{
    return queue->kind == PVS_QUEUE_RING ? pvs_ring_of(queue)->kick_fd : pvs_uplink_of(queue)->fd;
}

static inline uint64_t
pvs_cycles(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t t;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(t));
    return t;
#else
    return 0;
#endif
}

uint64_t pvs_clock_ns(void);

#endif
