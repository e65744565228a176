/* SPDX-License-Identifier: Apache-2.0 */
/* test_hold.c - the timer wheel and the slab of owned frames (hold.h). */
#include "hold.h"

#include <stddef.h>
#include <stdlib.h>

#include "test.h"

static const uint64_t TICK = 1ULL << PVS_WHEEL_SHIFT, START = 123456789012345ULL;

static struct pvs_wheel wheel;
static uint64_t fired_at;
static int fired;

static void
fire(struct pvs_timer *timer, uint64_t now_ns)
{
    CHECK(timer->link == NULL);
    fired_at = now_ns;
    fired++;
}

TEST(wheel_never_fires_early_and_at_most_a_tick_late)
{
    uint64_t seed = 3;
    for (int i = 0; i < 300; i++) {
        seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
        uint64_t at = START + (seed >> 33) % (1500 * TICK);
        struct pvs_timer timer = { .fire = fire };
        pvs_wheel_init(&wheel, START);
        pvs_wheel_set(&wheel, &timer, at);
        fired = 0;
        for (uint64_t now = START; fired == 0; now += TICK / 3) {
            CHECK(now < at + 3 * TICK);
            pvs_wheel_run(&wheel, now);
        }
        CHECK(fired_at >= at);
        CHECK(fired_at < at + 2 * TICK);
        CHECK_EQ(wheel.n, 0);
    }
}

TEST(wheel_says_when_to_look_again)
{
    struct pvs_timer near = { .fire = fire }, far = { .fire = fire };
    pvs_wheel_init(&wheel, START);
    CHECK(pvs_wheel_next(&wheel) == UINT64_MAX);
    pvs_wheel_set(&wheel, &far, START + 2000 * TICK);
    uint64_t next = pvs_wheel_next(&wheel);
    CHECK(next > START + 500 * TICK && next <= START + 2001 * TICK);
    pvs_wheel_set(&wheel, &near, START + 10 * TICK);
    next = pvs_wheel_next(&wheel);
    CHECK(next >= START + 10 * TICK && next <= START + 11 * TICK);
    pvs_wheel_cancel(&wheel, &near);
    /* going by what it says, the far one fires in time, and without a busy loop */
    int looks = 0;
    for (fired = 0; fired == 0; looks++)
        pvs_wheel_run(&wheel, pvs_wheel_next(&wheel));
    CHECK(fired_at >= START + 2000 * TICK && fired_at <= START + 2001 * TICK);
    CHECK(looks < 10);
}

TEST(wheel_after_a_long_sleep_fires_all_that_is_due)
{
    struct pvs_timer timer[100] = { 0 };
    pvs_wheel_init(&wheel, START);
    for (uint32_t i = 0; i < 100; i++) {
        timer[i].fire = fire;
        pvs_wheel_set(&wheel, &timer[i], START + i * 20 * TICK);
    }
    fired = 0;
    CHECK_EQ(pvs_wheel_run(&wheel, START + 1000 * TICK + TICK), 51);
    CHECK_EQ(fired, 51);
    CHECK_EQ(pvs_wheel_run(&wheel, START + 1000000 * TICK), 49);
    CHECK_EQ(wheel.n, 0);
}

TEST(wheel_timer_in_the_past_fires_at_the_next_run)
{
    struct pvs_timer timer = { .fire = fire };
    pvs_wheel_init(&wheel, START);
    pvs_wheel_set(&wheel, &timer, 0);
    fired = 0;
    pvs_wheel_run(&wheel, START + TICK);
    CHECK_EQ(fired, 1);
}

TEST(wheel_set_again_moves_and_cancel_forgets)
{
    struct pvs_timer timer = { .fire = fire }, other = { .fire = fire };
    pvs_wheel_init(&wheel, START);
    pvs_wheel_set(&wheel, &timer, START + 5 * TICK);
    pvs_wheel_set(&wheel, &other, START + 5 * TICK);
    pvs_wheel_set(&wheel, &timer, START + 50 * TICK);
    CHECK_EQ(wheel.n, 2);
    fired = 0;
    pvs_wheel_run(&wheel, START + 20 * TICK);
    CHECK_EQ(fired, 1);
    pvs_wheel_cancel(&wheel, &timer);
    pvs_wheel_cancel(&wheel, &timer);
    pvs_wheel_run(&wheel, START + 100 * TICK);
    CHECK_EQ(fired, 1);
    CHECK_EQ(wheel.n, 0);
}

TEST(wheel_timer_for_ever_away_does_not_fire_now)
{
    struct pvs_timer timer = { .fire = fire };
    pvs_wheel_init(&wheel, START);
    pvs_wheel_set(&wheel, &timer, UINT64_MAX);
    fired = 0;
    pvs_wheel_run(&wheel, START + 1000 * TICK);
    CHECK_EQ(fired, 0);
}

static struct pvs_timer chained[3];

static void
fire_and_cancel(struct pvs_timer *timer, uint64_t now_ns)
{
    (void)now_ns;
    fired++;
    for (int i = 0; i < 3; i++)
        if (&chained[i] != timer)
            pvs_wheel_cancel(&wheel, &chained[i]);
}

static void
fire_again(struct pvs_timer *timer, uint64_t now_ns)
{
    fired++;
    pvs_wheel_set(&wheel, timer, now_ns);
}

TEST(wheel_timer_may_cancel_its_neighbours)
{
    pvs_wheel_init(&wheel, START);
    for (int i = 0; i < 3; i++) {
        chained[i].fire = fire_and_cancel;
        pvs_wheel_set(&wheel, &chained[i], START + TICK);
    }
    fired = 0;
    CHECK_EQ(pvs_wheel_run(&wheel, START + 5 * TICK), 1);
    CHECK_EQ(fired, 1);
    CHECK_EQ(wheel.n, 0);
}

TEST(wheel_timer_that_sets_itself_again_fires_once_a_run)
{
    struct pvs_timer timer = { .fire = fire_again };
    pvs_wheel_init(&wheel, START);
    pvs_wheel_set(&wheel, &timer, START);
    fired = 0;
    for (uint64_t i = 1; i <= 10; i++)
        CHECK_EQ(pvs_wheel_run(&wheel, START + i * 1000 * TICK), 1);
    CHECK_EQ(fired, 10);
}

/* ---- the slab ---- */

static struct pvs_slab slab;
static uint8_t bytes[PVS_MAX_FRAME];

static struct pvs_owned *
own(uint32_t len, uint32_t port)
{
    struct pvs_frame frame;
    struct pvs_seg tail;
    pvs_frame_from_bytes(&frame, &tail, bytes, len);
    return pvs_own(&slab, &frame, port);
}

static void
check_bytes(const struct pvs_owned *owned, uint32_t len)
{
    static uint8_t got[PVS_MAX_FRAME];
    struct pvs_seg to = { .base = got, .len = sizeof got };
    struct pvs_cursor c = { .seg = &to, .n = 1 };
    CHECK_EQ(owned->frame.len, len);
    pvs_frame_write(&owned->frame, &c);
    CHECK_EQ(c.offset, len == sizeof got ? 0 : len);
    CHECK(memcmp(got, bytes, len) == 0);
}

TEST(slab_copies_frames_of_every_size)
{
    static const uint32_t lengths[] = { 14, 127, 128, 129, 1514, 4095, 4096, 4097, 9000, 65535, PVS_MAX_FRAME };
    for (uint32_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 31 + i / 256);
    CHECK_EQ(pvs_slab_init(&slab, 64, 32), 0);
    for (uint32_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        struct pvs_owned *owned = own(lengths[i], 3);
        CHECK(owned != NULL);
        check_bytes(owned, lengths[i]);
        pvs_owned_free(owned);
        CHECK_EQ(slab.n_free, 64);
    }
    for (uint32_t len = 3000; len < 4500; len++) { /* over the borders of the first two blocks */
        struct pvs_owned *owned = own(len, 3);
        check_bytes(owned, len);
        pvs_owned_free(owned);
    }
    CHECK_EQ(slab.held[3], 0);
    pvs_slab_fini(&slab);
}

TEST(slab_copies_a_tail_of_many_pieces)
{
    struct pvs_frame frame;
    struct pvs_seg tail[100], one;
    CHECK_EQ(pvs_slab_init(&slab, 64, 32), 0);
    for (uint32_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 7);
    pvs_frame_from_bytes(&frame, &one, bytes, 128 + 100 * 97);
    for (uint32_t i = 0; i < 100; i++)
        tail[i] = (struct pvs_seg){ .base = bytes + 128 + i * 97, .len = 97 };
    frame.seg = tail;
    frame.n_seg = 100;
    struct pvs_owned *owned = pvs_own(&slab, &frame, 0);
    memset(tail, 0, sizeof tail); /* what was borrowed is gone */
    check_bytes(owned, 128 + 100 * 97);
    pvs_owned_free(owned);
    pvs_slab_fini(&slab);
}

TEST(slab_bounds_each_port_and_counts_refusals)
{
    struct pvs_owned *held[4];
    CHECK_EQ(pvs_slab_init(&slab, 64, 4), 0);
    for (int i = 0; i < 4; i++)
        CHECK((held[i] = own(60, 1)) != NULL);
    CHECK(own(60, 1) == NULL);
    CHECK_EQ(slab.refused, 1);
    struct pvs_owned *other = own(60, 2);
    CHECK(other != NULL);
    pvs_owned_free(held[0]);
    CHECK((held[0] = own(60, 1)) != NULL);
    for (int i = 0; i < 4; i++)
        pvs_owned_free(held[i]);
    pvs_owned_free(other);
    CHECK_EQ(slab.n_free, 64);
    pvs_slab_fini(&slab);
}

TEST(slab_without_enough_blocks_takes_none)
{
    CHECK_EQ(pvs_slab_init(&slab, 10, 100), 0);
    CHECK(own(65535, 0) == NULL);
    CHECK_EQ(slab.n_free, 10);
    CHECK_EQ(slab.held[0], 0);
    struct pvs_owned *owned[10];
    for (int i = 0; i < 10; i++)
        CHECK((owned[i] = own(60, 0)) != NULL);
    CHECK(own(60, 0) == NULL);
    CHECK_EQ(slab.refused, 2);
    for (int i = 0; i < 10; i++)
        pvs_owned_free(owned[i]);
    pvs_slab_fini(&slab);
}

static void
fire_owned(struct pvs_timer *timer, uint64_t now_ns)
{
    struct pvs_owned *owned = PVS_OWNED_OF(timer);
    (void)now_ns;
    check_bytes(owned, 2000);
    pvs_owned_free(owned);
    fired++;
}

TEST(hold_keeps_a_frame_until_its_time)
{
    struct pvs_frame frame;
    struct pvs_seg tail;
    CHECK_EQ(pvs_slab_init(&slab, 64, 4), 0);
    pvs_wheel_init(&wheel, START);
    pvs_frame_from_bytes(&frame, &tail, bytes, 2000);
    for (int i = 0; i < 4; i++)
        CHECK(pvs_hold(&slab, &wheel, &frame, 0, START + 10 * TICK, fire_owned) != NULL);
    CHECK(pvs_hold(&slab, &wheel, &frame, 0, START + 10 * TICK, fire_owned) == NULL);
    CHECK_EQ(wheel.n, 4);
    fired = 0;
    pvs_wheel_run(&wheel, START + 9 * TICK);
    CHECK_EQ(fired, 0);
    pvs_wheel_run(&wheel, START + 12 * TICK);
    CHECK_EQ(fired, 4);
    CHECK_EQ(slab.n_free, 64);
    pvs_slab_fini(&slab);
}
