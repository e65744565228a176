/* SPDX-License-Identifier: Apache-2.0 */
/* test_policy.c - limits hold their rate, in virtual time (policy.h), and what they drop is counted. One worker, step by step. */
#include <string.h>

#include "frame.h"
#include "lab.h"
#include "policy.h"

enum { LEN = 1000, BATCH = 16 };

#define SECOND UINT64_C(1000000000)

static struct lab lab;

/* ---- the bucket itself ---- */

/* What passes in `seconds` when one unit is offered each `every_ns`. */
static uint64_t
passed(const struct pvs_rate *rate, uint64_t seconds, uint64_t every_ns, uint32_t units)
{
    pvs_meter meter = 0;
    uint64_t n = 0;

    for (uint64_t now = SECOND; now < (1 + seconds) * SECOND; now += every_ns)
        if (pvs_meter_allows(rate, &meter, units, now)) {
            pvs_meter_charge(rate, &meter, units, now);
            n += units;
        }
    return n;
}

TEST(a_bucket_lets_its_rate_and_its_depth_through)
{
    static const uint64_t rates[] = { 1, 7, 1000, 123457, 12500000 };

    for (uint32_t i = 0; i < sizeof rates / sizeof rates[0]; i++) {
        uint64_t depth = rates[i] / 10 + 2000;
        struct pvs_rate rate = pvs_rate_of(rates[i], depth);
        uint32_t units = rates[i] > 1000000 ? 1500 : 1;
        uint64_t n = passed(&rate, 10, SECOND * units / rates[i] / 2 + 1, units);
        CHECK(n <= 10 * rates[i] + rates[i] / 100 + depth + units);
        CHECK(n >= 10 * rates[i] - units);
    }
}

TEST(a_full_bucket_is_as_deep_as_said)
{
    struct pvs_rate rate = pvs_rate_of(1000, 50);
    pvs_meter meter = 0;
    uint32_t n = 0;

    for (uint64_t now = SECOND; pvs_meter_allows(&rate, &meter, 1, now); n++)
        pvs_meter_charge(&rate, &meter, 1, now);
    CHECK_EQ(n, 50);
    CHECK(!pvs_meter_allows(&rate, &meter, 1, SECOND));
    CHECK(pvs_meter_allows(&rate, &meter, 1, SECOND + SECOND / 1000)); /* one has come in again */
    CHECK(!pvs_meter_allows(&rate, &meter, 51, 100 * SECOND));         /* more than it ever holds */
    CHECK(pvs_meter_allows(&rate, &meter, 50, 100 * SECOND));
    struct pvs_rate none = pvs_rate_of(0, 0);
    CHECK(pvs_meter_allows(&none, &meter, UINT32_MAX, 0));
}

/* From one in a second to as many as there may be, whatever is charged at once: no product is too large, no rounding too coarse. */
TEST(a_cost_is_right_for_every_rate)
{
    struct pvs_rate slow = pvs_rate_of(1, UINT64_MAX), fast = pvs_rate_of(UINT64_C(125000000000), UINT64_C(1) << 32);
    CHECK_EQ(pvs_rate_cost(&slow, 1), SECOND);
    CHECK_EQ(pvs_rate_cost(&slow, 65572), 65572 * SECOND);
    CHECK_EQ(slow.depth_ns, UINT32_MAX * SECOND);
    CHECK(pvs_rate_cost(&fast, 1000000) <= 8000 && pvs_rate_cost(&fast, 1000000) >= 7990);
    CHECK(fast.depth_ns <= 34359739 && fast.depth_ns >= 34359738);
    for (uint64_t rate = 1; rate <= 10000000; rate = 3 * rate + 1) {
        struct pvs_rate r = pvs_rate_of(rate, 70000);
        uint64_t cost = pvs_rate_cost(&r, 65535), exact = 65535 * SECOND / rate;
        CHECK(cost <= exact && exact - cost <= exact / 1000 + 1);
        CHECK(pvs_rate_cost(&r, 70000) <= r.depth_ns); /* what is said to pass at once does */
    }
}

/* A bucket that has been full for long holds no more than its depth; the end of what an unsigned number counts is years away. */
TEST(a_bucket_keeps_count_at_any_time)
{
    static const uint64_t times[] = { 0, 1, SECOND, UINT64_C(1) << 62, UINT64_MAX - 1000 * SECOND };
    struct pvs_rate rate = pvs_rate_of(10, 5);

    for (uint32_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        pvs_meter meter = 0;
        for (uint32_t n = 0; n < 20; n++) {
            CHECK_EQ(pvs_meter_allows(&rate, &meter, 1, times[i]), n < 5);
            if (n < 5)
                CHECK_EQ(pvs_meter_charge(&rate, &meter, 1, times[i]), times[i] + n * SECOND / 10);
        }
        CHECK(pvs_meter_allows(&rate, &meter, 1, times[i] + SECOND / 10));
        CHECK(!pvs_meter_allows(&rate, &meter, 2, times[i] + SECOND / 10));
        pvs_meter_fill(&meter);
        CHECK(pvs_meter_allows(&rate, &meter, 5, times[i]));
    }
}

/* ---- frames ---- */

static void
open_ports(uint32_t n)
{
    struct lab_conf conf = lab_conf_default(n);
    lab_open(&lab, &conf);
}

static void
close_and_check(void)
{
    lab_check_sums(&lab);
    lab_close(&lab);
}

/* For so many ms port 0 sends a batch each ms; how many frames of LEN bytes port 1 gets. */
static uint64_t
send_for(uint32_t ms, uint64_t dst, uint32_t batch)
{
    uint8_t frame[LEN], got[PVS_MAX_FRAME];
    uint64_t n = 0;

    lab_frame(frame, dst, LAB_MAC(0), LEN, 1);
    for (uint32_t i = 0; i < ms; i++) {
        lab_fill(&lab, 1, 2 * BATCH);
        for (uint32_t k = 0; k < batch; k++)
            lab_send(&lab, 0, frame, LEN);
        lab.now_ns += 1000000 - 2 * LAB_STEP_NS;
        lab_poll(&lab, 2);
        while (pvd_rx(lab.port[1].guest, 0, got, sizeof got, NULL) >= 0)
            n++;
        CHECK(pvd_tx_reap(lab.port[0].guest, 0) >= 0);
    }
    return n;
}

TEST_EACH_RING(policing_holds_its_rate)
{
    open_ports(2);
    lab.port[0].conf.policing = (struct pvs_limit){ .per_second = 1000000, .depth = 100000 };
    lab_publish(&lab);
    uint64_t n = send_for(2000, LAB_MAC(1), BATCH); /* 16 times as much as may pass */
    CHECK(n >= 2000 && n <= 2100 + 5);
    struct lab_counters c = lab_counters(&lab, 0);
    CHECK_EQ(c.rx_drop[PVS_DROP_policed], 2000 * BATCH - n);
    CHECK_EQ(c.value[PVS_C_rx_packets], 2000 * BATCH);
    close_and_check();
}

TEST_EACH_RING(each_class_has_its_own_limit)
{
    static const uint64_t dst[PVS_STORM_CLASSES] = { LAB_BROADCAST, 0x01005e000001ULL, LAB_MAC(77) };

    for (uint32_t class = 0; class < PVS_STORM_CLASSES; class ++) {
        open_ports(2);
        lab.port[0].conf.storm[class] = (struct pvs_limit){ .per_second = 1000, .depth = 100 };
        lab_publish(&lab);
        for (uint32_t other = 0; other < PVS_STORM_CLASSES; other++) {
            uint64_t n = send_for(1000, dst[other], 4);
            CHECK(other == class ? n >= 1000 && n <= 1105 : n == 4000);
            if (other == class)
                CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_storm_control], 4000 - n);
        }
        close_and_check();
    }
}

/* What is known, and what comes by other ports, is not part of a storm. */
TEST_EACH_RING(known_unicast_is_no_storm)
{
    open_ports(2);
    for (uint32_t class = 0; class < PVS_STORM_CLASSES; class ++)
        lab.port[0].conf.storm[class] = (struct pvs_limit){ .per_second = 1, .depth = 1 };
    lab_publish(&lab);
    uint8_t hello[60];
    lab_frame(hello, LAB_BROADCAST, LAB_MAC(1), sizeof hello, 0);
    lab_send(&lab, 1, hello, sizeof hello);
    lab_poll(&lab, 2);
    CHECK_EQ(send_for(100, LAB_MAC(1), BATCH), 100 * BATCH);
    CHECK_EQ(lab_counters(&lab, 0).rx_drop[PVS_DROP_storm_control], 0);
    close_and_check();
}

/* ---- shaping ---- */

/* 16 times the rate comes in: what goes out is the rate, in order; the queue holds what fits into its time. */
TEST_EACH_RING(shaping_holds_its_rate_in_order)
{
    uint8_t frame[LEN], got[PVS_MAX_FRAME];
    uint32_t next = 0, n = 0, last = 0;

    open_ports(2);
    lab.port[1].conf.shaping = (struct pvs_limit){ .per_second = 1000000, .depth = 70000 };
    lab_publish(&lab);
    for (uint32_t ms = 0; ms < 2000; ms++) {
        lab_fill(&lab, 1, 2 * BATCH);
        for (uint32_t k = 0; k < BATCH; k++) {
            lab_frame(frame, LAB_MAC(1), LAB_MAC(0), LEN, 0);
            memcpy(frame + 20, &(uint32_t){ ++next }, sizeof next);
            lab_send(&lab, 0, frame, LEN);
        }
        lab.now_ns += 1000000 - 2 * LAB_STEP_NS;
        lab_poll(&lab, 2);
        while (pvd_rx(lab.port[1].guest, 0, got, sizeof got, NULL) >= 0) {
            uint32_t number;
            memcpy(&number, got + 20, sizeof number);
            CHECK(number > last);
            last = number;
            n++;
        }
        CHECK(pvd_tx_reap(lab.port[0].guest, 0) >= 0);
    }
    CHECK(n >= 1990 && n <= 2075);
    lab_fill(&lab, 1, 200);
    for (uint32_t ms = 0; ms < 200; ms++) { /* what still waits comes too */
        lab.now_ns += 1000000;
        lab_poll(&lab, 1);
        while (pvd_rx(lab.port[1].guest, 0, got, sizeof got, NULL) >= 0)
            n++;
    }
    struct lab_counters c = lab_counters(&lab, 1);
    CHECK_EQ(c.value[PVS_C_tx_packets], n);
    CHECK_EQ(c.tx_drop[PVS_DROP_shaped], 2000 * BATCH - n);
    close_and_check();
}

/* Within its bucket nothing waits; what waits leaves without another frame's coming. */
TEST_EACH_RING(what_waits_leaves_by_itself)
{
    open_ports(2);
    lab.port[1].conf.shaping = (struct pvs_limit){ .per_second = 1000000, .depth = 3 * LEN };
    lab_publish(&lab);
    lab_fill(&lab, 1, 10);
    uint8_t frame[LEN];
    for (uint32_t salt = 0; salt < 8; salt++) {
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), LEN, salt);
        lab_send(&lab, 0, frame, LEN);
    }
    lab_poll(&lab, 1);
    lab.now_ns += 400000; /* moments are late by a tick of the wheel, and by our steps */
    for (uint32_t salt = 0; salt < 8; salt++) {
        if (salt >= 3) {
            lab_expect_nothing(&lab, 1);
            lab.now_ns += 1000000 - LAB_STEP_NS;
            lab_poll(&lab, 1);
        }
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), LEN, salt);
        lab_expect(&lab, 1, frame, LEN);
    }
    close_and_check();
}

/* What waits for a port goes with it, and doesn't reach another in its place. */
TEST_EACH_RING(a_port_that_goes_takes_what_waits_along)
{
    open_ports(2);
    lab.port[1].conf.shaping = (struct pvs_limit){ .per_second = 1000, .depth = LEN };
    lab_publish(&lab);
    lab_fill(&lab, 1, 40);
    uint8_t frame[LEN];
    lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 60, 0);
    for (uint32_t i = 0; i < 30; i++)
        lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK(lab_counters(&lab, 1).tx_drop[PVS_DROP_shaped] > 0);
    CHECK_EQ(lab_wait(&lab, pvs_publish(lab.sw, &lab.port[0].conf, 1, &lab.conf.bridge, 1)), 0);
    lab.now_ns += SECOND;
    lab_poll(&lab, 2);
    lab_publish(&lab);
    lab.now_ns += SECOND;
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, 1).value[PVS_C_tx_packets], 16);
    lab_close(&lab); /* frames that went with the port are in nobody's sums */
}
