/* SPDX-License-Identifier: Apache-2.0 */
/* test_command.c - what control asks for and what comes back: commands, grace periods, injected and punted frames, events. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>

#include "lab.h"
#include "parse.h"
#include "worker.h"

#include "switch.h"

static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME];

static void
open_ports(uint32_t n, uint32_t workers)
{
    struct lab_conf conf = lab_conf_default(n);
    conf.workers = workers;
    lab_open(&lab, &conf);
}

static int
reap_one(uint64_t *seq, int64_t *result)
{
    return pvs_reap(lab.sw, seq, result, 1);
}

static uint64_t
drain(int fd)
{
    uint64_t value = 0;
    return read(fd, &value, sizeof value) == sizeof value ? value : 0;
}

TEST(switch_configuration_is_checked)
{
    pvs_switch *sw;
    struct pvs_switch_conf conf = { .n_workers = 1, .cpus = { -1 } };
    CHECK_EQ(pvs_switch_create(&conf, &sw), 0);
    CHECK_EQ(pvs_poll_once(sw, 1, 0), -EINVAL);
    pvs_switch_destroy(sw);
    conf.n_workers = 0;
    CHECK_EQ(pvs_switch_create(&conf, &sw), -EINVAL);
    conf.n_workers = PVS_MAX_WORKERS + 1;
    CHECK_EQ(pvs_switch_create(&conf, &sw), -EINVAL);
    conf.n_workers = 1;
    conf.polling = 3;
    CHECK_EQ(pvs_switch_create(&conf, &sw), -EINVAL);
}

TEST_EACH_RING(a_command_is_finished_only_when_every_worker_has_run)
{
    uint64_t seq;
    int64_t result;
    open_ports(1, 3);
    drain(pvs_wake_fd(lab.sw));
    pvs_wake_clear(lab.sw);
    int64_t expected = pvs_publish(lab.sw, &lab.port[0].conf, 1, &lab.conf.bridge, 1);
    CHECK(expected > 0);
    static const uint32_t order[] = { 2, 0, 1 };
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(reap_one(&seq, &result), 0);
        CHECK_EQ(drain(pvs_wake_fd(lab.sw)), 0);
        CHECK_EQ(pvs_poll_once(lab.sw, order[i], lab.now_ns), 1);
    }
    CHECK_EQ(drain(pvs_wake_fd(lab.sw)), 1);
    pvs_wake_clear(lab.sw);
    CHECK_EQ(reap_one(&seq, &result), 1);
    CHECK_EQ(seq, expected);
    CHECK_EQ(result, 0);
    CHECK_EQ(reap_one(&seq, &result), 0);
    lab_close(&lab);
}

TEST_EACH_RING(commands_under_way_are_bounded)
{
    open_ports(1, 1);
    int64_t seq = 0;
    for (int i = 0; i < PVS_COMMANDS; i++)
        CHECK((seq = pvs_ring_enable(lab.port[0].port, 0, true)) > 0);
    CHECK_EQ(pvs_ring_enable(lab.port[0].port, 0, true), -EAGAIN);
    CHECK_EQ(pvs_publish(lab.sw, NULL, 0, NULL, 0), -EAGAIN);
    lab_wait(&lab, seq);
    CHECK(pvs_ring_enable(lab.port[0].port, 0, true) > 0);
    lab_close(&lab);
}

TEST_EACH_RING(publish_refuses_what_does_not_fit_together)
{
    open_ports(2, 1);
    struct pvs_port_conf ports[2] = { lab.port[0].conf, lab.port[1].conf };
    ports[1].bridge = 1;
    CHECK_EQ(pvs_publish(lab.sw, ports, 2, &lab.conf.bridge, 1), -EINVAL);
    ports[1] = ports[0];
    CHECK_EQ(pvs_publish(lab.sw, ports, 2, &lab.conf.bridge, 1), -EINVAL);
    CHECK_EQ(pvs_publish(lab.sw, ports, PVS_MAX_PORTS + 1, &lab.conf.bridge, 1), -EINVAL);
    CHECK_EQ(pvs_publish(lab.sw, ports, 2, &lab.conf.bridge, PVS_MAX_BRIDGES + 1), -EINVAL);
    lab_close(&lab);
}

/* ---- ports ---- */

TEST_EACH_RING(ports_have_an_index_and_a_generation)
{
    pvs_port *port[PVS_MAX_PORTS], *more;
    open_ports(0, 1);
    CHECK_EQ(pvs_port_create(lab.sw, 0, &more), -EINVAL);
    CHECK_EQ(pvs_port_create(lab.sw, PVS_MAX_PAIRS + 1, &more), -EINVAL);
    for (uint32_t i = 0; i < PVS_MAX_PORTS; i++) {
        CHECK_EQ(pvs_port_create(lab.sw, 1, &port[i]), 0);
        CHECK_EQ(pvs_port_index(port[i]), i);
    }
    CHECK_EQ(pvs_port_create(lab.sw, 1, &more), -ENOSPC);
    uint32_t old = pvs_port_ref(port[500]);
    CHECK_EQ(pvs_port_destroy(port[500]), 0);
    CHECK_EQ(pvs_port_create(lab.sw, 1, &port[500]), 0);
    CHECK_EQ(pvs_port_index(port[500]), 500);
    CHECK(pvs_port_ref(port[500]) != old);
    lab_close(&lab); /* the switch frees what is left */
}

TEST_EACH_RING(destroy_is_refused_while_a_port_is_in_use)
{
    open_ports(1, 1);
    pvs_port *port = lab.port[0].port;
    CHECK_EQ(pvs_port_destroy(port), -EBUSY); /* published, and its rings run */
    lab_detach(&lab, 0);
    CHECK_EQ(pvs_port_destroy(port), -EBUSY);
    int64_t seq = pvs_publish(lab.sw, NULL, 0, NULL, 0);
    CHECK_EQ(pvs_port_destroy(port), -EBUSY); /* the workers may still use the old tables */
    CHECK_EQ(lab_wait(&lab, seq), 0);
    seq = pvs_ring_enable(port, 0, true);
    CHECK_EQ(pvs_port_destroy(port), -EBUSY); /* a command names it */
    CHECK_EQ(lab_wait(&lab, seq), 0);
    CHECK_EQ(pvs_port_destroy(port), 0);
    lab.conf.n_ports = 0;
    pvd_guest_destroy(lab.port[0].guest);
    lab_close(&lab);
}

TEST_EACH_RING(destroy_waits_only_for_tables_with_the_port)
{
    open_ports(1, 1);
    pvs_port *port = lab.port[0].port;
    lab_detach(&lab, 0);
    struct pvs_port_conf conf = { .port = port, .enabled = true };
    int64_t again = pvs_publish(lab.sw, &conf, 1, &lab.conf.bridge, 1);
    int64_t without = pvs_publish(lab.sw, NULL, 0, NULL, 0);
    CHECK_EQ(pvs_port_destroy(port), -EBUSY);
    CHECK_EQ(lab_wait(&lab, again), 0);
    CHECK_EQ(lab_wait(&lab, without), 0);
    int64_t other = pvs_publish(lab.sw, NULL, 0, NULL, 0);
    CHECK_EQ(pvs_port_destroy(port), 0); /* what else is published meanwhile doesn't name it */
    CHECK_EQ(lab_wait(&lab, other), 0);
    lab.conf.n_ports = 0;
    pvd_guest_destroy(lab.port[0].guest);
    lab_close(&lab);
}

TEST_EACH_RING(memory_stays_while_a_ring_runs)
{
    pvs_memory *old;
    open_ports(1, 1);
    CHECK_EQ(pvs_port_set_memory(lab.port[0].port, NULL, &old), -EBUSY);
    lab_ring_stop(&lab, 0, 0);
    CHECK_EQ(pvs_port_set_memory(lab.port[0].port, NULL, &old), -EBUSY);
    int64_t seq = pvs_ring_stop(lab.port[0].port, 1);
    CHECK_EQ(pvs_port_set_memory(lab.port[0].port, NULL, &old), -EBUSY); /* not before the stop is finished */
    lab_wait(&lab, seq);
    lab.port[0].running[1] = false;
    lab_close(&lab);
}

/* ---- rings ---- */

TEST_EACH_RING(ring_calls_name_a_ring_that_is_there_and_in_the_right_state)
{
    open_ports(1, 1);
    pvs_port *port = lab.port[0].port;
    struct pvs_ring_conf conf = lab_ring_conf(&lab, 0, 0);
    struct pvs_ring_status status;
    CHECK_EQ(pvs_ring_start(port, 2, &conf), -EINVAL);
    CHECK_EQ(pvs_ring_start(port, 0, &conf), -EBUSY);
    CHECK_EQ(pvs_ring_stop(port, 2), -EINVAL);
    CHECK_EQ(pvs_ring_enable(port, 2, true), -EINVAL);
    CHECK_EQ(pvs_ring_set_call(port, 2, -1), -EINVAL);
    CHECK_EQ(pvs_ring_set_call(port, 0, 99999), -EBADF);
    CHECK_EQ(pvs_ring_status(port, 2, &status), -EINVAL);
    lab_ring_stop(&lab, 0, 0);
    CHECK_EQ(pvs_ring_stop(port, 0), -EINVAL);
    CHECK_EQ(pvs_ring_status(port, 0, &status), 0);
    CHECK(!status.running);
    conf.call_fd = 99999;
    CHECK_EQ(pvs_ring_start(port, 0, &conf), -EBADF);
    lab_ring_start(&lab, 0, 0);
    lab_close(&lab);
}

TEST_EACH_RING(a_ring_is_stopped_once)
{
    open_ports(1, 1);
    int64_t seq = pvs_ring_stop(lab.port[0].port, 1);
    CHECK(seq > 0);
    CHECK_EQ(pvs_ring_stop(lab.port[0].port, 1), -EALREADY);
    struct pvs_ring_conf conf = lab_ring_conf(&lab, 0, 1);
    CHECK_EQ(pvs_ring_start(lab.port[0].port, 1, &conf), -EBUSY);
    lab_wait(&lab, seq);
    lab_ring_start(&lab, 0, 1);
    lab_close(&lab);
}

TEST_EACH_RING(a_kick_that_cannot_be_watched_fails_the_start)
{
    open_ports(1, 1);
    lab_ring_stop(&lab, 0, 1);
    struct pvs_ring_conf conf = lab_ring_conf(&lab, 0, 1);
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC); /* epoll refuses regular files */
    conf.kick_fd = file;
    int64_t seq = pvs_ring_start(lab.port[0].port, 1, &conf);
    CHECK_EQ(lab_wait(&lab, seq), -EPERM);
    struct pvs_ring_status status;
    CHECK_EQ(pvs_ring_status(lab.port[0].port, 1, &status), 0);
    CHECK(!status.running);
    lab_ring_start(&lab, 0, 1); /* and can be tried again */
    close(file);
    lab_close(&lab);
}

TEST_EACH_RING(a_stopped_ring_tells_where_it_stopped_and_goes_on_there)
{
    open_ports(2, 1);
    lab_fill(&lab, 1, 100);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 0);
    for (int i = 0; i < 5; i++)
        lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 3);
    CHECK_EQ(lab_ring_stop(&lab, 0, 1), lab_base(&lab, 5));
    CHECK_EQ(lab_ring_stop(&lab, 1, 0), lab_base(&lab, 5));
    for (int i = 0; i < 5; i++)
        lab_expect(&lab, 1, frame, 60);
    lab_send(&lab, 0, frame, 60); /* while nobody serves it */
    lab_poll(&lab, 3);
    CHECK_EQ(lab_used(&lab, 0, 1), lab_base(&lab, 5));
    lab_ring_start(&lab, 1, 0);
    lab_ring_start(&lab, 0, 1);
    lab_poll(&lab, 2); /* looked at without a kick */
    lab_expect(&lab, 1, frame, 60);
    CHECK_EQ(pvd_tx_reap(lab.port[0].guest, 0), 1);
    CHECK_EQ(lab_driver(&lab, 0, 1).errors, 0);
    lab_close(&lab);
}

/* Run one command by hand: what is true when it is counted off must not need the rest of the round. */
static void
run_next(void)
{
    struct pvs_worker *w = lab.sw->worker[0];
    struct pvs_command *command = pvs_mail_take(&w->mail);
    CHECK(command != NULL);
    pvs_command_run(w, command);
}

TEST_EACH_RING(a_stop_publishes_what_was_given_before_it_is_counted_off)
{
    open_ports(1, 1);
    lab_fill(&lab, 0, 10);
    lab_poll(&lab, 3);
    drain(lab_ring_conf(&lab, 0, 0).call_fd);
    pvd_call_arm(lab.port[0].guest, 0);
    lab_frame(frame, LAB_MAC(0), LAB_MAC(5), 60, 0);
    CHECK(pvs_inject(lab.port[0].port, PVS_EGRESS, frame, 60) > 0);
    run_next();
    int64_t stop = pvs_ring_stop(lab.port[0].port, 0);
    run_next();
    struct pvs_worker *w = lab.sw->worker[0];
    CHECK_EQ(w->n_touched, 0);
    CHECK_EQ(w->n_notify, 0);
    CHECK_EQ(lab_used(&lab, 0, 0), lab_base(&lab, 1));
    CHECK_EQ(drain(lab_ring_conf(&lab, 0, 0).call_fd), 1);
    int64_t base = lab_wait(&lab, stop);
    CHECK_EQ(base, lab_base(&lab, 1));
    lab_ring_stopped(&lab, 0, 0, base);
    lab_expect(&lab, 0, frame, 60);
    lab_close(&lab);
}

TEST_EACH_RING(start_and_stop_in_one_round_leave_nothing_behind)
{
    open_ports(1, 1);
    lab_ring_stop(&lab, 0, 0);
    struct pvs_ring_conf conf = lab_ring_conf(&lab, 0, 0);
    CHECK(pvs_ring_start(lab.port[0].port, 0, &conf) > 0);
    int64_t stop = pvs_ring_stop(lab.port[0].port, 0);
    run_next();
    run_next();
    CHECK_EQ(lab.sw->worker[0]->n_notify, 0);
    CHECK_EQ(lab.sw->worker[0]->n_touched, 0);
    CHECK_EQ(lab_wait(&lab, stop), lab_base(&lab, 0));
    lab_close(&lab);
}

TEST_EACH_RING(a_new_call_gets_one_call_and_the_old_one_none)
{
    open_ports(2, 1);
    lab_fill(&lab, 1, 10);
    int old = lab_ring_conf(&lab, 1, 0).call_fd, fresh = eventfd(0, EFD_CLOEXEC);
    drain(old);
    CHECK_EQ(lab_wait(&lab, pvs_ring_set_call(lab.port[1].port, 0, fresh)), 0);
    lab_poll(&lab, 1);
    CHECK_EQ(drain(fresh), 1);
    CHECK((fcntl(fresh, F_GETFL) & O_NONBLOCK) != 0);
    pvd_call_arm(lab.port[1].guest, 0);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(drain(fresh), 1);
    CHECK_EQ(drain(old), 0);
    CHECK_EQ(lab_wait(&lab, pvs_ring_set_call(lab.port[1].port, 0, -1)), 0); /* none: the guest polls */
    lab_expect(&lab, 1, frame, 60);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    lab_expect(&lab, 1, frame, 60);
    CHECK_EQ(drain(fresh), 0);
    close(fresh);
    lab_close(&lab);
}

TEST_EACH_RING(a_started_ring_is_called_once)
{
    open_ports(1, 1);
    lab_poll(&lab, 3);
    for (uint32_t ring = 0; ring < 2; ring++) {
        struct pvs_ring_status status;
        CHECK_EQ(drain(lab_ring_conf(&lab, 0, ring).call_fd), 1);
        CHECK_EQ(pvs_ring_status(lab.port[0].port, ring, &status), 0);
        CHECK_EQ(status.notifications, 1);
        CHECK(status.running && status.enabled);
    }
    lab_close(&lab);
}

TEST_EACH_RING(calls_are_made_once_a_burst_and_only_when_wanted)
{
    struct pvs_ring_status status;
    open_ports(2, 1);
    lab_fill(&lab, 1, 100);
    int call = lab_ring_conf(&lab, 1, 0).call_fd;
    lab_poll(&lab, 2);
    drain(call);
    pvd_call_arm(lab.port[1].guest, 0);
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 0);
    for (int i = 0; i < 20; i++)
        lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 1);
    CHECK_EQ(drain(call), 1);
    for (int i = 0; i < 20; i++)
        lab_expect(&lab, 1, frame, 60);
    pvd_call_disarm(lab.port[1].guest, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(drain(call), 0);
    CHECK_EQ(pvs_ring_status(lab.port[1].port, 0, &status), 0);
    CHECK(status.notifications_suppressed >= 1);
    CHECK_EQ(status.used_idx, (uint16_t)lab_base(&lab, 21));
    CHECK_EQ(status.avail_idx, (uint16_t)lab_base(&lab, lab_packed(&lab) ? 22 : 100));
    CHECK_EQ(status.packets, 21);
    CHECK_EQ(status.bytes, 21 * 60);
    lab_close(&lab);
}

/* ---- inject ---- */

TEST_EACH_RING(injected_egress_goes_straight_to_the_port)
{
    open_ports(2, 1);
    lab_fill(&lab, 0, 10);
    lab_fill(&lab, 1, 10);
    lab_frame(frame, LAB_MAC(77), LAB_MAC(78), 1000, 0);
    CHECK_EQ(lab_wait(&lab, pvs_inject(lab.port[1].port, PVS_EGRESS, frame, 1000)), 0);
    lab_expect(&lab, 1, frame, 1000);
    lab_expect_nothing(&lab, 0);
    CHECK_EQ(pvs_fdb_count(lab.fdb), 0);
    CHECK_EQ(lab_counters(&lab, 1).value[PVS_C_tx_packets], 1);
    lab_close(&lab);
}

TEST_EACH_RING(injected_ingress_is_switched_and_learned_but_not_received)
{
    struct pvs_event e;
    open_ports(3, 1);
    for (uint32_t i = 0; i < 3; i++)
        lab_fill(&lab, i, 10);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(9), 60, 0);
    CHECK_EQ(lab_wait(&lab, pvs_inject(lab.port[1].port, PVS_INGRESS, frame, 60)), 0);
    lab_expect(&lab, 0, frame, 60);
    lab_expect(&lab, 2, frame, 60);
    lab_expect_nothing(&lab, 1);
    CHECK_EQ(lab_counters(&lab, 1).value[PVS_C_rx_packets], 0);
    CHECK_EQ(pvs_event_next(lab.sw, &e), 1);
    CHECK_EQ(e.kind, PVS_EV_LEARNED);
    CHECK_EQ(e.port_ref, pvs_port_ref(lab.port[1].port));
    lab_close(&lab);
}

TEST_EACH_RING(inject_checks_its_arguments_and_the_port)
{
    open_ports(1, 1);
    pvs_port *loose;
    CHECK_EQ(pvs_inject(lab.port[0].port, 2, frame, 60), -EINVAL);
    CHECK_EQ(pvs_inject(lab.port[0].port, PVS_EGRESS, frame, 13), -EINVAL);
    CHECK_EQ(pvs_inject(lab.port[0].port, PVS_EGRESS, frame, PVS_MAX_FRAME + 1), -EINVAL);
    CHECK_EQ(pvs_port_create(lab.sw, 1, &loose), 0);
    CHECK_EQ(lab_wait(&lab, pvs_inject(loose, PVS_INGRESS, frame, 60)), -ENOENT); /* not in the tables */
    CHECK_EQ(pvs_port_destroy(loose), 0);
    lab.port[0].conf.enabled = false;
    lab_publish(&lab);
    lab_fill(&lab, 0, 5);
    CHECK_EQ(lab_wait(&lab, pvs_inject(lab.port[0].port, PVS_EGRESS, frame, 60)), -ENETDOWN);
    lab_expect_nothing(&lab, 0);
    lab_close(&lab);
}

/* ---- punt ---- */

TEST_EACH_RING(link_local_frames_are_punted_whole)
{
    struct pvs_punt punt;
    static uint8_t got[PVS_MAX_FRAME];
    open_ports(1, 1);
    lab.conf.bridge.punt_bpdu = true;
    lab_publish(&lab);
    lab_frame(frame, 0x0180c2000000ULL, LAB_MAC(1), 300, 5);
    lab_send(&lab, 0, frame, 300);
    lab_poll(&lab, 2);
    CHECK_EQ(pvs_punt_next(lab.sw, &punt, got, 299), -EMSGSIZE);
    CHECK_EQ(punt.len, 300);
    CHECK_EQ(pvs_punt_next(lab.sw, &punt, got, 300), 300);
    CHECK(memcmp(got, frame, 300) == 0);
    CHECK_EQ(punt.port_ref, pvs_port_ref(lab.port[0].port));
    CHECK_EQ(punt.reason, PVS_PUNT_BPDU);
    CHECK(punt.time_ns != 0 && punt.time_ns <= lab.now_ns);
    CHECK_EQ(pvs_punt_next(lab.sw, &punt, got, 300), 0);
    lab_close(&lab);
}

TEST_EACH_RING(punts_over_their_rate_are_counted_as_lost)
{
    struct pvs_punt punt;
    int n = 0;
    open_ports(1, 1);
    lab.conf.bridge.punt_bpdu = true;
    lab_publish(&lab);
    lab_frame(frame, 0x0180c2000000ULL, LAB_MAC(1), 60, 5);
    for (int i = 0; i < PVS_PUNT_PER_SECOND + 50; i++) {
        lab_send(&lab, 0, frame, 60);
        lab_poll(&lab, 1);
    }
    while (pvs_punt_next(lab.sw, &punt, frame, sizeof frame) > 0)
        n++;
    CHECK_EQ(n, PVS_PUNT_PER_SECOND);
    CHECK_EQ(pvs_lost(lab.sw, 1 + PVS_PUNT_BPDU), 50);
    CHECK_EQ(pvs_lost(lab.sw, 0), 0);
    CHECK_EQ(pvs_lost(lab.sw, 99), 0);
    lab_close(&lab);
}

TEST_EACH_RING(punts_without_room_are_counted_as_lost)
{
    struct pvs_punt punt;
    struct lab_conf conf = lab_conf_default(1);
    uint64_t n = 0;
    conf.guest.tx_buf_size = 20000;
    lab_open(&lab, &conf);
    lab.conf.bridge.punt_bpdu = true;
    lab_publish(&lab);
    lab_frame(frame, 0x0180c2000000ULL, LAB_MAC(1), 15000, 5);
    for (int i = 0; i < 200; i++) {
        lab_send(&lab, 0, frame, 15000);
        lab_poll(&lab, 1);
    }
    while (pvs_punt_next(lab.sw, &punt, frame, sizeof frame) > 0)
        n++;
    CHECK(n > 50);
    CHECK_EQ(n + pvs_lost(lab.sw, 1), 200);
    lab_close(&lab);
}

/* ---- events ---- */

TEST_EACH_RING(events_without_room_are_counted_as_lost)
{
    struct lab_conf conf = lab_conf_default(1);
    struct pvs_event e;
    uint64_t n = 0, learned;
    conf.fdb_limit = 20000;
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < 8000; i++) {
        lab_frame(frame, LAB_BROADCAST, LAB_MAC(0x1000 + i), 14, 0);
        lab_send(&lab, 0, frame, 14);
        if (i % 30 == 0)
            CHECK(pvs_poll_once(lab.sw, 0, lab.now_ns) >= 0);
    }
    lab_poll(&lab, 3);
    learned = pvs_fdb_count(lab.fdb);
    CHECK_EQ(learned, 8000);
    while (pvs_event_next(lab.sw, &e) == 1) {
        CHECK_EQ(pvs_mac_load(e.mac), LAB_MAC(0x1000 + n)); /* the oldest are kept, in order */
        n++;
    }
    CHECK(n > 1000 && n < 8000);
    CHECK_EQ(n + pvs_lost(lab.sw, 0), 8000);
    lab_close(&lab);
}

TEST(counter_and_drop_names_are_there)
{
    for (uint32_t i = 0; i < pvs_counter_count(); i++)
        CHECK(pvs_counter_name(i) != NULL && pvs_counter_name(i)[0] != 0);
    CHECK(pvs_counter_name(pvs_counter_count()) == NULL);
    for (uint32_t i = 0; i < pvs_drop_reason_count(); i++)
        CHECK(pvs_drop_reason_name(i) != NULL && pvs_drop_reason_name(i)[0] != 0);
    CHECK(pvs_drop_reason_name(pvs_drop_reason_count()) == NULL);
    CHECK(strcmp(pvs_drop_reason_name(PVS_DROP_guest_rx_full), "guest_rx_full") == 0);
}
