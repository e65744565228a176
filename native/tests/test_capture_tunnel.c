/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_capture_tunnel.c - captures of tunnels, and what the flight recorder says of packets that no tunnel takes, on real sockets.
 */
#include <string.h>

#include "tunnel_lab.h"

enum { GUESTS = 2, LEN = 150, VNI = 42 };

static struct tunnel_lab t;
static pvs_capture *capture;
static struct pvs_captured seen;
static uint8_t frame[PVS_MAX_FRAME], got[PVS_MAX_FRAME];

static void
open_it(void)
{
    struct lab_conf lab = lab_conf_default(GUESTS);
    const struct tunnel_lab_conf conf = { .kind = PVS_VXLAN };
    const struct pvs_capture_conf whole = { .snaplen = PVS_MAX_FRAME, .ring_bytes = 1 << 20 };

    CHECK(tunnel_lab_open(&t, &lab, &conf));
    for (uint32_t i = 0; i < GUESTS; i++)
        lab_fill(&t.lab, i, 128);
    CHECK_EQ(tunnel_lab_add(&t, VNI), 0);
    CHECK_EQ(pvs_capture_create(t.lab.sw, &whole, &capture), 0);
    t.tunnel[0].conf->capture_in = t.tunnel[0].conf->capture_out = 1U << pvs_capture_slot(capture);
    lab_publish(&t.lab);
}

static void
close_it(void)
{
    CHECK_EQ(pvs_capture_next(capture, 0, &seen, got, sizeof got), 0);
    t.tunnel[0].conf->capture_in = t.tunnel[0].conf->capture_out = 0;
    lab_publish(&t.lab);
    pvs_capture_destroy(capture);
    tunnel_lab_close(&t);
}

static void
next_is(enum pvs_direction direction, enum pvs_drop drop)
{
    CHECK_EQ(pvs_capture_next(capture, 0, &seen, got, sizeof got), 1);
    CHECK_EQ(seen.port_ref, pvs_port_ref(t.tunnel[0].port));
    CHECK_EQ(seen.direction, direction);
    CHECK_EQ(seen.drop, drop);
    CHECK_EQ(seen.len, LEN);
    CHECK_EQ(seen.n_bytes, LEN);
    CHECK(memcmp(got, frame, LEN) == 0);
}

TEST_EACH_RING(a_tunnel_s_frames_are_captured_without_their_outer_headers)
{
    open_it();
    tunnel_lab_flood(&t, 0, 0, 2);
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), LEN, 1);
    lab_send(&t.lab, 0, frame, LEN);
    lab_poll(&t.lab, 3);
    for (uint32_t i = 0; i < 2; i++) { /* one for each remote, as they are counted */
        far_expect(&t, i, VNI, frame, LEN);
        next_is(PVS_EGRESS, PVS_DROP_none);
        CHECK_EQ(seen.peer_ref, pvs_port_ref(t.lab.port[0].port));
    }
    lab_frame(frame, LAB_MAC(0), LAB_MAC(20), LEN, 2);
    far_send(&t, 0, VNI, frame, LEN);
    lab_poll(&t.lab, 3);
    next_is(PVS_INGRESS, PVS_DROP_none);
    CHECK_EQ(seen.peer_ref, pvs_port_ref(t.lab.port[0].port));
    tunnel_lab_flood(&t, 0, 0, 0); /* it has nowhere to go */
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), LEN, 3);
    lab_send(&t.lab, 0, frame, LEN);
    lab_poll(&t.lab, 3);
    next_is(PVS_EGRESS, PVS_DROP_no_destination);
    close_it();
}

TEST_EACH_RING(a_packet_of_no_tunnel_is_recorded_at_its_endpoint)
{
    struct pvs_record record[8];
    static const uint8_t nothing[4] = { 0 };

    open_it();
    lab_frame(frame, LAB_MAC(0), LAB_MAC(20), LEN, 1);
    far_send(&t, 0, VNI + 1, frame, LEN);
    far_send_bytes(&t, 0, nothing, sizeof nothing, 0, 0);
    lab_poll(&t.lab, 3);
    CHECK_EQ(pvs_records_read(t.lab.sw, 0, PVS_RECORD_DROPS, 0, record, 8), 2);
    CHECK_EQ(record[0].drop, PVS_DROP_unknown_vni);
    CHECK_EQ(record[0].port_ref, pvs_port_ref(t.endpoint));
    CHECK_EQ(record[0].in_ref, 0);
    CHECK_EQ(record[0].len, LEN);
    CHECK_EQ(record[0].n_bytes, sizeof record[0].bytes);
    CHECK(memcmp(record[0].bytes, frame, sizeof record[0].bytes) == 0);
    CHECK_EQ(record[1].drop, PVS_DROP_tunnel_malformed);
    CHECK_EQ(record[1].n_bytes, 0);
    close_it();
}
