/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_hostile.c - a guest or front end that breaks the rules: its port is latched broken with the reason, everybody else
 * goes on, nothing crashes or hangs.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>

#include "hostile_lab.h"

enum { N = PVD_DESC_NEXT, W = PVD_DESC_WRITE, I = PVD_DESC_INDIRECT };

static uint8_t frame[PVS_MAX_FRAME];

/* ---- what both ring formats can have wrong, on the transmit ring ---- */

/* A chain of these pieces is sent. */
static void
broken_tx(const struct lab_piece *piece, uint32_t n, enum pvs_broken why)
{
    lab_post(&lab, BAD, 1, 0, piece, n);
    hostile_kick(1);
    hostile_expect_broken(why);
    hostile_heal_and_close();
}

TEST_EACH_RING(broken_tx_bad_address)
{
    hostile_open();
    broken_tx(&(struct lab_piece){ UINT64_MAX - 50, 100, 0 }, 1, PVS_BROKEN_BAD_ADDRESS);
}

TEST_EACH_RING(broken_tx_bad_address_in_the_second_piece)
{
    hostile_open();
    struct lab_piece chain[] = { { hostile_scratch(), 100, 0 }, { 1, 100, 0 } };
    broken_tx(chain, 2, PVS_BROKEN_BAD_ADDRESS);
}

TEST_EACH_RING(broken_tx_indirect_size)
{
    hostile_open();
    broken_tx(&(struct lab_piece){ hostile_scratch(), 17, I }, 1, PVS_BROKEN_INDIRECT_SIZE);
}

TEST_EACH_RING(broken_tx_indirect_with_next)
{
    hostile_open();
    struct lab_piece chain[] = { { hostile_scratch(), 16, I }, { hostile_scratch(), 100, 0 } };
    broken_tx(chain, 2, PVS_BROKEN_INDIRECT_NEXT);
}

TEST_EACH_RING(broken_tx_nested_indirect)
{
    hostile_open();
    struct pvd_desc split = { .addr = hostile_scratch(), .len = 16, .flags = I };
    struct pvd_packed_desc packed = { .addr = hostile_scratch(), .len = 16, .flags = I };
    memcpy(pvd_ptr(lab.port[BAD].guest, hostile_scratch(), sizeof split),
           lab_packed(&lab) ? (const void *)&packed : &split, sizeof split);
    broken_tx(&(struct lab_piece){ hostile_scratch(), 16, I }, 1, PVS_BROKEN_INDIRECT_REFUSED);
}

TEST_EACH_RING(frames_before_the_broken_chain_are_delivered)
{
    hostile_open();
    lab_frame(frame, LAB_MAC(0), LAB_MAC(BAD), 77, 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(pvd_tx(lab.port[BAD].guest, 0, NULL, frame, 77, NULL), 0);
    lab_post_bad(&lab, BAD, 1);
    hostile_kick(1);
    for (int i = 0; i < 3; i++)
        lab_expect(&lab, 0, frame, 77);
    CHECK_EQ(lab_driver(&lab, BAD, 1).errors, 0);
    hostile_expect_broken(PVS_BROKEN_BAD_ADDRESS);
    hostile_heal_and_close();
}

/* ---- the same on the receive ring ---- */

#define RX_TEST(name, addr, len, flags, why)                                       \
    TEST_EACH_RING(broken_rx_##name)                                               \
    {                                                                              \
        for (int flood = 0; flood < 2; flood++) {                                  \
            hostile_open();                                                        \
            hostile_empty_rings();                                                 \
            lab_post(&lab, BAD, 0, 0, &(struct lab_piece){ addr, len, flags }, 1); \
            hostile_send_at_it(flood, PVS_BROKEN_##why);                           \
            hostile_heal_and_close();                                              \
        }                                                                          \
    }

RX_TEST(bad_address, 1, 2000, W, BAD_ADDRESS)
RX_TEST(readable, hostile_scratch(), 2000, 0, RX_READABLE)
RX_TEST(tiny, hostile_scratch(), 11, W, RX_TINY)
RX_TEST(of_no_length, hostile_scratch(), 0, W, RX_TINY)
RX_TEST(indirect_size, hostile_scratch(), 0, I | W, INDIRECT_SIZE)

TEST_EACH_RING(broken_rx_readable_behind_a_writable_piece)
{
    hostile_open();
    hostile_empty_rings();
    struct lab_piece chain[] = { { hostile_scratch(), 2000, W }, { hostile_scratch() + 4096, 100, 0 } };
    lab_post(&lab, BAD, 0, 0, chain, 2);
    hostile_send_at_it(false, PVS_BROKEN_RX_READABLE);
    hostile_heal_and_close();
}

/* ---- what only a split ring can have wrong ---- */

static void
post(uint32_t ring, uint16_t head)
{
    CHECK_EQ(pvd_raw_post(lab.port[BAD].guest, ring, head), 0);
}

static void
desc(uint32_t ring, uint32_t i, uint16_t flags, uint16_t next)
{
    struct pvd_desc d = { .addr = hostile_scratch(), .len = 20, .flags = flags, .next = next };
    CHECK_EQ(pvd_desc_set(lab.port[BAD].guest, ring, i, &d), 0);
}

static void
split_broken_tx(enum pvs_broken why)
{
    hostile_kick(1);
    hostile_expect_broken(why);
    hostile_heal_and_close();
}

TEST(split_broken_tx_avail_jump)
{
    hostile_open();
    pvd_avail_idx_set(lab.port[BAD].guest, 1, (uint16_t)(pvd_used_idx(lab.port[BAD].guest, 1) + HOSTILE_NUM + 1));
    split_broken_tx(PVS_BROKEN_AVAIL_JUMP);
}

TEST(split_broken_tx_head_range)
{
    hostile_open();
    post(1, HOSTILE_NUM);
    split_broken_tx(PVS_BROKEN_HEAD_RANGE);
}

TEST(split_broken_tx_next_range)
{
    hostile_open();
    desc(1, 0, N, HOSTILE_NUM);
    post(1, 0);
    split_broken_tx(PVS_BROKEN_NEXT_RANGE);
}

TEST(split_broken_tx_circular_chain)
{
    hostile_open();
    desc(1, 0, N, 1);
    desc(1, 1, N, 0);
    post(1, 0);
    split_broken_tx(PVS_BROKEN_CHAIN_LONG);
}

#define SPLIT_RX_TEST(name, flags, next, head, why)      \
    TEST(split_broken_rx_##name)                         \
    {                                                    \
        for (int flood = 0; flood < 2; flood++) {        \
            hostile_open();                              \
            hostile_empty_rings();                       \
            desc(0, 0, flags, next);                     \
            post(0, head);                               \
            hostile_send_at_it(flood, PVS_BROKEN_##why); \
            hostile_heal_and_close();                    \
        }                                                \
    }

SPLIT_RX_TEST(head_range, W, 0, HOSTILE_NUM, HEAD_RANGE)
SPLIT_RX_TEST(next_range, W | N, 0xffff, 0, NEXT_RANGE)
SPLIT_RX_TEST(circular, W | N, 0, 0, CHAIN_LONG)

TEST(split_broken_rx_avail_jump)
{
    hostile_open();
    hostile_empty_rings();
    pvd_avail_idx_set(lab.port[BAD].guest, 0, 0x9000);
    hostile_send_at_it(false, PVS_BROKEN_AVAIL_JUMP);
    hostile_heal_and_close();
}

/* ---- what is only odd ---- */

/* Among frames of one burst, wherever it stands: nothing is there to be read, so nothing is wrong with the address. */
TEST_EACH_RING(cve_2020_10725_zero_length_at_a_bad_address_in_a_burst)
{
    enum { FRAMES = 9 };
    hostile_open();
    for (uint16_t odd = 0; odd < FRAMES; odd++) {
        uint64_t before = lab_counters(&lab, BAD).rx_drop[PVS_DROP_malformed];
        CHECK(pvd_tx_reap(lab.port[BAD].guest, 0) >= 0);
        lab_frame(frame, LAB_MAC(0), LAB_MAC(BAD), 77, odd);
        for (uint16_t i = 0; i < FRAMES; i++) {
            struct lab_piece nothing = { UINT64_MAX - odd, 0, 0 };
            if (i == odd)
                lab_post(&lab, BAD, 1, 40 + odd, &nothing, 1);
            else
                CHECK_EQ(pvd_tx(lab.port[BAD].guest, 0, NULL, frame, 77, NULL), 0);
        }
        hostile_kick(1);
        CHECK_EQ(pvs_port_broken(lab.port[BAD].port), 0);
        CHECK_EQ(lab_counters(&lab, BAD).rx_drop[PVS_DROP_malformed], before + 1);
        for (uint16_t i = 0; i < FRAMES - 1; i++)
            lab_expect(&lab, 0, frame, 77);
        lab_expect_nothing(&lab, 0);
        hostile_empty_rings();
        lab_fill(&lab, 0, FRAMES);
    }
    hostile_good_ports_go_on();
    hostile_heal_and_close();
}

TEST_EACH_RING(a_receive_chain_of_a_thousand_straddling_pieces_is_only_too_small)
{
    static struct lab_piece chain[1022];
    struct pvd_region r;
    struct lab_conf conf = lab_conf_default(2);
    conf.guest.queue_size = 2048;
    conf.guest.n_regions = 2;
    conf.guest.flags = PVD_CONF_ADJACENT;
    lab_open(&lab, &conf);
    CHECK_EQ(pvd_region_get(lab.port[1].guest, 1, &r), 0);
    for (uint32_t i = 0; i < 1021; i++)
        chain[i] = (struct lab_piece){ r.gpa, 1, W };
    chain[1021] = (struct lab_piece){ r.gpa - 1, 2, W }; /* across two regions */
    lab_post(&lab, 1, 0, 0, chain, 1022);                /* 1023 segments */
    lab_post(&lab, 1, 0, 1022, &chain[1021], 1);         /* this one has two, and one place is left */
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
    hostile_open();
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
    hostile_good_ports_go_on();
    struct pvs_ring_conf conf = lab_ring_conf(&lab, BAD, 1);
    lab_ring_stop(&lab, BAD, 1);
    CHECK_EQ(pvs_ring_start(lab.port[BAD].port, 1, &conf), -EFAULT); /* not on this memory */
    hostile_good_ports_go_on();
    lab_close(&lab);
}

TEST_EACH_RING(truncated_under_transmission)
{
    cut_memory(false, true, false);
}

TEST_EACH_RING(truncated_under_reception)
{
    cut_memory(true, false, false);
}

TEST_EACH_RING(truncated_under_both)
{
    cut_memory(true, true, false);
}

TEST_EACH_RING(truncated_under_an_injected_frame)
{
    cut_memory(false, false, true);
}

TEST_EACH_RING(truncated_buffers_with_the_rings_still_there)
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
    hostile_good_ports_go_on();
    lab_close(&lab);
}

/* ---- descriptors of kicks and calls ---- */

TEST_EACH_RING(a_full_call_does_not_stop_the_worker)
{
    hostile_open();
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
    hostile_good_ports_go_on();
    lab_close(&lab);
}

TEST_EACH_RING(a_front_end_that_kicks_all_the_time_stops_nobody)
{
    hostile_open();
    for (int i = 0; i < 2000; i++) {
        pvd_kick_force(lab.port[BAD].guest, 1);
        pvd_kick_force(lab.port[BAD].guest, 0);
        lab_poll(&lab, 1);
    }
    hostile_good_ports_go_on();
    struct pvs_ring_status status;
    CHECK_EQ(pvs_ring_status(lab.port[BAD].port, 1, &status), 0);
    CHECK(status.kicks > 1000);
    lab_close(&lab);
}

TEST_EACH_RING(cve_2019_14818_a_ring_started_again_and_again_leaks_nothing)
{
    hostile_open();
    int before = eventfd(0, EFD_CLOEXEC);
    for (int i = 0; i < 200; i++) {
        lab_detach(&lab, BAD);
        lab_attach(&lab, BAD);
    }
    int after = eventfd(0, EFD_CLOEXEC);
    CHECK_EQ(after, before + 1);
    hostile_good_ports_go_on();
    close(before);
    close(after);
    lab_close(&lab);
}

/* ---- work without end ---- */

TEST_EACH_RING(one_guest_does_not_starve_the_others)
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
