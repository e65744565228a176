/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_uplink_drop.c - uplinks that take nothing, stop, or go away: every frame is delivered, or counted under its reason,
 * once, and nothing is left behind. On sockets in the place of the kernel's descriptors (uplink_lab.h).
 *
 * Ports 0 and 1 are guests, then comes an uplink. It is filled by leaving its wire alone.
 */
#include <dirent.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "uplink_lab.h"

enum { UP, ROOM = 16384 };

static const enum pvs_uplink_kind kinds[] = { PVS_TAP, PVS_PACKET, PVS_FILE };
static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME], got[PVS_MAX_FRAME];

/* ---- what isn't sent is dropped for a reason ---- */

TEST_EACH_RING(a_full_uplink_that_drops_counts_each_frame)
{
    for (int k = 0; k < 3; k++) {
        lab_uplink_open(&lab, 1, kinds[k], 0);
        lab_uplink_room(&lab, UP, ROOM);
        for (uint32_t i = 0; i < 200; i++)
            lab_send_up(&lab, 0, i);
        lab_poll(&lab, 10);
        CHECK_EQ(lab_taken_from(&lab, 0), 200);
        uint64_t n = lab_sent_up(&lab);
        CHECK(n > 0 && n < 200);
        CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_uplink_tx_full), 200 - n);
        for (uint32_t i = 0; i < n; i++)
            lab_expect_up(&lab, 0, i);
        lab_wire_expect_nothing(&lab, UP);
        lab_send_up(&lab, 0, 777);
        lab_poll(&lab, 2);
        lab_expect_up(&lab, 0, 777);
        CHECK_EQ(lab_uplink_status(&lab, UP, 0).error, 0);
        lab_uplink_close(&lab);
    }
}

/* One frame that the kernel refuses takes none of its burst with it. */
TEST_EACH_RING(a_frame_too_long_for_the_kernel_is_dropped_alone)
{
    for (int k = 0; k < 3; k++) {
        lab_uplink_open(&lab, 1, kinds[k], 0);
        lab_uplink_room(&lab, UP, ROOM / 2); /* the kernel doubles it */
        lab_send_up(&lab, 0, 0);
        for (uint32_t i = 1; i < 4; i++) {
            lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), ROOM + 1000, i);
            CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, ROOM + 1000, NULL), 0);
            lab_send_up(&lab, 0, 10 * i);
        }
        lab_poll(&lab, 2);
        for (uint32_t i = 0; i < 4; i++)
            lab_expect_up(&lab, 0, 10 * i);
        lab_wire_expect_nothing(&lab, UP);
        CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_mtu_exceeded), 3);
        CHECK_EQ(lab_sum(lab_uplink_counters(&lab, UP).tx_drop), 3);
        CHECK_EQ(lab_uplink_status(&lab, UP, 0).error, 0); /* a guest's doing */
        lab_uplink_close(&lab);
    }
}

TEST_EACH_RING(an_uplink_whose_other_side_is_gone_refuses)
{
    for (int k = 0; k < 3; k++) {
        lab_uplink_open(&lab, 1, kinds[k], 0);
        int last = lab.uplink[UP].wire[0];
        lab_uplink_stop(&lab, UP, 0); /* nothing is read from it: a stream's end looks like an endless row of frames */
        CHECK_EQ(shutdown(last, SHUT_RD), 0);
        lab_uplink_start(&lab, UP, 0);
        for (uint32_t i = 0; i < 40; i++)
            lab_send_up(&lab, 0, i);
        lab_poll(&lab, 3);
        CHECK_EQ(lab_taken_from(&lab, 0), 40);
        CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_uplink_refused), 40);
        lab_uplink_close(&lab);
    }
}

TEST_EACH_RING(an_uplink_enforces_its_mtu)
{
    lab_uplink_open(&lab, 1, PVS_PACKET, 0);
    lab.uplink[UP].conf.mtu = 486;
    lab_publish(&lab);
    lab_send_up(&lab, 0, 1);
    lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), 501, 2);
    lab_send(&lab, 0, frame, 501);
    lab_poll(&lab, 2);
    lab_expect_up(&lab, 0, 1);
    lab_wire_expect_nothing(&lab, UP);
    CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_mtu_exceeded), 1);
    lab_uplink_close(&lab);
}

/* While none of its queues runs, an uplink is there and has no link. */
TEST_EACH_RING(a_stopped_uplink_has_no_link)
{
    lab_uplink_open(&lab, 1, PVS_TAP, 0);
    lab_uplink_stop(&lab, UP, 0);
    lab_send_up(&lab, 0, 1);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_link_down), 1);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), 60, 0); /* no party to a flood */
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_link_down), 1);
    lab_send_down(&lab, 1, 2);
    lab_poll(&lab, 3);
    lab_expect_nothing(&lab, 1);
    lab_fill(&lab, 1, 8);
    lab_uplink_start(&lab, UP, 0); /* what came meanwhile is seen at once */
    lab_poll(&lab, 2);
    lab_expect_down(&lab, 1, 2);
    lab_send_up(&lab, 0, 3);
    lab_poll(&lab, 2);
    lab_expect_up(&lab, 0, 3);
    lab_uplink_close(&lab);
}

/* ---- start and stop, a thousand times ---- */

static uint32_t
descriptors(void)
{
    uint32_t n = 0;
    DIR *dir = opendir("/proc/self/fd");
    CHECK(dir != NULL);
    while (readdir(dir) != NULL)
        n++;
    CHECK_EQ(closedir(dir), 0);
    return n;
}

/* Pages of address space. */
static uint64_t
mapped(void)
{
    char text[64] = { 0 };
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fgets(text, sizeof text, file) != NULL);
    CHECK_EQ(fclose(file), 0);
    return strtoull(text, NULL, 10);
}

TEST_EACH_RING(a_thousand_starts_and_stops_leave_nothing_behind)
{
    lab_uplink_open(&lab, 2, PVS_PACKET, 0);
    lab_fill(&lab, 1, 8);
    uint32_t fds = 0;
    uint64_t pages = 0;
    for (uint32_t i = 0; i < 1010; i++) {
        if (i == 10) {
            fds = descriptors();
            pages = mapped();
        }
        lab_send_down(&lab, 1, i); /* half of them are still in the socket when it stops */
        if (i % 2 == 0)
            lab_poll(&lab, 2);
        lab_send_up(&lab, 0, i);
        lab_uplink_stop(&lab, UP, 0);
        lab_uplink_start(&lab, UP, 0);
        lab_fill(&lab, 1, 8);
        while (pvd_rx(lab.port[1].guest, 0, got, sizeof got, NULL) >= 0)
            ;
        struct virtio_net_hdr header;
        while (lab_wire_receive(&lab, UP, &header, got, sizeof got) >= 0)
            ;
        CHECK(lab_taken_from(&lab, 0) >= 0);
    }
    CHECK_EQ(descriptors(), fds);
    CHECK(mapped() < pages + 4096); /* a queue's buffers have 500 pages and more */
    lab_poll(&lab, 3);
    CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_rx_packets], 1010);
    lab_uplink_close(&lab);
}

/* ---- memory that is gone ---- */

/* The kernel can't read a payload that its guest has cut off: that guest's port
 * is to blame, and nobody else's. */
TEST_EACH_RING(truncated_under_an_uplink)
{
    for (int k = 0; k < 3; k++) {
        struct lab_piece piece;
        struct pvd_region region;

        lab_uplink_open(&lab, 1, kinds[k], 0);
        lab_fill(&lab, 0, 8);
        lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), 12000, 1);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, 12000, NULL), 0);
        /* the first descriptor that a driver uses holds all of it; the head must
     * stay, the rest not */
        piece = lab_piece(&lab, 0, 1, 0);
        CHECK_EQ(piece.len, 12012);
        CHECK_EQ(pvd_region_get(lab.port[0].guest, 0, &region), 0);
        uint64_t border = (piece.addr - region.gpa + 140 + 4095) & ~4095ULL;
        CHECK_EQ(pvd_truncate_memory(lab.port[0].guest, 0, border), 0);
        pvd_kick_force(lab.port[0].guest, 1);
        lab_poll(&lab, 3);
        CHECK_EQ(pvs_port_broken(lab.port[0].port), PVS_BROKEN_MEMORY_LOST);
        CHECK_EQ(pvs_port_broken(lab.uplink[UP].port), 0);
        CHECK_EQ(lab_sent_up(&lab), 0);
        CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_uplink_refused), 1);
        lab_wire_expect_nothing(&lab, UP);
        lab_send_up(&lab, 1, 2); /* the uplink goes on */
        lab_fill(&lab, 1, 8);
        lab_send_down(&lab, 1, 3);
        lab_poll(&lab, 3);
        lab_expect_up(&lab, 1, 2);
        lab_expect_down(&lab, 1, 3);
        lab_close(&lab);
    }
}
