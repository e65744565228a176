/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_recorder.c - the flight recorder: what it says of drops and of sampled frames, step by step. That its records stand for as many
 * drops as are counted is checked at the end of every lab (lab_check_records).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lab.h"
#include "recorder.h"

enum { SENDER = 0, RECEIVER, OTHER, PORTS, LEN = 200 };

static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME];
static struct pvs_record record[PVS_RECORDS];

static void
open_it(void)
{
    struct lab_conf conf = lab_conf_default(PORTS);
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < PORTS; i++)
        lab_fill(&lab, i, 128);
    lab_learn_all(&lab);
    for (uint32_t i = 0; i < PORTS; i++)
        lab_fill(&lab, i, 128);
}

static void
send_to(uint64_t dst, uint32_t salt)
{
    lab_frame(frame, dst, LAB_MAC(SENDER), LEN, salt);
    lab_send(&lab, SENDER, frame, LEN);
}

static uint32_t
read_all(uint32_t ring)
{
    return pvs_records_read(lab.sw, 0, ring, 0, record, PVS_RECORDS);
}

/* Has it the first bytes of the frame that was built last? */
static void
check_bytes(const struct pvs_record *r)
{
    CHECK_EQ(r->len, LEN);
    CHECK_EQ(r->n_bytes, sizeof r->bytes);
    CHECK(memcmp(r->bytes, frame, sizeof r->bytes) == 0);
}

static void
sample(uint32_t every, const struct pvs_bpf *filter, uint32_t n)
{
    CHECK_EQ(lab_wait(&lab, pvs_recorder_set(lab.sw, every, filter, n)), 0);
}

/* ---- drops ---- */

TEST_EACH_RING(a_frame_that_goes_nowhere_is_recorded_at_the_port_it_came_by)
{
    open_it();
    lab.port[SENDER].conf.vlan_mode = PVS_VLAN_ACCESS;
    lab.port[SENDER].conf.tag = 7; /* nobody else is in it */
    lab.port[RECEIVER].conf.vlan_mode = lab.port[OTHER].conf.vlan_mode = PVS_VLAN_ACCESS;
    lab.port[RECEIVER].conf.tag = lab.port[OTHER].conf.tag = 8;
    lab_publish(&lab);
    send_to(LAB_MAC(RECEIVER), 1);
    uint64_t before = lab.now_ns;
    lab_poll(&lab, 1);
    CHECK_EQ(read_all(PVS_RECORD_DROPS), 1);
    CHECK_EQ(record[0].number, 0);
    CHECK(record[0].time_ns > before - LAB_STEP_NS && record[0].time_ns <= lab.now_ns);
    CHECK_EQ(record[0].kind, PVS_RECORD_RX_DROP);
    CHECK_EQ(record[0].drop, PVS_DROP_no_destination);
    CHECK_EQ(record[0].port_ref, pvs_port_ref(lab.port[SENDER].port));
    CHECK_EQ(record[0].in_ref, record[0].port_ref);
    CHECK_EQ(record[0].count, 1);
    CHECK_EQ(record[0].vid, 7);
    check_bytes(&record[0]);
    lab_close(&lab);
}

TEST_EACH_RING(a_copy_that_is_dropped_is_recorded_at_the_port_it_was_for)
{
    open_it();
    lab.port[RECEIVER].conf.mtu = 100;
    lab_publish(&lab);
    send_to(LAB_MAC(RECEIVER), 1);
    lab_poll(&lab, 1);
    CHECK_EQ(read_all(PVS_RECORD_DROPS), 1);
    CHECK_EQ(record[0].kind, PVS_RECORD_TX_DROP);
    CHECK_EQ(record[0].drop, PVS_DROP_mtu_exceeded);
    CHECK_EQ(record[0].port_ref, pvs_port_ref(lab.port[RECEIVER].port));
    CHECK_EQ(record[0].in_ref, pvs_port_ref(lab.port[SENDER].port));
    check_bytes(&record[0]);
    lab_close(&lab);
}

/* By the short way, on lists. */
TEST_EACH_RING(copies_for_a_full_guest_are_recorded_one_by_one)
{
    enum { FRAMES = 200, ROOM = 100 };

    open_it();
    CHECK(lab_ring_stop(&lab, RECEIVER, 0) >= 0);
    lab_detach(&lab, RECEIVER);
    lab_reset(&lab, RECEIVER);
    lab_attach(&lab, RECEIVER);
    lab_fill(&lab, RECEIVER, ROOM);
    for (uint32_t i = 0; i < FRAMES; i++)
        send_to(LAB_MAC(RECEIVER), i);
    lab_poll(&lab, 10);
    CHECK_EQ(lab_counters(&lab, RECEIVER).tx_drop[PVS_DROP_guest_rx_full], FRAMES - ROOM);
    CHECK_EQ(read_all(PVS_RECORD_DROPS), FRAMES - ROOM);
    for (uint32_t i = 0; i < FRAMES - ROOM; i++) {
        lab_frame(frame, LAB_MAC(RECEIVER), LAB_MAC(SENDER), LEN, ROOM + i);
        CHECK_EQ(record[i].number, i);
        CHECK_EQ(record[i].drop, PVS_DROP_guest_rx_full);
        check_bytes(&record[i]);
    }
    lab_close(&lab);
}

/* What lies in the place of its bytes was another guest's. */
TEST_EACH_RING(of_a_malformed_frame_nothing_is_told_that_was_not_in_it)
{
    open_it();
    send_to(LAB_MAC(RECEIVER), 1);
    lab_poll(&lab, 1);
    CHECK(pvd_tx_reap(lab.port[SENDER].guest, 0) >= 0);
    CHECK_EQ(pvd_tx(lab.port[SENDER].guest, 0, NULL, frame, 13, NULL), 0);
    CHECK_EQ(pvd_tx(lab.port[SENDER].guest, 0, NULL, frame, 0, NULL), 0);
    lab_poll(&lab, 1);
    CHECK_EQ(read_all(PVS_RECORD_DROPS), 2);
    CHECK_EQ(record[0].drop, PVS_DROP_malformed);
    CHECK_EQ(record[0].n_bytes, 13);
    CHECK_EQ(record[0].len, 13);
    CHECK(memcmp(record[0].bytes, frame, 13) == 0);
    CHECK_EQ(record[0].bytes[13], 0);
    CHECK_EQ(record[1].drop, PVS_DROP_malformed);
    CHECK_EQ(record[1].n_bytes, 0);
    CHECK_EQ(record[1].len, 0);
    CHECK_EQ(record[1].bytes[0], 0);
    lab_close(&lab);
}

TEST_EACH_RING(what_control_injects_is_not_a_port_s_drop)
{
    open_it();
    lab.conf.bridge.flood_unknown = false;
    lab_publish(&lab);
    lab_frame(frame, LAB_MAC(99), LAB_MAC(SENDER), LEN, 1);
    CHECK_EQ(lab_wait(&lab, pvs_inject(lab.port[SENDER].port, PVS_INGRESS, frame, LEN)), 0);
    CHECK_EQ(read_all(PVS_RECORD_DROPS), 0);
    lab_close(&lab);
}

TEST_EACH_RING(the_oldest_records_are_written_over)
{
    enum { MORE = 100 };

    open_it();
    lab.conf.bridge.flood_unknown = false;
    lab_publish(&lab);
    for (uint32_t i = 0; i < PVS_RECORDS + MORE; i++) {
        send_to(LAB_MAC(99), i);
        if (i % 32 == 31)
            lab_poll(&lab, 1);
    }
    lab_poll(&lab, 2);
    CHECK_EQ(read_all(PVS_RECORD_DROPS), PVS_RECORDS);
    CHECK_EQ(record[0].number, MORE);
    CHECK_EQ(record[PVS_RECORDS - 1].number, PVS_RECORDS + MORE - 1);
    check_bytes(&record[PVS_RECORDS - 1]);
    CHECK_EQ(pvs_records_read(lab.sw, 0, PVS_RECORD_DROPS, 1000, record, 3),
             3); /* from a number on, no more than asked */
    CHECK_EQ(record[0].number, 1000);
    CHECK_EQ(pvs_records_read(lab.sw, 0, PVS_RECORD_DROPS, PVS_RECORDS + MORE, record, 3), 0);
    CHECK_EQ(pvs_records_read(lab.sw, 1, PVS_RECORD_DROPS, 0, record, 3), 0); /* no such worker, or ring */
    CHECK_EQ(pvs_records_read(lab.sw, 0, 2, 0, record, 3), 0);
    lab_close(&lab);
}

/* ---- samples ---- */

TEST_EACH_RING(one_frame_of_so_many_is_a_sample)
{
    static const uint32_t every[] = { 1, 7, 64, 100 };
    enum { FRAMES = 700 };

    for (uint32_t k = 0; k < sizeof every / sizeof every[0]; k++) {
        open_it();
        sample(every[k], NULL, 0);
        uint32_t before = read_all(PVS_RECORD_FRAMES);
        for (uint32_t i = 1; i <= FRAMES; i++) { /* to one after the other, or in a row */
            send_to(LAB_MAC(i % 50 < 25 ? RECEIVER : RECEIVER + i % 2), i);
            if (i % 50 == 0) {
                lab_poll(&lab, 2);
                lab_fill(&lab, RECEIVER, 50);
                lab_fill(&lab, OTHER, 50);
            }
        }
        CHECK_EQ(read_all(PVS_RECORD_FRAMES) - before, FRAMES / every[k]);
        for (uint32_t n = 0; n < FRAMES / every[k]; n++) {
            const struct pvs_record *r = &record[before + n];
            uint32_t i = (n + 1) * every[k], to = i % 50 < 25 ? RECEIVER : RECEIVER + i % 2;
            lab_frame(frame, LAB_MAC(to), LAB_MAC(SENDER), LEN, i);
            check_bytes(r);
            CHECK_EQ(r->kind, PVS_RECORD_FRAME);
            CHECK_EQ(r->port_ref, pvs_port_ref(lab.port[SENDER].port));
            CHECK_EQ(r->drop, PVS_DROP_none);
            CHECK_EQ(r->copies, 1);
            CHECK_EQ(r->out, pvs_port_index(lab.port[to].port));
        }
        lab_close(&lab);
    }
}

TEST_EACH_RING(a_sample_says_what_became_of_the_frame)
{
    open_it();
    sample(1, NULL, 0);
    send_to(LAB_BROADCAST, 1);
    send_to(LAB_MAC(SENDER), 2);
    lab_poll(&lab, 2);
    CHECK_EQ(read_all(PVS_RECORD_FRAMES), 2);
    CHECK_EQ(record[0].copies, 2);
    CHECK_EQ(record[0].out, pvs_port_index(lab.port[RECEIVER].port));
    CHECK_EQ(record[1].drop, PVS_DROP_same_port);
    CHECK_EQ(record[1].copies, 0);
    sample(0, NULL, 0);
    send_to(LAB_BROADCAST, 3);
    lab_poll(&lab, 2);
    CHECK_EQ(read_all(PVS_RECORD_FRAMES), 2);
    lab_close(&lab);
}

TEST_EACH_RING(a_filter_chooses_the_samples)
{
    static const struct pvs_bpf to_other[] = { /* ether[5] == 2 */
                                               { 0x30, 0, 0, 5 },
                                               { 0x15, 0, 1, OTHER },
                                               { 0x06, 0, 0, 0xffff },
                                               { 0x06, 0, 0, 0 }
    };
    static const struct pvs_bpf bad[] = { { 0x05, 0, 0, 1 } };

    open_it();
    CHECK_EQ(pvs_recorder_set(lab.sw, 1, bad, 1), -EINVAL);
    sample(1, NULL, 0);
    sample(3, to_other, 4);
    for (uint32_t i = 1; i <= 60; i++)
        send_to(LAB_MAC(i % 2 == 0 ? RECEIVER : OTHER), i);
    lab_poll(&lab, 4);
    CHECK_EQ(read_all(PVS_RECORD_FRAMES), 10);
    for (uint32_t n = 0; n < 10; n++) {
        lab_frame(frame, LAB_MAC(OTHER), LAB_MAC(SENDER), LEN, 6 * n + 5);
        check_bytes(&record[n]);
    }
    sample(1, NULL, 0); /* and the filter has gone */
    lab_close(&lab);
}

/* With a filter each frame takes the long way, to be looked at; but not where none is to be recorded. */
TEST(a_filter_of_no_samples_looks_at_nothing)
{
    static const struct pvs_bpf all[] = { { 0x06, 0, 0, 0xffff } };
    struct pvs_recorder recorder;
    struct pvs_filter *filter;

    CHECK_EQ(pvs_filter_create(all, 1, &filter), 0);
    CHECK_EQ(pvs_recorder_init(&recorder), 0);
    pvs_recorder_choose(&recorder, 5, filter);
    CHECK(recorder.filter == filter);
    pvs_recorder_choose(&recorder, 0, filter);
    CHECK(recorder.filter == NULL);
    pvs_recorder_fini(&recorder);
    free(filter);
}

/* What waits has not been forwarded: it is recorded when it has. */
TEST_EACH_RING(a_frame_that_waits_is_recorded_once)
{
    open_it();
    lab.port[RECEIVER].conf.backpressure_ms = 1000;
    lab_publish(&lab);
    CHECK(lab_ring_stop(&lab, RECEIVER, 0) >= 0);
    lab_detach(&lab, RECEIVER);
    lab_reset(&lab, RECEIVER);
    lab_attach(&lab, RECEIVER);
    sample(1, NULL, 0);
    uint32_t before = read_all(PVS_RECORD_FRAMES);
    send_to(LAB_MAC(RECEIVER), 1);
    lab_poll(&lab, 10);
    CHECK_EQ(read_all(PVS_RECORD_FRAMES), before);
    lab_fill(&lab, RECEIVER, 10);
    lab_poll(&lab, 3);
    lab_expect(&lab, RECEIVER, frame, LEN);
    CHECK_EQ(read_all(PVS_RECORD_FRAMES), before + 1);
    lab_close(&lab);
}

/* ---- a ring, without a switch ---- */

TEST(a_record_that_is_being_written_over_is_left_out)
{
    struct pvs_recorder recorder;

    CHECK_EQ(pvs_recorder_init(&recorder), 0);
    for (uint32_t i = 0; i < 10; i++)
        pvs_record_put(&recorder.ring[0], &(struct pvs_record){ .time_ns = i });
    recorder.ring[0].slot[4].word[0] = UINT64_MAX; /* as while it is written */
    CHECK_EQ(pvs_record_ring_read(&recorder.ring[0], 2, record, 100), 7);
    CHECK_EQ(record[1].number, 3);
    CHECK_EQ(record[2].number, 5);
    CHECK_EQ(record[2].time_ns, 5);
    recorder.ring[0].slot[5].word[0] = PVS_RECORDS + 5; /* it has been */
    CHECK_EQ(pvs_record_ring_read(&recorder.ring[0], 2, record, 100), 6);
    pvs_recorder_fini(&recorder);
}
