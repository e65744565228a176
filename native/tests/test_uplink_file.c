/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_uplink_file.c - uplinks to a file: what a capture holds are whole frames with their checksums, so nothing is left to
 * who reads the far end of the socket (uplink_lab.h); and what becomes of the port when that end is gone.
 * test_uplink_wait.c, test_uplink_drop.c and test_move_uplink.c have this kind among the others.
 *
 * Ports 0 and 1 are guests, then come a file, and a packet socket where a test says so.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "offload_lab.h"
#include "uplink_lab.h"

enum { FILE_, OTHER };
enum { HOST_TSO4 = 11, HOST_TSO6 = 12, HOST_USO = 56, CSUM_BIT = 0 };
#define BIT(n)    (1ULL << (n))
#define SENDS_ALL (BIT(CSUM_BIT) | BIT(HOST_TSO4) | BIT(HOST_TSO6) | BIT(HOST_USO))

static const struct recipe tcp4 = { .payload = 10000, .flags = ACK | PSH | FIN, .seq = 0xfffffc00, .id = 65534 };
static const struct recipe tcp6 = { .v6 = true, .payload = 60000, .flags = ACK };
static const struct recipe udp4 = { .udp = true, .payload = 6000, .tags = 1 };
static const struct recipe udp6 = { .udp = true, .v6 = true, .payload = 6001 };
static const struct recipe *const recipes[] = { &tcp4, &tcp6, &udp4, &udp6 };
enum { RECIPES = sizeof recipes / sizeof recipes[0], MSS = 1400 };

static struct lab lab;
static uint8_t frame[PVS_MAX_FRAME];
static struct cooked c;

static void
open_with(uint64_t features)
{
    struct lab_conf conf = lab_conf_default(2);
    conf.guest.rx_buf_size = 4096;
    conf.guest.tx_buf_size = PVS_MAX_FRAME + 12;
    conf.guest.features |= features;
    lab_open(&lab, &conf);
    CHECK_EQ(lab_uplink_add(&lab, PVS_FILE, 1), FILE_);
    lab_know_all(&lab);
    for (uint32_t i = 0; i < 2; i++)
        lab_fill(&lab, i, 64);
}

static void
cook_for(const struct recipe *recipe, enum field field, uint64_t dst, uint64_t src)
{
    cook(recipe, field, &c);
    pvs_mac_store(c.bytes, dst);
    pvs_mac_store(c.bytes + 6, src);
}

/* Guest 0 sends what is cooked. */
static void
guest_asks(uint16_t gso_size, const struct recipe *recipe)
{
    struct virtio_net_hdr header = header_for(recipe, &c, gso_size);

    CHECK(pvd_tx_reap(lab.port[0].guest, 0) >= 0);
    CHECK_EQ(pvd_tx(lab.port[0].guest, 0, &header, c.bytes, c.len, NULL), 0);
    CHECK(pvd_kick(lab.port[0].guest, 1) >= 0);
    lab_poll(&lab, 3);
}

/* The file gets the segments of a recipe one by one, whole and summed, behind a header of zeros. */
static void
expect_segments(const struct recipe *recipe, uint64_t src)
{
    uint32_t n = (recipe->payload + MSS - 1) / MSS;

    for (uint32_t i = 0; i < n; i++) {
        struct recipe segment = segment_recipe(recipe, MSS, i, n);
        cook_for(&segment, FINISHED, LAB_FAR(FILE_), src);
        lab_wire_expect(&lab, FILE_, c.bytes, c.len);
    }
    lab_wire_expect_nothing(&lab, FILE_);
}

TEST_EACH_RING(frames_of_all_sizes_go_to_a_file_and_come_from_one)
{
    static const uint32_t size[] = { 14, 60, 128, 129, 1514, 9014, 65550, PVS_MAX_FRAME - 4 };

    open_with(0);
    for (uint32_t i = 0; i < sizeof size / sizeof size[0]; i++) {
        lab_frame(frame, LAB_FAR(FILE_), LAB_MAC(0), size[i], i);
        lab_send(&lab, 0, frame, size[i]);
        lab_poll(&lab, 2);
        lab_wire_expect(&lab, FILE_, frame, size[i]);
        lab_frame(frame, LAB_MAC(1), LAB_FAR(FILE_), size[i], i + 100);
        lab_wire_send(&lab, FILE_, NULL, frame, size[i]);
        lab_poll(&lab, 2);
        lab_expect(&lab, 1, frame, size[i]);
        lab_fill(&lab, 1, 64);
    }
    lab_wire_expect_nothing(&lab, FILE_);
    CHECK_EQ(lab_sum(lab_uplink_counters(&lab, FILE_).tx_drop) + lab_sum(lab_uplink_counters(&lab, FILE_).rx_drop), 0);
    lab_uplink_close(&lab);
}

TEST_EACH_RING(a_file_gets_a_guests_frames_cut_and_summed)
{
    open_with(SENDS_ALL);
    for (uint32_t i = 0; i < RECIPES; i++) {
        cook_for(recipes[i], PSEUDO, LAB_FAR(FILE_), LAB_MAC(0));
        guest_asks(MSS, recipes[i]);
        expect_segments(recipes[i], LAB_MAC(0));
        cook_for(recipes[i], PSEUDO, LAB_FAR(FILE_), LAB_MAC(0));
        guest_asks(0, recipes[i]); /* whole, its checksum alone to be made */
        cook_for(recipes[i], FINISHED, LAB_FAR(FILE_), LAB_MAC(0));
        lab_wire_expect(&lab, FILE_, c.bytes, c.len);
    }
    lab_uplink_close(&lab);
}

TEST_EACH_RING(a_file_gets_what_an_interface_left_unfinished_cut_and_summed)
{
    open_with(0);
    CHECK_EQ(lab_uplink_add(&lab, PVS_PACKET, 1), OTHER);
    lab_know_all(&lab);
    for (uint32_t i = 0; i < RECIPES; i++) {
        cook_for(recipes[i], PSEUDO, LAB_FAR(FILE_), LAB_FAR(OTHER));
        struct virtio_net_hdr header = header_for(recipes[i], &c, MSS);
        header.hdr_len = (uint16_t)c.hdr_len;
        lab_wire_send(&lab, OTHER, &header, c.bytes, c.len);
        lab_poll(&lab, 3);
        expect_segments(recipes[i], LAB_FAR(OTHER));
    }
    lab_uplink_close(&lab);
}

/* A flood to those who take a frame as it is leaves the file's copy finished. */
TEST_EACH_RING(a_flood_is_finished_for_the_file_alone)
{
    open_with(SENDS_ALL);
    CHECK_EQ(lab_uplink_add(&lab, PVS_PACKET, 1), OTHER);
    cook_for(&tcp4, PSEUDO, LAB_BROADCAST, LAB_MAC(0));
    struct virtio_net_hdr header = header_for(&tcp4, &c, MSS), got_header;
    static uint8_t got[PVS_MAX_FRAME];
    CHECK_EQ(pvd_tx(lab.port[0].guest, 0, &header, c.bytes, c.len, NULL), 0);
    CHECK(pvd_kick(lab.port[0].guest, 1) >= 0);
    lab_poll(&lab, 3);
    CHECK_EQ(lab_wire_receive(&lab, OTHER, &got_header, got, sizeof got), c.len);
    CHECK_EQ(got_header.gso_size, MSS);
    uint32_t n = (tcp4.payload + MSS - 1) / MSS;
    for (uint32_t i = 0; i < n; i++) {
        struct recipe segment = segment_recipe(&tcp4, MSS, i, n);
        cook_for(&segment, FINISHED, LAB_BROADCAST, LAB_MAC(0));
        lab_wire_expect(&lab, FILE_, c.bytes, c.len);
    }
    lab_uplink_close(&lab);
}

/* As many as a burst takes and more, in one go: their order and number. */
TEST_EACH_RING(bursts_of_a_file_keep_their_order)
{
    open_with(0);
    for (uint32_t i = 0; i < 63; i++) {
        lab_frame(frame, LAB_FAR(FILE_), LAB_MAC(0), 60 + i, i);
        CHECK_EQ(pvd_tx(lab.port[0].guest, 0, NULL, frame, 60 + i, NULL), 0);
        lab_frame(frame, LAB_MAC(1), LAB_FAR(FILE_), 60 + i, i + 70);
        lab_wire_send(&lab, FILE_, NULL, frame, 60 + i);
    }
    CHECK(pvd_kick(lab.port[0].guest, 1) >= 0);
    lab_poll(&lab, 4);
    for (uint32_t i = 0; i < 63; i++) {
        lab_frame(frame, LAB_FAR(FILE_), LAB_MAC(0), 60 + i, i);
        lab_wire_expect(&lab, FILE_, frame, 60 + i);
        lab_frame(frame, LAB_MAC(1), LAB_FAR(FILE_), 60 + i, i + 70);
        lab_expect(&lab, 1, frame, 60 + i);
    }
    lab_uplink_close(&lab);
}

/* The far end is closed while the queue runs: nothing comes, what is sent is counted, nobody spins or crashes. */
TEST_EACH_RING(a_file_whose_reader_is_gone_refuses)
{
    open_with(0);
    lab_send_down(&lab, 1, 7);
    close(lab.uplink[FILE_].wire[0]);
    lab.uplink[FILE_].wire[0] = dup(lab.uplink[FILE_].fd[0]); /* for the lab to close */
    lab_poll(&lab, 3);
    lab_expect_down(&lab, 1, 7);
    for (uint32_t i = 0; i < 40; i++)
        lab_send_up(&lab, 0, i);
    lab_poll(&lab, 3);
    CHECK_EQ(lab_taken_from(&lab, 0), 40);
    CHECK_EQ(lab_dropped_up(&lab, PVS_DROP_uplink_refused), 40);
    CHECK_EQ(lab_uplink_counters(&lab, FILE_).value[PVS_C_rx_packets], 1);
    lab_uplink_close(&lab);
}
