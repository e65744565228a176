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

static const enum pvs_uplink_kind kinds[] = { PVS_TAP, PVS_PACKET };
static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME], got[PVS_MAX_FRAME];

static void
open_with(uint32_t workers, enum pvs_uplink_kind kind)
{
    struct lab_conf conf = lab_conf_default(2);
    conf.workers = workers;
    conf.guest.tx_buf_size = 20000;
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < 2; i++) { /* their worker is the last, the uplink's the first */
        lab_detach(&lab, i);
        lab.port[i].worker = (int32_t)workers - 1;
        lab_attach(&lab, i);
    }
    CHECK_EQ(lab_uplink_add(&lab, kind, 1), UP);
    lab_know_all(&lab);
}

static void
close_and_check(void)
{
    for (uint32_t i = 0; i < lab.n_uplinks; i++)
        lab_check_uplink(&lab, i);
    lab_check_sums(&lab);
    lab_close(&lab);
}

static int
taken_from(uint32_t port)
{
    return pvd_tx_reap(lab.port[port].guest, 0);
}

static uint64_t
sent_up(void)
{
    return lab_uplink_counters(&lab, UP).value[PVS_C_tx_packets];
}

static uint64_t
dropped_up(enum pvs_drop why)
{
    return lab_uplink_counters(&lab, UP).tx_drop[why];
}

/* ---- what isn't sent is dropped for a reason ---- */

TEST(a_full_uplink_that_drops_counts_each_frame)
{
    for (int k = 0; k < 2; k++) {
        open_with(1, kinds[k]);
        lab_uplink_room(&lab, UP, ROOM);
        for (uint32_t i = 0; i < 200; i++)
            lab_send_up(&lab, 0, i);
        lab_poll(&lab, 10);
        CHECK_EQ(taken_from(0), 200);
        uint64_t n = sent_up();
        CHECK(n > 0 && n < 200);
        CHECK_EQ(dropped_up(PVS_DROP_uplink_tx_full), 200 - n);
        for (uint32_t i = 0; i < n; i++)
            lab_expect_up(&lab, 0, i);
        lab_wire_expect_nothing(&lab, UP);
        lab_send_up(&lab, 0, 777);
        lab_poll(&lab, 2);
        lab_expect_up(&lab, 0, 777);
        CHECK_EQ(lab_uplink_status(&lab, UP, 0).error, 0);
        close_and_check();
    }
}

/* One frame that the kernel refuses takes none of its burst with it. */
TEST(a_frame_too_long_for_the_kernel_is_dropped_alone)
{
    for (int k = 0; k < 2; k++) {
        open_with(1, kinds[k]);
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
        CHECK_EQ(dropped_up(PVS_DROP_mtu_exceeded), 3);
        CHECK_EQ(lab_sum(lab_uplink_counters(&lab, UP).tx_drop), 3);
        CHECK_EQ(lab_uplink_status(&lab, UP, 0).error, 0); /* a guest's doing */
        close_and_check();
    }
}

TEST(an_uplink_whose_other_side_is_gone_refuses)
{
    for (int k = 0; k < 2; k++) {
        open_with(1, kinds[k]);
        int last = lab.uplink[UP].wire[0];
        lab_uplink_stop(&lab, UP, 0); /* nothing is read from it: a stream's end looks like an endless row of frames */
        CHECK_EQ(shutdown(last, SHUT_RD), 0);
        lab_uplink_start(&lab, UP, 0);
        for (uint32_t i = 0; i < 40; i++)
            lab_send_up(&lab, 0, i);
        lab_poll(&lab, 3);
        CHECK_EQ(taken_from(0), 40);
        CHECK_EQ(dropped_up(PVS_DROP_uplink_refused), 40);
        close_and_check();
    }
}

TEST(an_uplink_enforces_its_mtu)
{
    open_with(1, PVS_PACKET);
    lab.uplink[UP].conf.mtu = 486;
    lab_publish(&lab);
    lab_send_up(&lab, 0, 1);
    lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), 501, 2);
    lab_send(&lab, 0, frame, 501);
    lab_poll(&lab, 2);
    lab_expect_up(&lab, 0, 1);
    lab_wire_expect_nothing(&lab, UP);
    CHECK_EQ(dropped_up(PVS_DROP_mtu_exceeded), 1);
    close_and_check();
}

/* While none of its queues runs, an uplink is there and has no link. */
TEST(a_stopped_uplink_has_no_link)
{
    open_with(1, PVS_TAP);
    lab_uplink_stop(&lab, UP, 0);
    lab_send_up(&lab, 0, 1);
    lab_poll(&lab, 2);
    CHECK_EQ(dropped_up(PVS_DROP_link_down), 1);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), 60, 0); /* no party to a flood */
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(dropped_up(PVS_DROP_link_down), 1);
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
    close_and_check();
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

TEST(a_thousand_starts_and_stops_leave_nothing_behind)
{
    open_with(2, PVS_PACKET);
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
        CHECK(taken_from(0) >= 0);
    }
    CHECK_EQ(descriptors(), fds);
    CHECK(mapped() < pages + 4096); /* a queue's buffers have 500 pages and more */
    lab_poll(&lab, 3);
    CHECK_EQ(lab_uplink_counters(&lab, UP).value[PVS_C_rx_packets], 1010);
    close_and_check();
}

/* ---- memory that is gone ---- */

/* The kernel can't read a payload that its guest has cut off: that guest's port is to blame, and nobody else's. */
TEST(truncated_under_an_uplink)
{
    for (int k = 0; k < 2; k++) {
        struct pvd_desc desc;
        struct pvd_region region;

        open_with(1, kinds[k]);
        lab_fill(&lab, 0, 8);
        lab_frame(frame, LAB_FAR(UP), LAB_MAC(0), 12000, 1);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, 12000, NULL), 0);
        /* the first descriptor that a driver uses holds all of it; the head must stay, the rest not */
        CHECK_EQ(pvd_desc_get(lab.port[0].guest, 1, 0, &desc), 0);
        CHECK_EQ(desc.len, 12012);
        CHECK_EQ(pvd_region_get(lab.port[0].guest, 0, &region), 0);
        uint64_t border = (desc.addr - region.gpa + 140 + 4095) & ~4095ULL;
        CHECK_EQ(pvd_truncate_memory(lab.port[0].guest, 0, border), 0);
        pvd_kick_force(lab.port[0].guest, 1);
        lab_poll(&lab, 3);
        CHECK_EQ(pvs_port_broken(lab.port[0].port), PVS_BROKEN_MEMORY_LOST);
        CHECK_EQ(pvs_port_broken(lab.uplink[UP].port), 0);
        CHECK_EQ(sent_up(), 0);
        CHECK_EQ(dropped_up(PVS_DROP_uplink_refused), 1);
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
