/* SPDX-License-Identifier: Apache-2.0 */
/* test_mirror.c - mirrors give who watches what they select, once, and change nothing else (mirror.h). Step by step. */
#include <errno.h>
#include <string.h>

#include "frame.h"
#include "lab.h"
#include "parse.h"

enum { LEN = 80, BIG = 1400, SENDER = 0, RECEIVER, WATCHER, BYSTANDER, PORTS };

static struct lab lab;
static struct pvs_mirror_conf mirror[PVS_MAX_MIRRORS];
static uint64_t wanted[64];

static void
open_with(uint32_t n_mirrors)
{
    struct lab_conf conf = lab_conf_default(PORTS);
    lab_open(&lab, &conf);
    memset(mirror, 0, sizeof mirror);
    for (uint32_t i = 0; i < n_mirrors; i++)
        mirror[i].port = lab.port[WATCHER].conf.port;
    lab.conf.bridge.n_mirrors = n_mirrors;
    lab.conf.bridge.mirrors = mirror;
    for (uint32_t i = 0; i < PORTS; i++)
        lab_fill(&lab, i, 64);
}

static uint8_t *
frame_of(uint64_t dst, uint64_t src, uint32_t len, uint32_t salt)
{
    static uint8_t frame[PVS_MAX_FRAME];
    lab_frame(frame, dst, src, len, salt);
    return frame;
}

static void
send(uint32_t from, uint64_t dst, uint32_t salt)
{
    lab_send(&lab, from, frame_of(dst, LAB_MAC(from), LEN, salt), LEN);
}

static void
expect(uint32_t at, uint64_t dst, uint32_t from, uint32_t salt)
{
    lab_expect(&lab, at, frame_of(dst, LAB_MAC(from), LEN, salt), LEN);
}

/* Have an address known, and its flood forgotten. */
static void
teach(uint32_t port)
{
    send(port, LAB_BROADCAST, 99);
    lab_poll(&lab, 2);
    for (uint32_t i = 0; i < PORTS; i++) {
        uint8_t got[PVS_MAX_FRAME];
        while (pvd_rx(lab.port[i].guest, 0, got, sizeof got, NULL) >= 0)
            lab_fill(&lab, i, 1);
    }
}

TEST_EACH_RING(a_mirror_has_what_comes_in_and_what_goes_out_once)
{
    open_with(2);
    lab.port[SENDER].conf.mirror_in = 1;
    lab.port[RECEIVER].conf.mirror_out = 1 | 2;
    lab_publish(&lab);
    teach(RECEIVER);
    for (uint32_t salt = 0; salt < 20; salt++)
        send(SENDER, LAB_MAC(RECEIVER), salt);
    send(RECEIVER, LAB_BROADCAST, 50); /* it neither comes in by the one nor goes out by the other */
    lab_poll(&lab, 2);
    for (uint32_t salt = 0; salt < 20; salt++)
        expect(RECEIVER, LAB_MAC(RECEIVER), SENDER, salt);
    expect(SENDER, LAB_BROADCAST, RECEIVER, 50);
    for (uint32_t salt = 0; salt < 20; salt++) { /* the first mirror's, and the second's */
        expect(WATCHER, LAB_MAC(RECEIVER), SENDER, salt);
        expect(WATCHER, LAB_MAC(RECEIVER), SENDER, salt);
    }
    lab_expect_nothing(&lab, WATCHER);
    lab_expect_nothing(&lab, RECEIVER);
    expect(BYSTANDER, LAB_BROADCAST, RECEIVER, 50);
    lab_expect_nothing(&lab, BYSTANDER);
    lab_close(&lab);
}

TEST_EACH_RING(only_mirrored_frames_pass_by_an_output)
{
    open_with(1);
    lab.port[SENDER].conf.mirror_in = 1;
    lab.conf.bridge.n_mirrors = 0;
    lab.port[SENDER].conf.mirror_in = 0;
    lab_publish(&lab);
    teach(WATCHER); /* known from before it became an output */
    lab.conf.bridge.n_mirrors = 1;
    lab_publish(&lab);
    send(WATCHER, LAB_BROADCAST, 1);
    send(SENDER, LAB_BROADCAST, 2);
    send(SENDER, LAB_MAC(WATCHER), 3);
    lab_poll(&lab, 2);
    lab_expect_nothing(&lab, WATCHER);
    expect(RECEIVER, LAB_BROADCAST, SENDER, 2);
    lab_expect_nothing(&lab, RECEIVER);
    CHECK_EQ(lab_counters(&lab, WATCHER).rx_drop[PVS_DROP_mirror_output], 1);
    CHECK_EQ(lab_counters(&lab, WATCHER).tx_drop[PVS_DROP_mirror_output], 1);
    lab_close(&lab);
}

TEST_EACH_RING(dropped_frames_are_mirrored_on_request)
{
    open_with(2);
    mirror[1].drops = true;
    wanted[20 / 64] = UINT64_C(1) << 20 % 64;
    lab.port[SENDER].conf.mirror_in = 1 | 2;
    lab.port[SENDER].conf.vlans = wanted;
    lab_publish(&lab);
    send(SENDER, LAB_BROADCAST, 1); /* it is in no VLAN that the port carries */
    lab_poll(&lab, 2);
    expect(WATCHER, LAB_BROADCAST, SENDER, 1);
    lab_expect_nothing(&lab, WATCHER);
    lab_expect_nothing(&lab, RECEIVER);
    CHECK_EQ(lab_counters(&lab, SENDER).rx_drop[PVS_DROP_vlan_filtered], 1);
    lab_close(&lab);
}

TEST_EACH_RING(a_mirror_takes_the_vlans_it_is_for)
{
    open_with(1);
    memset(wanted, 0, sizeof wanted);
    wanted[20 / 64] = UINT64_C(1) << 20 % 64;
    mirror[0].vlans = wanted;
    for (uint32_t i = SENDER; i <= RECEIVER; i++) {
        lab.port[i].conf.mirror_in = 1;
        lab.port[i].conf.vlan_mode = PVS_VLAN_ACCESS;
        lab.port[i].conf.tag = i == SENDER ? 20 : 30;
    }
    lab_publish(&lab);
    send(SENDER, LAB_BROADCAST, 1);
    send(RECEIVER, LAB_BROADCAST, 2);
    lab_poll(&lab, 2);
    uint8_t frame[LEN + 4];
    memcpy(frame, frame_of(LAB_BROADCAST, LAB_MAC(SENDER), LEN, 1), PVS_TAG_OFFSET);
    memcpy(frame + PVS_TAG_OFFSET, "\x81\x00\x00\x14", 4);
    memcpy(frame + PVS_TAG_OFFSET + 4, frame_of(LAB_BROADCAST, LAB_MAC(SENDER), LEN, 1) + PVS_TAG_OFFSET, LEN - 12);
    lab_expect(&lab, WATCHER, frame, sizeof frame);
    lab_expect_nothing(&lab, WATCHER);
    lab_close(&lab);
}

/* More frames than there is room for edited ones: what is on lists goes first, and nothing is lost or out of order. */
TEST_EACH_RING(cut_frames_of_many_mirrors_arrive)
{
    static const uint16_t snaplen[] = { 14, 60, 100, 128, 200, 1000, BIG - 1, BIG, 0 };
    enum { MIRRORS = sizeof snaplen / sizeof snaplen[0], FRAMES = 20 };

    open_with(MIRRORS);
    for (uint32_t i = 0; i < MIRRORS; i++)
        mirror[i].snaplen = snaplen[i];
    lab.port[SENDER].conf.mirror_in = (1U << MIRRORS) - 1;
    lab_publish(&lab);
    lab_fill(&lab, WATCHER, 190);
    for (uint32_t salt = 0; salt < FRAMES; salt++)
        lab_send(&lab, SENDER, frame_of(LAB_BROADCAST, LAB_MAC(SENDER), BIG, salt), BIG);
    lab_poll(&lab, 2);
    uint32_t seen[FRAMES] = { 0 }, n = 0, came = 0;
    uint8_t got[PVS_MAX_FRAME];
    int len;
    for (; (len = pvd_rx(lab.port[WATCHER].guest, 0, got, sizeof got, NULL)) >= 0; came++)
        for (uint32_t salt = 0; salt < FRAMES; salt++)
            if (seen[salt] < MIRRORS &&
                memcmp(got, frame_of(LAB_BROADCAST, LAB_MAC(SENDER), BIG, salt), (size_t)len) == 0) {
                seen[salt]++;
                n++;
                break;
            }
    CHECK_EQ(came, n);
    CHECK_EQ(n, MIRRORS * FRAMES);
    for (uint32_t salt = 0; salt < FRAMES; salt++)
        lab_expect(&lab, RECEIVER, frame_of(LAB_BROADCAST, LAB_MAC(SENDER), BIG, salt), BIG);
    lab_close(&lab);
}

TEST(mirrors_are_checked)
{
    open_with(1);
    lab.port[SENDER].conf.mirror_in = 2;
    CHECK_EQ(pvs_publish(lab.sw, &lab.port[0].conf, 1, &lab.conf.bridge, 1), -EINVAL);
    lab.port[SENDER].conf.mirror_in = 0; /* its port is not among those */
    CHECK_EQ(pvs_publish(lab.sw, &lab.port[0].conf, 1, &lab.conf.bridge, 1), -EINVAL);
    mirror[0].port = NULL;
    CHECK_EQ(pvs_publish(lab.sw, &lab.port[0].conf, 1, &lab.conf.bridge, 1), -EINVAL);
    mirror[0].vid = 4095;
    CHECK_EQ(pvs_publish(lab.sw, &lab.port[0].conf, 1, &lab.conf.bridge, 1), -EINVAL);
    mirror[0].vid = 1;
    mirror[0].snaplen = PVS_ETH_HLEN - 1;
    CHECK_EQ(pvs_publish(lab.sw, &lab.port[0].conf, 1, &lab.conf.bridge, 1), -EINVAL);
    lab.conf.bridge.n_mirrors = PVS_MAX_MIRRORS + 1;
    CHECK_EQ(pvs_publish(lab.sw, &lab.port[0].conf, 1, &lab.conf.bridge, 1), -EINVAL);
    lab_close(&lab);
}
