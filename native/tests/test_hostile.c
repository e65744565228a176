/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_hostile.c - a guest or front end that breaks the rules: its port is latched broken with the reason, everybody else
 * goes on, nothing crashes or hangs.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>

#include "lab.h"

enum { BAD = 2, N = PVD_DESC_NEXT, W = PVD_DESC_WRITE, I = PVD_DESC_INDIRECT };

static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME];

/* Ports 0 and 1 are good, port 2 will not be. */
static void
set_up(void)
{
    struct lab_conf conf = lab_conf_default(3);
    conf.guest.queue_size = 64;
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < 3; i++)
        lab_fill(&lab, i, 32);
    lab_learn_all(&lab);
}

static void
good_ports_go_on(void)
{
    for (uint32_t i = 0; i < 5; i++) {
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 200 + i, i);
        lab_send(&lab, 0, frame, 200 + i);
        lab_poll(&lab, 2);
        lab_expect(&lab, 1, frame, 200 + i);
        lab_frame(frame, LAB_MAC(0), LAB_MAC(1), 300 + i, i);
        lab_send(&lab, 1, frame, 300 + i);
        lab_poll(&lab, 2);
        lab_expect(&lab, 0, frame, 300 + i);
        lab_fill(&lab, 0, 1);
        lab_fill(&lab, 1, 1);
    }
    CHECK_EQ(pvs_port_broken(lab.port[0].port), 0);
    CHECK_EQ(pvs_port_broken(lab.port[1].port), 0);
}

/* The port is latched with this reason, said so once, and is left alone from then on. */
static void
expect_broken(enum pvs_broken why)
{
    struct pvs_event e;
    int told = 0;
    struct pvs_ring_status before, after;
    CHECK_EQ(pvs_port_broken(lab.port[BAD].port), why);
    while (pvs_event_next(lab.sw, &e) == 1) {
        if (e.kind != PVS_EV_BROKEN)
            continue;
        told++;
        CHECK_EQ(e.detail, why);
        CHECK_EQ(e.port_ref, pvs_port_ref(lab.port[BAD].port));
    }
    CHECK_EQ(told, 1);
    CHECK_EQ(pvs_ring_status(lab.port[BAD].port, 1, &before), 0);
    pvd_kick_force(lab.port[BAD].guest, 1);
    lab_poll(&lab, 20);
    good_ports_go_on();
    lab_frame(frame, LAB_MAC(BAD), LAB_MAC(0), 60, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, BAD).tx_drop[PVS_DROP_link_down], 1);
    CHECK_EQ(pvs_ring_status(lab.port[BAD].port, 1, &after), 0);
    CHECK_EQ(before.used_idx, after.used_idx);
    CHECK_EQ(pvs_event_next(lab.sw, &e), 0);
    CHECK_EQ(pvs_port_broken(lab.port[BAD].port), why);
}

/* A front end that comes back with a reset guest is served again. */
static void
heals(void)
{
    lab_detach(&lab, BAD);
    CHECK_EQ(pvd_guest_reset(lab.port[BAD].guest, lab.conf.guest.features), 0);
    lab_attach(&lab, BAD);
    CHECK_EQ(pvs_port_broken(lab.port[BAD].port), 0);
    lab_fill(&lab, BAD, 10);
    lab_frame(frame, LAB_MAC(BAD), LAB_MAC(0), 100, 0);
    lab_send(&lab, 0, frame, 100);
    lab_poll(&lab, 2);
    lab_expect(&lab, BAD, frame, 100);
    lab_frame(frame, LAB_MAC(0), LAB_MAC(BAD), 101, 0);
    lab_send(&lab, BAD, frame, 101);
    lab_poll(&lab, 2);
    lab_expect(&lab, 0, frame, 101);
    lab_close(&lab);
}

static void
post(uint32_t ring, uint16_t head)
{
    CHECK_EQ(pvd_raw_post(lab.port[BAD].guest, ring, head), 0);
    pvd_kick_force(lab.port[BAD].guest, ring);
    lab_poll(&lab, 2);
}

static void
desc(uint32_t ring, uint32_t i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    struct pvd_desc d = { .addr = addr, .len = len, .flags = flags, .next = next };
    CHECK_EQ(pvd_desc_set(lab.port[BAD].guest, ring, i, &d), 0);
}

static uint64_t
scratch(void)
{
    return pvd_scratch_gpa(lab.port[BAD].guest);
}

/* ---- the transmit ring ---- */

TEST(broken_tx_avail_jump)
{
    set_up();
    pvd_avail_idx_set(lab.port[BAD].guest, 1, (uint16_t)(pvd_used_idx(lab.port[BAD].guest, 1) + 65));
    pvd_kick_force(lab.port[BAD].guest, 1);
    lab_poll(&lab, 2);
    expect_broken(PVS_BROKEN_AVAIL_JUMP);
    heals();
}

TEST(broken_tx_head_range)
{
    set_up();
    post(1, 64);
    expect_broken(PVS_BROKEN_HEAD_RANGE);
    heals();
}

TEST(broken_tx_next_range)
{
    set_up();
    desc(1, 0, scratch(), 100, N, 64);
    post(1, 0);
    expect_broken(PVS_BROKEN_NEXT_RANGE);
    heals();
}

TEST(broken_tx_circular_chain)
{
    set_up();
    desc(1, 0, scratch(), 100, N, 1);
    desc(1, 1, scratch(), 100, N, 0);
    post(1, 0);
    expect_broken(PVS_BROKEN_CHAIN_LONG);
    heals();
}

TEST(broken_tx_bad_address)
{
    set_up();
    desc(1, 0, UINT64_MAX - 50, 100, 0, 0);
    post(1, 0);
    expect_broken(PVS_BROKEN_BAD_ADDRESS);
    heals();
}

TEST(broken_tx_indirect_size)
{
    set_up();
    desc(1, 0, scratch(), 17, I, 0);
    post(1, 0);
    expect_broken(PVS_BROKEN_INDIRECT_SIZE);
    heals();
}

TEST(broken_tx_indirect_with_next)
{
    set_up();
    desc(1, 0, scratch(), 16, I | N, 1);
    post(1, 0);
    expect_broken(PVS_BROKEN_INDIRECT_NEXT);
    heals();
}

TEST(broken_tx_nested_indirect)
{
    struct pvd_desc inner = { .addr = 0, .len = 16, .flags = I };
    set_up();
    memcpy(pvd_ptr(lab.port[BAD].guest, scratch(), sizeof inner), &inner, sizeof inner);
    desc(1, 0, scratch(), 16, I, 0);
    post(1, 0);
    expect_broken(PVS_BROKEN_INDIRECT_REFUSED);
    heals();
}

TEST(frames_before_the_malformed_chain_are_delivered)
{
    set_up();
    lab_frame(frame, LAB_MAC(0), LAB_MAC(BAD), 77, 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(pvd_tx(lab.port[BAD].guest, 0, NULL, frame, 77, NULL), 0);
    post(1, 9999);
    for (int i = 0; i < 3; i++)
        lab_expect(&lab, 0, frame, 77);
    CHECK_EQ(lab_driver(&lab, BAD, 1).errors, 0);
    expect_broken(PVS_BROKEN_HEAD_RANGE);
    heals();
}

/* ---- the receive ring ---- */

/* Take away the buffers, post one bad chain, and send a frame at it: by unicast or in a flood. */
static void
receive_into(uint16_t head, uint64_t dst)
{
    lab_detach(&lab, BAD);
    CHECK_EQ(pvd_guest_reset(lab.port[BAD].guest, lab.conf.guest.features), 0);
    lab_attach(&lab, BAD);
    CHECK_EQ(pvd_raw_post(lab.port[BAD].guest, 0, head), 0);
    lab_frame(frame, dst, LAB_MAC(0), 400, 1);
    lab_send(&lab, 0, frame, 400);
    lab_poll(&lab, 2);
    if (dst == LAB_BROADCAST)
        lab_expect(&lab, 1, frame, 400);
}

#define RX_TEST(name, i, addr, len, flags, next, head, why)                             \
    TEST(broken_rx_##name)                                                              \
    {                                                                                   \
        for (int flood = 0; flood < 2; flood++) {                                       \
            set_up();                                                                   \
            lab_detach(&lab, BAD);                                                      \
            CHECK_EQ(pvd_guest_reset(lab.port[BAD].guest, lab.conf.guest.features), 0); \
            lab_attach(&lab, BAD);                                                      \
            desc(0, i, addr, len, flags, next);                                         \
            CHECK_EQ(pvd_raw_post(lab.port[BAD].guest, 0, head), 0);                    \
            lab_frame(frame, flood ? LAB_BROADCAST : LAB_MAC(BAD), LAB_MAC(0), 400, 1); \
            lab_send(&lab, 0, frame, 400);                                              \
            lab_poll(&lab, 2);                                                          \
            if (flood)                                                                  \
                lab_expect(&lab, 1, frame, 400);                                        \
            CHECK_EQ(lab_sum(lab_counters(&lab, BAD).tx_drop), 1);                      \
            expect_broken(PVS_BROKEN_##why);                                            \
            heals();                                                                    \
        }                                                                               \
    }

RX_TEST(head_range, 0, 0, 0, 0, 0, 64, HEAD_RANGE)
RX_TEST(next_range, 0, scratch(), 20, W | N, 0xffff, 0, NEXT_RANGE)
RX_TEST(circular, 0, scratch(), 20, W | N, 0, 0, CHAIN_LONG)
RX_TEST(bad_address, 0, 1, 2000, W, 0, 0, BAD_ADDRESS)
RX_TEST(readable, 0, scratch(), 2000, 0, 0, 0, RX_READABLE)
RX_TEST(tiny, 0, scratch(), 11, W, 0, 0, RX_TINY)
RX_TEST(of_no_length, 0, scratch(), 0, W, 0, 0, RX_TINY)
RX_TEST(indirect_size, 0, scratch(), 0, I | W, 0, 0, INDIRECT_SIZE)

TEST(broken_rx_avail_jump)
{
    set_up();
    receive_into(0, LAB_MAC(1)); /* nothing for the bad port yet */
    pvd_avail_idx_set(lab.port[BAD].guest, 0, 0x9000);
    lab_frame(frame, LAB_MAC(BAD), LAB_MAC(0), 60, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(pvs_port_broken(lab.port[BAD].port), PVS_BROKEN_AVAIL_JUMP);
    lab_poll(&lab, 5);
    lab_close(&lab);
}

TEST(a_receive_chain_of_a_thousand_straddling_pieces_is_only_too_small)
{
    struct pvd_region r;
    struct lab_conf conf = lab_conf_default(2);
    conf.guest.queue_size = 2048;
    conf.guest.n_regions = 2;
    conf.guest.flags = PVD_CONF_ADJACENT;
    lab_open(&lab, &conf);
    CHECK_EQ(pvd_region_get(lab.port[1].guest, 1, &r), 0);
    for (uint32_t i = 0; i < 1022; i++) { /* 1022 one-byte pieces, then one across two regions: 1024 segments */
        struct pvd_desc d = { .addr = r.gpa, .len = 1, .flags = W | N, .next = (uint16_t)(i + 1) };
        CHECK_EQ(pvd_desc_set(lab.port[1].guest, 0, i, &d), 0);
    }
    struct pvd_desc last = { .addr = r.gpa - 1, .len = 2, .flags = W };
    CHECK_EQ(pvd_desc_set(lab.port[1].guest, 0, 1022, &last), 0);
    CHECK_EQ(pvd_raw_post(lab.port[1].guest, 0, 1), 0);    /* 1023 segments */
    CHECK_EQ(pvd_raw_post(lab.port[1].guest, 0, 1022), 0); /* its first piece has two, and one place is left */
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 1514, 1);
    lab_send(&lab, 0, frame, 1514);
    lab_poll(&lab, 2);
    CHECK_EQ(pvs_port_broken(lab.port[1].port), 0);
    CHECK_EQ(lab_counters(&lab, 1).tx_drop[PVS_DROP_guest_rx_too_small], 1);
    lab_close(&lab);
}

/* ---- memory that goes away ---- */

/* The front end of the bad port cuts its file while frames go to and fro. */
static void
cut_memory(bool to_it, bool from_it, bool inject)
{
    set_up();
    lab_fill(&lab, BAD, 20);
    lab_frame(frame, LAB_MAC(0), LAB_MAC(BAD), 500, 0);
    if (from_it)
        lab_send(&lab, BAD, frame, 500);
    CHECK_EQ(pvd_truncate_memory(lab.port[BAD].guest, 0, 0), 0);
    lab_frame(frame, LAB_MAC(BAD), LAB_MAC(0), 500, 0);
    if (to_it)
        lab_send(&lab, 0, frame, 500);
    if (inject)
        CHECK_EQ(lab_wait(&lab, pvs_inject(lab.port[BAD].port, PVS_EGRESS, frame, 500)), 0);
    lab_poll(&lab, 3);
    CHECK_EQ(pvs_port_broken(lab.port[BAD].port), PVS_BROKEN_MEMORY_LOST);
    good_ports_go_on();
    struct pvs_ring_conf conf = lab_ring_conf(&lab, BAD, 1);
    lab_ring_stop(&lab, BAD, 1);
    CHECK_EQ(pvs_ring_start(lab.port[BAD].port, 1, &conf), -EFAULT); /* not on this memory */
    good_ports_go_on();
    lab_close(&lab);
}

TEST(truncated_under_transmission)
{
    cut_memory(false, true, false);
}

TEST(truncated_under_reception)
{
    cut_memory(true, false, false);
}

TEST(truncated_under_both)
{
    cut_memory(true, true, false);
}

TEST(truncated_under_an_injected_frame)
{
    cut_memory(false, false, true);
}

TEST(truncated_buffers_with_the_rings_still_there)
{
    struct lab_conf conf = lab_conf_default(3);
    conf.guest.queue_size = 64;
    conf.guest.n_regions = 4;
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < 3; i++)
        lab_fill(&lab, i, 64);
    lab_learn_all(&lab);
    CHECK_EQ(pvd_truncate_memory(lab.port[BAD].guest, 3, 0), 0); /* the rings of this guest lie in 0 to 2 and 3 */
    lab_frame(frame, LAB_MAC(BAD), LAB_MAC(0), 1500, 0);
    for (int i = 0; i < 10; i++)
        lab_send(&lab, 0, frame, 1500);
    lab_poll(&lab, 5);
    CHECK_EQ(pvs_port_broken(lab.port[BAD].port), PVS_BROKEN_MEMORY_LOST);
    good_ports_go_on();
    lab_close(&lab);
}

/* ---- descriptors of kicks and calls ---- */

TEST(a_full_call_does_not_stop_the_worker)
{
    set_up();
    int call = lab_ring_conf(&lab, 1, 0).call_fd;
    uint64_t full = UINT64_MAX - 1;
    (void)!read(call, &(uint64_t){ 0 }, 8);
    CHECK_EQ(write(call, &full, sizeof full), sizeof full);
    for (int i = 0; i < 3; i++) {
        pvd_call_arm(lab.port[1].guest, 0);
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 0);
        lab_send(&lab, 0, frame, 60);
        lab_poll(&lab, 2);
        lab_expect(&lab, 1, frame, 60);
    }
    good_ports_go_on();
    lab_close(&lab);
}

TEST(a_front_end_that_kicks_all_the_time_stops_nobody)
{
    set_up();
    for (int i = 0; i < 2000; i++) {
        pvd_kick_force(lab.port[BAD].guest, 1);
        pvd_kick_force(lab.port[BAD].guest, 0);
        lab_poll(&lab, 1);
    }
    good_ports_go_on();
    struct pvs_ring_status status;
    CHECK_EQ(pvs_ring_status(lab.port[BAD].port, 1, &status), 0);
    CHECK(status.kicks > 1000);
    lab_close(&lab);
}

TEST(cve_2019_14818_a_ring_started_again_and_again_leaks_nothing)
{
    set_up();
    int before = eventfd(0, EFD_CLOEXEC);
    for (int i = 0; i < 200; i++) {
        lab_detach(&lab, BAD);
        lab_attach(&lab, BAD);
    }
    int after = eventfd(0, EFD_CLOEXEC);
    CHECK_EQ(after, before + 1);
    good_ports_go_on();
    close(before);
    close(after);
    lab_close(&lab);
}

/* ---- work without end ---- */

TEST(one_guest_does_not_starve_the_others)
{
    /* a guest that always has 32 large floods ready takes turns with one that has a frame now and then */
    struct lab_conf conf = lab_conf_default(4);
    conf.guest.rx_buf_size = 66000;
    conf.guest.tx_buf_size = 66000;
    conf.guest.queue_size = 64;
    lab_open(&lab, &conf);
    static uint8_t big[65000];
    lab_frame(big, LAB_BROADCAST, LAB_MAC(3), sizeof big, 0);
    for (uint32_t i = 0; i < 4; i++)
        lab_fill(&lab, i, 64);
    for (int round = 0; round < 10; round++) {
        while (pvd_tx(lab.port[3].guest, 0, NULL, big, sizeof big, NULL) == 0)
            ;
        pvd_kick(lab.port[3].guest, 1);
        lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), 60, 0);
        lab_send(&lab, 0, frame, 60);
        uint64_t before = lab_counters(&lab, 0).value[PVS_C_rx_packets];
        uint64_t bytes = lab_counters(&lab, 3).value[PVS_C_rx_bytes];
        lab_poll(&lab, 1);
        CHECK_EQ(lab_counters(&lab, 0).value[PVS_C_rx_packets], before + 1);
        /* bytes times copies: a turn costs at most the budget and one frame more */
        CHECK((lab_counters(&lab, 3).value[PVS_C_rx_bytes] - bytes) * 3 <= 512 * 1024 + 4 * sizeof big);
        for (uint32_t i = 0; i < 4; i++) {
            while (pvd_rx(lab.port[i].guest, 0, frame, sizeof frame, NULL) >= 0)
                ;
            CHECK(pvd_tx_reap(lab.port[i].guest, 0) >= 0);
            lab_fill(&lab, i, 64);
        }
    }
    lab_close(&lab);
}
