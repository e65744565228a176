/* SPDX-License-Identifier: Apache-2.0 */
/* test_driver_rings.c - the guest driver on both ring formats, against the device of reference_device.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "reference_device.h"
#include "test.h"

enum { HDR = REFERENCE_HEADER };

#define BIT(n) (1ull << (n))

static const uint64_t BASE = BIT(PVD_F_VERSION_1) | BIT(PVD_F_MRG_RXBUF) | BIT(PVD_F_INDIRECT_DESC);
static const uint64_t FORMATS[] = { 0, BIT(PVD_F_RING_PACKED), BIT(PVD_F_IN_ORDER),
                                    BIT(PVD_F_RING_PACKED) | BIT(PVD_F_IN_ORDER) };
enum { N_FORMATS = sizeof FORMATS / sizeof FORMATS[0] };

static pvd_guest *guest;
static struct reference_ring rx, tx;
static uint8_t sent[REFERENCE_FRAME], got[REFERENCE_FRAME];
static uint64_t seed = 1;

static uint32_t
random_below(uint32_t n)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(seed >> 33) % n;
}

static void
reopen(uint64_t features)
{
    rx = reference_open(guest, 0, features);
    tx = reference_open(guest, 1, features);
}

static void
open_guest(uint32_t queue_size, uint64_t features)
{
    struct pvd_conf conf;
    pvd_conf_default(&conf);
    conf.queue_size = queue_size;
    conf.features = features;
    conf.tx_buf_size = 10000;
    conf.n_regions = 3;
    conf.flags = PVD_CONF_ADJACENT | PVD_CONF_AUTO_REFILL;
    CHECK_EQ(pvd_guest_create(&conf, &guest), 0);
    reopen(features);
}

static void
fill_random(uint8_t *frame, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++)
        frame[i] = (uint8_t)random_below(256);
}

static struct pvd_layout
random_layout(uint64_t features, uint32_t len)
{
    struct pvd_layout l = { 0 };
    bool packed = (features & BIT(PVD_F_RING_PACKED)) != 0, in_order = (features & BIT(PVD_F_IN_ORDER)) != 0;
    uint32_t at = 0;
    for (uint32_t n = random_below(5); l.n_cuts < n;) {
        at += 1 + random_below(at < HDR ? 8 : len / 3);
        l.cuts[l.n_cuts++] = at;
    }
    l.flags = random_below(2) * PVD_LAYOUT_INDIRECT | random_below(2) * PVD_LAYOUT_STRADDLE;
    if (packed || !in_order)
        l.flags |= random_below(2) * PVD_LAYOUT_SHUFFLE;
    l.direct = packed ? 0 : random_below(3);
    return l;
}

static uint32_t
errors(uint32_t ring)
{
    struct pvd_counters c;
    CHECK_EQ(pvd_counters_get(guest, ring, &c), 0);
    return (uint32_t)c.errors;
}

static uint32_t
in_flight(uint32_t ring)
{
    struct pvd_counters c;
    CHECK_EQ(pvd_counters_get(guest, ring, &c), 0);
    return c.in_flight;
}

/* One frame from the driver to the device and back. */
static void
echo(uint64_t features, uint32_t max_len)
{
    uint32_t len = 14 + random_below(max_len);
    struct pvd_layout layout = random_layout(features, HDR + len);
    fill_random(sent, len);
    int rc = pvd_tx(guest, 0, NULL, sent, len, &layout);
    if (rc == -EINVAL) {
        CHECK(layout.n_cuts + 2 > tx.v.num);
        return;
    }
    CHECK_EQ(rc, 0);
    CHECK_EQ(reference_receive(&tx, got), HDR + len);
    CHECK(memcmp(got + HDR, sent, len) == 0);
    CHECK_EQ(pvd_tx_reap(guest, 0), 1);
    memcpy(got + HDR, sent, len);
    memset(got, 0, HDR);
    if (!reference_send(&rx, got, HDR + len)) {
        CHECK(rx.v.num * 2048 < HDR + len);
        return;
    }
    struct pvd_rx_info info;
    memset(got, 0, sizeof got);
    CHECK_EQ(pvd_rx(guest, 0, got, sizeof got, &info), len);
    CHECK_EQ(info.num_buffers, (HDR + len + 2047) / 2048);
    CHECK(memcmp(got, sent, len) == 0);
}

TEST(driver_frames_of_all_layouts_arrive_on_both_formats)
{
    static const uint32_t SIZES[] = { 1, 2, 3, 5, 16, 100, 256 };
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        for (uint32_t s = 0; s < sizeof SIZES / sizeof SIZES[0]; s++) {
            uint64_t features = BASE | FORMATS[f];
            bool packed = (features & BIT(PVD_F_RING_PACKED)) != 0;
            if (!packed && (SIZES[s] < 2 || (SIZES[s] & (SIZES[s] - 1)) != 0))
                continue;
            open_guest(SIZES[s], features);
            CHECK_EQ(pvd_rx_fill(guest, 0, SIZES[s], NULL), SIZES[s]);
            for (int i = 0; i < 700; i++)
                echo(features, 4000);
            CHECK_EQ(errors(0), 0);
            CHECK_EQ(errors(1), 0);
            CHECK_EQ(in_flight(1), 0);
            CHECK_EQ(in_flight(0), SIZES[s]);
            pvd_guest_destroy(guest);
        }
    }
}

/* Receive buffers of several descriptors, posted again and again. */
TEST(driver_receive_buffers_of_several_descriptors_on_both_formats)
{
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        uint64_t features = BASE | FORMATS[f];
        struct pvd_layout layout = { .n_cuts = 3, .cuts = { 5, HDR, 100 } };
        for (uint32_t indirect = 0; indirect < 2; indirect++) {
            layout.flags = indirect * PVD_LAYOUT_INDIRECT;
            open_guest(64, features);
            CHECK_EQ(pvd_rx_fill(guest, 0, 1000, &layout), indirect ? 64 : 16);
            for (int i = 0; i < 300; i++)
                echo(features, 9000);
            CHECK_EQ(errors(0), 0);
            pvd_guest_destroy(guest);
        }
    }
}

/* Chains of different lengths, used in any order: ids decide which ones they were, and the ring is full again after. */
TEST(driver_takes_chains_used_out_of_order)
{
    static const uint64_t SET[] = { 0, BIT(PVD_F_RING_PACKED) };
    for (uint32_t f = 0; f < 2; f++) {
        open_guest(32, BASE | SET[f]);
        for (int round = 0; round < 200; round++) {
            struct reference_chain c[8];
            uint32_t n = 0;
            for (; n < 8; n++) {
                struct pvd_layout layout = { .n_cuts = random_below(4), .cuts = { HDR, 20, 30 } };
                fill_random(sent, 60);
                CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, &layout), 0);
                CHECK(reference_take(&tx, &c[n]));
            }
            for (; n > 0; n--) {
                uint32_t pick = random_below(n);
                reference_use(&tx, &c[pick], 0);
                c[pick] = c[n - 1];
            }
            CHECK_EQ(pvd_tx_reap(guest, 0), 8);
            CHECK_EQ(in_flight(1), 0);
        }
        CHECK_EQ(errors(1), 0);
        struct pvd_counters counters;
        CHECK_EQ(pvd_counters_get(guest, 1, &counters), 0);
        CHECK(counters.out_of_order > 200);
        pvd_guest_destroy(guest);
    }
}

/* With IN_ORDER a device may use batches of any size, single ones among them, and the next batch stands behind. */
TEST(driver_takes_batches_used_in_order)
{
    for (uint32_t f = 2; f < N_FORMATS; f++) {
        open_guest(64, BASE | FORMATS[f]);
        for (int round = 0; round < 300; round++) {
            struct reference_chain c[12];
            for (uint32_t n = 0; n < 12; n++) {
                struct pvd_layout layout = { .n_cuts = random_below(4), .cuts = { HDR, 20, 30 } };
                CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, &layout), 0);
                CHECK(reference_take(&tx, &c[n]));
            }
            for (uint32_t at = 0; at < 12;) {
                uint32_t n = 1 + random_below(12 - at);
                reference_use_batch(&tx, &c[at], n);
                at += n;
                if ((FORMATS[f] & BIT(PVD_F_RING_PACKED)) != 0) {
                    /* Where the ring goes on is behind the whole batch, taken back or not. */
                    uint32_t half = tx.next_used | (tx.used_wrap ? 0x8000u : 0);
                    CHECK_EQ(pvd_vring_base(guest, 1), half | half << 16);
                }
                if (random_below(2) == 0)
                    CHECK(pvd_tx_reap(guest, 0) >= (int)n);
            }
            CHECK(pvd_tx_reap(guest, 0) >= 0);
            CHECK_EQ(in_flight(1), 0);
        }
        struct pvd_counters counters;
        CHECK_EQ(pvd_counters_get(guest, 1, &counters), 0);
        CHECK_EQ(counters.errors, 0);
        CHECK_EQ(counters.out_of_order, 0);
        CHECK_EQ(counters.frames, 300 * 12);
        pvd_guest_destroy(guest);
    }
}

TEST(driver_refuses_layouts_that_a_format_forbids)
{
    struct pvd_layout mixed = { .n_cuts = 2, .cuts = { HDR, 20 }, .flags = PVD_LAYOUT_INDIRECT, .direct = 1 };
    struct pvd_layout shuffled = { .n_cuts = 1, .cuts = { HDR }, .flags = PVD_LAYOUT_SHUFFLE };
    struct pvd_layout table = { .n_cuts = 1, .cuts = { HDR }, .flags = PVD_LAYOUT_INDIRECT };
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        bool packed = (FORMATS[f] & BIT(PVD_F_RING_PACKED)) != 0, in_order = (FORMATS[f] & BIT(PVD_F_IN_ORDER)) != 0;
        open_guest(16, BASE | FORMATS[f]);
        CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, &mixed), packed ? -EINVAL : 0);
        CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, &shuffled), in_order && !packed ? -EINVAL : 0);
        CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, &table), 0);
        CHECK_EQ(pvd_guest_reset(guest, (BASE | FORMATS[f]) & ~BIT(PVD_F_INDIRECT_DESC)), 0);
        CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, &table), -EINVAL);
        pvd_guest_destroy(guest);
    }
}

TEST(driver_refuses_ring_sizes_that_a_format_forbids)
{
    struct pvd_conf conf;
    pvd_conf_default(&conf);
    for (uint32_t packed = 0; packed < 2; packed++) {
        conf.features = BASE | packed * BIT(PVD_F_RING_PACKED);
        conf.queue_size = 24;
        CHECK_EQ(pvd_guest_create(&conf, &guest), packed ? 0 : -EINVAL);
        if (packed)
            CHECK_EQ(pvd_guest_reset(guest, BASE), -EINVAL);
        pvd_guest_destroy(guest);
        conf.queue_size = 0;
        CHECK_EQ(pvd_guest_create(&conf, &guest), -EINVAL);
        conf.queue_size = 32769;
        CHECK_EQ(pvd_guest_create(&conf, &guest), -EINVAL);
    }
}

TEST(driver_reset_changes_the_format)
{
    open_guest(16, BASE);
    for (uint32_t i = 0; i < 3 * N_FORMATS; i++) {
        uint64_t features = BASE | FORMATS[i % N_FORMATS];
        CHECK_EQ(pvd_guest_reset(guest, features), 0);
        reopen(features);
        CHECK_EQ(pvd_rx_fill(guest, 0, 16, NULL), 16);
        for (int k = 0; k < 50; k++)
            echo(features, 1000);
    }
    pvd_guest_destroy(guest);
}

TEST(driver_fills_a_ring_to_the_last_descriptor)
{
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        uint32_t size = (FORMATS[f] & BIT(PVD_F_RING_PACKED)) != 0 ? 7 : 8;
        open_guest(size, BASE | FORMATS[f]);
        for (int round = 0; round < 40; round++) {
            struct reference_chain c[8], none;
            for (uint32_t i = 0; i < size; i++)
                CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, NULL), 0);
            CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, NULL), -ENOSPC);
            CHECK_EQ(in_flight(1), size);
            for (uint32_t i = 0; i < size; i++)
                CHECK(reference_take(&tx, &c[i]));
            CHECK(!reference_take(&tx, &none));
            CHECK_EQ(pvd_tx_reap(guest, 0), 0);
            for (uint32_t i = 0; i < size; i++)
                reference_use(&tx, &c[i], 0);
            CHECK_EQ(pvd_tx_reap(guest, 0), size);
        }
        CHECK_EQ(errors(1), 0);
        pvd_guest_destroy(guest);
    }
}

/* Where a ring goes on: first of all, behind what was used, and behind what was used but not yet taken back. */
TEST(driver_tells_where_a_ring_goes_on)
{
    open_guest(8, BASE);
    CHECK_EQ(pvd_vring_base(guest, 1), 0);
    for (int i = 0; i < 11; i++) {
        CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, NULL), 0);
        CHECK_EQ(reference_receive(&tx, got), HDR + 60);
        CHECK_EQ(pvd_vring_base(guest, 1), i + 1);
        CHECK_EQ(pvd_tx_reap(guest, 0), 1);
    }
    CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, NULL), 0);
    CHECK_EQ(pvd_vring_base(guest, 1), 11);
    pvd_guest_destroy(guest);

    open_guest(7, BASE | BIT(PVD_F_RING_PACKED));
    CHECK_EQ(pvd_vring_base(guest, 0), 0x80008000);
    CHECK_EQ(pvd_vring_base(guest, 1), 0x80008000);
    struct pvd_layout two = { .n_cuts = 1, .cuts = { HDR } };
    for (uint32_t i = 1; i < 20; i++) {
        uint32_t half = 2 * i % 7 | (2 * i / 7 % 2 == 0 ? 0x8000 : 0);
        CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, &two), 0);
        CHECK_EQ(reference_receive(&tx, got), HDR + 60);
        CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, &two), 0);
        CHECK_EQ(pvd_vring_base(guest, 1), half | half << 16);
        CHECK_EQ(pvd_tx_reap(guest, 0), 1);
        CHECK_EQ(pvd_vring_base(guest, 1), half | half << 16);
        CHECK_EQ(reference_receive(&tx, got), HDR + 60);
        CHECK_EQ(pvd_tx_reap(guest, 0), 1);
        tx = reference_open(guest, 1, BASE | BIT(PVD_F_RING_PACKED));
        CHECK_EQ(pvd_guest_reset(guest, BASE | BIT(PVD_F_RING_PACKED)), 0);
        for (uint32_t k = 0; k < i; k++) {
            CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, &two), 0);
            CHECK_EQ(reference_receive(&tx, got), HDR + 60);
            CHECK_EQ(pvd_tx_reap(guest, 0), 1);
        }
    }
    pvd_guest_destroy(guest);
}

/* ---- Notifications ---- */

TEST(driver_kicks_only_when_the_device_wants_it)
{
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        for (uint32_t event = 0; event < 2; event++) {
            open_guest(16, BASE | FORMATS[f] | event * BIT(PVD_F_EVENT_IDX));
            for (int i = 0; i < 100; i++) {
                bool wanted = random_below(2) != 0;
                uint32_t n = 1 + random_below(4);
                reference_ask_kick(&tx, wanted);
                CHECK_EQ(pvd_kick(guest, 1), 0);
                for (uint32_t k = 0; k < n; k++)
                    CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, NULL), 0);
                CHECK_EQ(pvd_kick(guest, 1), wanted);
                CHECK_EQ(pvd_kick(guest, 1), 0);
                /* Asked for once, the event is behind us; a flag stays. */
                CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, NULL), 0);
                CHECK_EQ(pvd_kick(guest, 1), wanted && !event);
                CHECK_EQ(pvd_kick_force(guest, 1), 0);
                while (reference_receive(&tx, got) != 0)
                    ;
                CHECK_EQ(pvd_tx_reap(guest, 0), n + 1);
            }
            pvd_guest_destroy(guest);
        }
    }
}

TEST(driver_is_called_only_when_it_wants_to_be)
{
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        for (uint32_t event = 0; event < 2; event++) {
            open_guest(6 + 10 * ((FORMATS[f] & BIT(PVD_F_RING_PACKED)) == 0),
                       BASE | FORMATS[f] | event * BIT(PVD_F_EVENT_IDX));
            for (int i = 0; i < 100; i++) {
                struct reference_ring before = tx;
                bool armed = random_below(2) != 0;
                CHECK_EQ(armed ? pvd_call_arm(guest, 1) : pvd_call_disarm(guest, 1), 0);
                CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, NULL), 0);
                CHECK_EQ(pvd_tx(guest, 0, NULL, sent, 60, NULL), 0);
                CHECK(reference_receive(&tx, got) != 0);
                CHECK_EQ(reference_wants_call(&tx, before.next_used, before.used_wrap), armed);
                before = tx;
                CHECK(reference_receive(&tx, got) != 0);
                CHECK_EQ(reference_wants_call(&tx, before.next_used, before.used_wrap), armed && !event);
                CHECK_EQ(pvd_call_arm(guest, 1), 1);
                CHECK_EQ(pvd_tx_reap(guest, 0), 2);
                CHECK_EQ(pvd_call_arm(guest, 1), 0);
            }
            pvd_guest_destroy(guest);
        }
    }
}
