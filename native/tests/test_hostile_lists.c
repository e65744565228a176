/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_hostile_lists.c - what a guest does to a burst that is delivered by lists: it changes the FDB in its middle, takes
 * buffers back while others are reserved, or makes looking for room expensive (deliver.c, port_vhost.c).
 */
#include <string.h>

#include "hostile_lab.h"

static uint8_t frame[65536];

TEST_EACH_RING(an_address_that_moves_within_a_burst_counts_for_the_frames_behind_it)
{
    hostile_open();
    for (int i = 0; i < 4; i++) {
        if (i == 2)
            lab_frame(frame, LAB_MAC(2), LAB_MAC(1), 60, 0); /* the address of guest 1 is now behind guest 0 */
        else
            lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 0);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, 60, NULL), 0);
    }
    pvd_kick_force(lab.port[0].guest, 1);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_same_port], 1);
    lab_close(&lab);
}

/* Guests 0 to 2, each with buffers posted, known to the bridge; those of BAD are used up. */
static void
open_with_empty_receiver(uint32_t queue_size)
{
    struct lab_conf conf = lab_conf_default(3);

    conf.guest.queue_size = queue_size;
    conf.guest.tx_buf_size = 65536 + 12;
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < 3; i++)
        lab_fill(&lab, i, 32);
    lab_learn_all(&lab);
    hostile_empty_rings();
}

TEST(an_avail_index_that_goes_back_while_a_list_is_written_breaks_the_ring)
{
    open_with_empty_receiver(HOSTILE_NUM);
    lab_fill(&lab, BAD, 20);
    lab_frame(frame, LAB_MAC(BAD), LAB_MAC(0), 60, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    pvd_avail_idx_set(lab.port[BAD].guest, 0, 10); /* it was 20 when it was looked at */
    lab_frame(frame, LAB_MAC(BAD), LAB_MAC(0), 5000, 0);
    for (int i = 0; i < 14; i++)
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, 5000, NULL), 0);
    pvd_kick_force(lab.port[0].guest, 1);
    lab_poll(&lab, 2);
    CHECK(pvd_used_idx(lab.port[BAD].guest, 0) <= 20);
    CHECK_EQ(pvs_port_broken(lab.port[BAD].port), PVS_BROKEN_AVAIL_JUMP);
    lab_close(&lab);
}

/* Receive chains that all name one table of 1,024 descriptors with room for a header in all. */
static void
post_expensive_buffers(uint32_t n)
{
    uint64_t at = hostile_scratch();
    uint8_t *table = pvd_ptr(lab.port[BAD].guest, at, 32768);

    for (uint16_t i = 0; i < PVS_MAX_SEGS; i++) {
        uint32_t len = i + 1 == PVS_MAX_SEGS ? 12 : 0;
        struct pvd_desc split = { .addr = at + 32768,
                                  .len = len,
                                  .flags = (uint16_t)(PVD_DESC_WRITE | (len != 0 ? 0 : PVD_DESC_NEXT)),
                                  .next = (uint16_t)(i + 1) };
        struct pvd_packed_desc packed = { at + 32768, len, i, PVD_DESC_WRITE };
        memcpy(table + 16 * i, lab_packed(&lab) ? (void *)&packed : (void *)&split, 16);
    }
    struct lab_piece piece = { at, 16 * PVS_MAX_SEGS, PVD_DESC_INDIRECT };
    for (uint16_t i = 0; i < n; i++)
        lab_post(&lab, BAD, 0, i, &piece, 1);
}

TEST_EACH_RING(a_frame_costs_no_more_than_a_thousand_descriptors_of_its_receiver)
{
    open_with_empty_receiver(PVS_MAX_SEGS);
    post_expensive_buffers(100);
    lab_frame(frame, LAB_MAC(BAD), LAB_MAC(0), 60, 0); /* six of these buffers have room for it */
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, BAD).tx_drop[PVS_DROP_guest_rx_too_small], 1);
    CHECK_EQ(pvs_port_broken(lab.port[BAD].port), 0);
    lab_close(&lab);
}
