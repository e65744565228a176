/* SPDX-License-Identifier: Apache-2.0 */
/*
 * switch.c - the control thread's side of the data plane: life, commands, and what comes up (pvs_api.h).
 */
#include "copy.h"
#include "switch.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* Interrupts a worker that hangs in a write; its handler does nothing, without SA_RESTART that is enough. */
#define INTERRUPT (SIGRTMIN + 7)

static void
on_interrupt(int signo)
{
    (void)signo;
}

static int
interrupt_install(void)
{
    struct sigaction action = { .sa_handler = on_interrupt };
    sigemptyset(&action.sa_mask);
    return sigaction(INTERRUPT, &action, NULL) == 0 ? 0 : -errno;
}

/* ---- life ---- */

static bool
conf_valid(const struct pvs_switch_conf *conf)
{
    return conf->n_workers >= 1 && conf->n_workers <= PVS_MAX_WORKERS && conf->polling <= PVS_POLL_INTERRUPT &&
           conf->poll_us <= 1000000;
}

int
pvs_switch_create(const struct pvs_switch_conf *conf, struct pvs_switch **out)
{
    if (!conf_valid(conf))
        return -EINVAL;
    pvs_copy_init();
    int rc = pvs_sigbus_install();
    if (rc == 0)
        rc = interrupt_install();
    if (rc != 0)
        return rc;
    struct pvs_switch *sw = calloc(1, sizeof *sw);
    if (sw == NULL)
        return -ENOMEM;
    sw->conf = *conf;
    sw->flow_counters.n_workers = conf->n_workers;
    sw->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    sw->tables = calloc(1, sizeof *sw->tables);
    rc = sw->wake_fd < 0 ? -errno : sw->tables == NULL ? -ENOMEM : pvs_vteps_create(conf->seed, &sw->vteps);
    for (uint32_t i = 0; rc == 0 && i < conf->n_workers; i++) {
        size_t size = (sizeof(struct pvs_worker) + 63) & ~(size_t)63;
        struct pvs_worker *w = aligned_alloc(64, size);
        if (w == NULL) {
            rc = -ENOMEM;
            break;
        }
        memset(w, 0, size);
        w->bell_fd = w->epoll_fd = -1;
        w->tables = sw->tables;
        w->vteps = sw->vteps;
        w->flow_counters = &sw->flow_counters;
        w->captures = sw->capture;
        sw->worker[i] = w;
        rc = pvs_worker_init(w, sw->worker, i, conf, sw->wake_fd, &sw->wake_pending);
    }
    if (rc != 0) {
        pvs_switch_destroy(sw);
        return rc;
    }
    *out = sw;
    return 0;
}

/* A command has come back: record what has become true, and free what it replaced. */
static void
command_finish(struct pvs_switch *sw, struct pvs_command *command)
{
    switch (command->op) {
    case PVS_OP_PUBLISH:
        if (sw->settled < command->publish.number) /* commands may be reaped in another order than they ended */
            sw->settled = command->publish.number;
        if (command->publish.number == sw->published)
            pvs_tables_settled(sw);
        pvs_tables_free(command->publish.old);
        break;
    case PVS_OP_RING_START:
    case PVS_OP_RING_STOP:
    case PVS_OP_RING_ENABLE:
    case PVS_OP_RING_CALL:
    case PVS_OP_UPLINK_START:
    case PVS_OP_UPLINK_STOP:
    case PVS_OP_ADOPT:
        pvs_queue_command_finish(command->queue, command->op, command->result);
        break;
    case PVS_OP_REMOTES:
        free(command->remotes);
        break;
    case PVS_OP_RECORDER:
        free(command->recorder.old);
        break;
    case PVS_OP_SYNC:
    case PVS_OP_INJECT:
    case PVS_OP_TRACE:
    case PVS_OP_RELEASE: /* never comes back as such */
        break;
    }
    free(command);
}

void
pvs_switch_destroy(struct pvs_switch *sw)
{
    uint64_t seq;
    int64_t result;

    pvs_switch_stop(sw);
    while (sw->in_flight != 0) { /* no thread runs: finish what was under way; a move goes round twice */
        for (uint32_t i = 0; i < sw->conf.n_workers; i++) {
            struct pvs_command *command;
            while ((command = pvs_mail_take(&sw->worker[i]->mail)) != NULL)
                pvs_command_run(sw->worker[i], command);
        }
        while (pvs_reap(sw, &seq, &result, 1) == 1)
            ;
    }
    for (uint32_t i = 0; i < sw->conf.n_workers && sw->worker[i] != NULL; i++) {
        pvs_worker_fini(sw->worker[i]);
        free(sw->worker[i]);
    }
    for (uint32_t i = 0; i < PVS_MAX_PORTS; i++) {
        struct pvs_port *port = sw->port[i];
        if (port != NULL) {
            for (uint32_t k = 0; k < port->n_rings; k++)
                port->ring[k].queue.started = false;
            for (uint32_t k = 0; k < port->n_uplinks; k++)
                port->uplink[k].queue.started = false;
            sw->tables->port[i].ref = 0;
            pvs_port_destroy(port);
        }
    }
    pvs_tables_free(sw->tables);
    pvs_vteps_destroy(sw->vteps);
    pvs_flow_counters_free(&sw->flow_counters);
    free(sw->samples);
    if (sw->wake_fd >= 0)
        close(sw->wake_fd);
    free(sw);
}

static int
thread_start(const struct pvs_switch *sw, struct pvs_worker *w)
{
    pthread_attr_t attr;
    cpu_set_t cpus;
    sigset_t all, old;

    pthread_attr_init(&attr);
    int cpu = sw->conf.cpus[w->index];
    if (cpu >= 0) {
        CPU_ZERO(&cpus);
        CPU_SET((unsigned)cpu, &cpus);
        pthread_attr_setaffinity_np(&attr, sizeof cpus, &cpus);
    }
    /* signals belong to the control thread; SIGBUS is synchronous and stays */
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, INTERRUPT);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    atomic_store_explicit(&w->stop, false, memory_order_relaxed);
    int rc = -pthread_create(&w->thread, &attr, pvs_worker_run, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (rc == 0) {
        char name[16] = "pvs-worker-";
        name[11] = (char)('0' + w->index / 10);
        name[12] = (char)('0' + w->index % 10);
        pthread_setname_np(w->thread, name);
    }
    return rc;
}

static bool
joined_within(pthread_t thread, uint64_t ns)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    uint64_t at = (uint64_t)until.tv_nsec + ns;
    until.tv_sec += (time_t)(at / 1000000000ULL);
    until.tv_nsec = (long)(at % 1000000000ULL);
    return pthread_timedjoin_np(thread, NULL, &until) == 0;
}

static void
threads_join(struct pvs_switch *sw, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        atomic_store_explicit(&sw->worker[i]->stop, true, memory_order_relaxed);
        pvs_worker_ring_bell(sw->worker[i]);
        while (!joined_within(sw->worker[i]->thread, PVS_CALL_PATIENCE_NS))
            pvs_watchdog(sw, pvs_clock_ns()); /* it may hang in a call this very moment */
    }
}

int
pvs_switch_start(struct pvs_switch *sw)
{
    if (sw->running)
        return -EBUSY;
    for (uint32_t i = 0; i < sw->conf.n_workers; i++) {
        int rc = thread_start(sw, sw->worker[i]);
        if (rc != 0) {
            threads_join(sw, i);
            return rc;
        }
    }
    sw->running = true;
    return 0;
}

void
pvs_switch_stop(struct pvs_switch *sw)
{
    if (sw->running)
        threads_join(sw, sw->conf.n_workers);
    sw->running = false;
}

int
pvs_watchdog(struct pvs_switch *sw, uint64_t now_ns)
{
    int n = 0;
    for (uint32_t i = 0; sw->running && i < sw->conf.n_workers; i++) {
        uint64_t since = atomic_load_explicit(&sw->worker[i]->calling_since, memory_order_relaxed);
        /* the signal may come just before the write blocks: it is sent again at each look until the write has ended */
        if (since != 0 && now_ns > since && now_ns - since > PVS_CALL_PATIENCE_NS) {
            pthread_kill(sw->worker[i]->thread, INTERRUPT);
            n++;
        }
    }
    return n;
}

int
pvs_poll_once(struct pvs_switch *sw, uint32_t worker, uint64_t now_ns)
{
    if (worker >= sw->conf.n_workers)
        return -EINVAL;
    if (sw->running)
        return -EBUSY;
    return (int)pvs_worker_round(sw->worker[worker], now_ns);
}

int
pvs_wake_fd(const struct pvs_switch *sw)
{
    return sw->wake_fd;
}

void
pvs_wake_clear(struct pvs_switch *sw)
{
    uint64_t drained;
    (void)!read(sw->wake_fd, &drained, sizeof drained);
    /* seq_cst exchange: reading a worker's `true` acquires what it put up before; what comes later wakes us again */
    (void)atomic_exchange_explicit(&sw->wake_pending, false, memory_order_seq_cst);
}

/* ---- commands ---- */

struct pvs_command *
pvs_command_new(struct pvs_switch *sw, enum pvs_op op, uint32_t extra, int *error)
{
    struct pvs_command *command = NULL;

    *error = -EAGAIN;
    if (sw->in_flight < PVS_COMMANDS) {
        command = calloc(1, sizeof *command + extra);
        *error = -ENOMEM;
    }
    if (command != NULL)
        command->op = op;
    return command;
}

int64_t
pvs_command_number(struct pvs_switch *sw, struct pvs_command *command)
{
    command->seq = ++sw->next_seq;
    sw->in_flight++;
    return (int64_t)command->seq;
}

void
pvs_command_hand(struct pvs_switch *sw, struct pvs_command *command)
{
    atomic_init(&command->remaining, sw->conf.n_workers);
    for (uint32_t i = 0; i < sw->conf.n_workers; i++) {
        pvs_mail_put(&sw->worker[i]->mail, command);
        pvs_worker_ring_bell(sw->worker[i]);
    }
}

int64_t
pvs_command_submit(struct pvs_switch *sw, struct pvs_command *command)
{
    int64_t seq = pvs_command_number(sw, command);
    pvs_command_hand(sw, command);
    return seq;
}

int64_t
pvs_sync(struct pvs_switch *sw)
{
    int rc;
    struct pvs_command *command = pvs_command_new(sw, PVS_OP_SYNC, 0, &rc);

    return command == NULL ? rc : pvs_command_submit(sw, command);
}

int
pvs_reap(struct pvs_switch *sw, uint64_t *seq, int64_t *result, int max)
{
    int n = 0;
    for (uint32_t i = 0; i < sw->conf.n_workers; i++) {
        struct pvs_command *command;
        while (n < max && (command = pvs_mail_take(&sw->worker[i]->done)) != NULL) {
            if (command->op == PVS_OP_RELEASE) {
                pvs_move_released(sw, command);
                continue;
            }
            seq[n] = command->seq;
            result[n++] = command->result;
            sw->in_flight--;
            command_finish(sw, command);
        }
    }
    return n;
}

/* ---- what comes up ---- */

int
pvs_event_next(struct pvs_switch *sw, struct pvs_event *event)
{
    for (uint32_t i = 0; i < sw->conf.n_workers; i++) {
        uint32_t len;
        const uint8_t *record = pvs_spool_peek(&sw->worker[i]->events, &len);
        if (record != NULL) {
            memcpy(event, record, sizeof *event);
            pvs_spool_drop(&sw->worker[i]->events, len);
            return 1;
        }
    }
    return 0;
}

int
pvs_punt_next(struct pvs_switch *sw, struct pvs_punt *punt, uint8_t *frame, uint32_t cap)
{
    for (uint32_t i = 0; i < sw->conf.n_workers; i++) {
        uint32_t len;
        const uint8_t *record = pvs_spool_peek(&sw->worker[i]->punts, &len);
        if (record == NULL)
            continue;
        memcpy(punt, record, sizeof *punt);
        if (punt->len > cap)
            return -EMSGSIZE;
        memcpy(frame, record + sizeof *punt, punt->len);
        pvs_spool_drop(&sw->worker[i]->punts, len);
        return (int)punt->len;
    }
    return 0;
}

uint64_t
pvs_lost(const struct pvs_switch *sw, uint32_t which)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < sw->conf.n_workers && which <= PVS_PUNT_REASONS; i++)
        sum += atomic_load_explicit(which == 0 ? &sw->worker[i]->lost_events : &sw->worker[i]->lost_punts[which - 1],
                                    memory_order_relaxed);
    return sum;
}

int
pvs_worker_perf(const struct pvs_switch *sw, uint32_t worker, struct pvs_perf *out)
{
    if (worker >= sw->conf.n_workers)
        return -EINVAL;
    const struct pvs_worker *w = sw->worker[worker];
    const struct pvs_worker_perf *p = &w->perf;
    uint64_t ns = pvs_clock_ns() - w->start_ns, cycles = pvs_cycles() - w->start_cycles;

    *out = (struct pvs_perf){
        .busy_cycles = atomic_load_explicit(&p->busy_cycles, memory_order_relaxed),
        .idle_cycles = atomic_load_explicit(&p->idle_cycles, memory_order_relaxed),
        .packets = atomic_load_explicit(&p->packets, memory_order_relaxed),
        .loops = atomic_load_explicit(&p->loops, memory_order_relaxed),
        .sleeps = atomic_load_explicit(&p->sleeps, memory_order_relaxed),
        .total_cycles = cycles,
        .learn_skipped = atomic_load_explicit(&p->learn_skipped, memory_order_relaxed),
        .bursts = atomic_load_explicit(&p->bursts, memory_order_relaxed),
        .queue_full = atomic_load_explicit(&p->queue_full, memory_order_relaxed),
        .notifications = atomic_load_explicit(&p->notifications, memory_order_relaxed),
        .notifications_suppressed = atomic_load_explicit(&p->notifications_suppressed, memory_order_relaxed),
        .kicks = atomic_load_explicit(&p->kicks, memory_order_relaxed),
        .cycles_per_second = ns == 0 ? 0 : (uint64_t)((double)cycles * 1e9 / (double)ns),
        .sleeping = atomic_load_explicit(&w->sleeping, memory_order_relaxed),
    };
    for (int i = 0; i <= PVS_MAX_BURST; i++)
        out->burst_histogram[i] = atomic_load_explicit(&p->burst_histogram[i], memory_order_relaxed);
    return 0;
}
