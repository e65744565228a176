/* SPDX-License-Identifier: Apache-2.0 */
/* test_driver_judges.c - what the guest driver makes of a device that breaks a ring, and its raw access to packed rings. */
#include <errno.h>
#include <string.h>

#include "reference_device.h"
#include "test.h"

#define BIT(n) (1ull << (n))

static const uint64_t BASE = BIT(PVD_F_VERSION_1) | BIT(PVD_F_MRG_RXBUF) | BIT(PVD_F_INDIRECT_DESC);
static const uint64_t PACKED = BIT(PVD_F_RING_PACKED), IN_ORDER = BIT(PVD_F_IN_ORDER);

static pvd_guest *guest;
static struct reference_ring rx, tx;
static uint8_t frame[2048];

static void
open_guest(uint64_t features)
{
    struct pvd_conf conf;
    pvd_conf_default(&conf);
    conf.queue_size = 16;
    conf.features = BASE | features;
    CHECK_EQ(pvd_guest_create(&conf, &guest), 0);
    rx = reference_open(guest, 0, conf.features);
    tx = reference_open(guest, 1, conf.features);
}

static void
send_frames(struct reference_chain *c, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        CHECK_EQ(pvd_tx(guest, 0, NULL, frame, 60, NULL), 0);
        CHECK(reference_take(&tx, &c[i]));
    }
}

static void
check_error(uint32_t ring, uint32_t error)
{
    struct pvd_counters c;
    CHECK_EQ(pvd_counters_get(guest, ring, &c), 0);
    CHECK_EQ(c.errors, 1);
    CHECK_EQ(c.last_error, error);
}

static int
receive(void)
{
    return pvd_rx(guest, 0, frame, sizeof frame, NULL);
}

TEST(driver_judges_used_ids)
{
    static const uint64_t SET[] = { 0, BIT(PVD_F_RING_PACKED), BIT(PVD_F_IN_ORDER),
                                    BIT(PVD_F_RING_PACKED) | BIT(PVD_F_IN_ORDER) };
    struct reference_chain c[4];
    for (uint32_t f = 0; f < 4; f++) {
        open_guest(SET[f]);
        send_frames(c, 3);
        reference_use_raw(&tx, 16, 0, 1);
        CHECK_EQ(pvd_tx_reap(guest, 0), -EPROTO);
        check_error(1, PVD_ERR_ID_RANGE);
        /* What was wrong is skipped. */
        reference_use(&tx, &c[1], 0);
        CHECK_EQ(pvd_tx_reap(guest, 0), 1);
        pvd_guest_destroy(guest);

        open_guest(SET[f]);
        send_frames(c, 3);
        reference_use(&tx, &c[0], 0);
        reference_use(&tx, &c[0], 0);
        CHECK_EQ(pvd_tx_reap(guest, 0), -EPROTO);
        check_error(1, PVD_ERR_ID_IDLE);
        pvd_guest_destroy(guest);

        open_guest(SET[f]);
        reference_use_raw(&tx, 0, 0, 1);
        CHECK_EQ(pvd_tx_reap(guest, 0), -EPROTO);
        check_error(1, PVD_ERR_USED_JUMP);
        pvd_guest_destroy(guest);
    }
}

TEST(driver_judges_used_lengths)
{
    for (uint32_t packed = 0; packed < 2; packed++) {
        struct reference_chain c[1];
        open_guest(packed * PACKED);
        send_frames(c, 1);
        reference_use(&tx, &c[0], 1);
        CHECK_EQ(pvd_tx_reap(guest, 0), -EPROTO);
        check_error(1, PVD_ERR_LEN_LONG);
        pvd_guest_destroy(guest);

        open_guest(packed * PACKED);
        CHECK_EQ(pvd_rx_fill(guest, 0, 4, NULL), 4);
        CHECK(reference_take(&rx, &c[0]));
        reference_use(&rx, &c[0], 2049);
        CHECK_EQ(receive(), -EPROTO);
        check_error(0, PVD_ERR_LEN_LONG);
        pvd_guest_destroy(guest);

        /* In a packed ring this element has no WRITE flag either: nothing was written. */
        open_guest(packed * PACKED);
        CHECK_EQ(pvd_rx_fill(guest, 0, 4, NULL), 4);
        CHECK(reference_take(&rx, &c[0]));
        reference_use(&rx, &c[0], 0);
        CHECK_EQ(receive(), -EPROTO);
        check_error(0, PVD_ERR_LEN_SHORT);
        pvd_guest_destroy(guest);
    }
}

TEST(driver_judges_num_buffers_on_packed_rings)
{
    struct reference_chain c[1];
    open_guest(PACKED);
    CHECK_EQ(pvd_rx_fill(guest, 0, 4, NULL), 4);
    CHECK(reference_take(&rx, &c[0]));
    memset(frame, 0, sizeof frame);
    frame[10] = 2; /* num_buffers, but one alone is used */
    reference_write(&rx, &c[0], frame, 72);
    reference_use(&rx, &c[0], 72);
    CHECK_EQ(receive(), -EPROTO);
    check_error(0, PVD_ERR_NUM_BUFFERS);
    pvd_guest_destroy(guest);
}

/* A receive buffer out of its turn, though it may have been meant as a batch: its neighbours' lengths aren't known. */
TEST(driver_judges_the_order_of_receive_buffers)
{
    for (uint32_t packed = 0; packed < 2; packed++) {
        struct reference_chain c[2];
        open_guest(packed * PACKED | IN_ORDER);
        CHECK_EQ(pvd_rx_fill(guest, 0, 4, NULL), 4);
        CHECK(reference_take(&rx, &c[0]) && reference_take(&rx, &c[1]));
        memset(frame, 0, sizeof frame);
        frame[10] = 1;
        reference_write(&rx, &c[1], frame, 72);
        reference_use(&rx, &c[1], 72);
        CHECK_EQ(receive(), -EPROTO);
        check_error(0, PVD_ERR_ORDER);
        pvd_guest_destroy(guest);
    }
}

/* Split: a batch of two, shown by an index that moved by one. */
TEST(driver_judges_batches_larger_than_the_used_index_says)
{
    struct reference_chain c[3];
    open_guest(IN_ORDER);
    send_frames(c, 3);
    reference_use(&tx, &c[1], 0);
    CHECK_EQ(pvd_tx_reap(guest, 0), -EPROTO);
    check_error(1, PVD_ERR_ORDER);
    pvd_guest_destroy(guest);
}

TEST(driver_judges_the_length_of_a_batch)
{
    for (uint32_t packed = 0; packed < 2; packed++) {
        struct reference_chain c[3];
        open_guest(packed * PACKED | IN_ORDER);
        send_frames(c, 3);
        c[2].n_desc = 3;
        if (packed) {
            reference_use(&tx, &c[2], 9);
        } else {
            reference_use_batch(&tx, c, 3);
            struct pvd_vring v;
            CHECK_EQ(pvd_vring_get(guest, 1, &v), 0);
            ((uint32_t *)(uintptr_t)(v.used_uva + 4))[1] = 9;
        }
        CHECK_EQ(pvd_tx_reap(guest, 0), -EPROTO);
        check_error(1, PVD_ERR_LEN_LONG);
        pvd_guest_destroy(guest);
    }
}

/* ---- Raw access ---- */

TEST(driver_raw_access_is_of_one_format)
{
    struct pvd_packed_desc p = { 0 };
    struct pvd_event e = { 0 };
    struct pvd_desc d = { 0 };
    open_guest(0);
    CHECK_EQ(pvd_packed_get(guest, 1, 0, &p), -EINVAL);
    CHECK_EQ(pvd_packed_set(guest, 1, 0, &p), -EINVAL);
    CHECK_EQ(pvd_packed_post(guest, 1, &p, 1), -EINVAL);
    CHECK_EQ(pvd_packed_next(guest, 1, 0), -EINVAL);
    CHECK_EQ(pvd_event_get(guest, 1, 0, &e), -EINVAL);
    CHECK_EQ(pvd_event_set(guest, 1, 0, &e), -EINVAL);
    pvd_guest_destroy(guest);
    open_guest(PACKED);
    CHECK_EQ(pvd_desc_get(guest, 1, 0, &d), -EINVAL);
    CHECK_EQ(pvd_avail_idx(guest, 1), -EINVAL);
    CHECK_EQ(pvd_used_idx(guest, 1), -EINVAL);
    CHECK_EQ(pvd_raw_post(guest, 1, 0), -EINVAL);
    CHECK_EQ(pvd_packed_post(guest, 1, &p, 0), -EINVAL);
    CHECK_EQ(pvd_packed_post(guest, 1, &p, 17), -ENOSPC);
    CHECK_EQ(pvd_packed_post(guest, 2, &p, 1), -EINVAL);
    CHECK_EQ(pvd_truncate_memory(guest, 0, 0), 0);
    CHECK_EQ(pvd_packed_get(guest, 1, 0, &p), -EFAULT);
    pvd_guest_destroy(guest);
}

TEST(driver_posts_raw_packed_chains)
{
    struct reference_chain c;
    uint32_t id, len;
    open_guest(PACKED);
    for (uint32_t round = 0; round < 50; round++) {
        struct pvd_packed_desc p[3] = {
            { .addr = pvd_scratch_gpa(guest), .len = 7, .id = 1000, .flags = PVD_DESC_NEXT },
            { .addr = pvd_scratch_gpa(guest), .len = 8, .id = 2000, .flags = PVD_DESC_NEXT },
            { .addr = pvd_scratch_gpa(guest), .len = 9, .id = 5 }
        };
        uint16_t at = (uint16_t)(3 * round % 16), wrap = 3 * round / 16 % 2 == 0;
        CHECK_EQ(pvd_packed_next(guest, 1, 0), at | wrap << 15);
        CHECK_EQ(pvd_packed_post(guest, 1, p, 3), 0);
        CHECK(reference_take(&tx, &c));
        CHECK_EQ(c.id, 5);
        CHECK_EQ(c.len, 24);
        CHECK_EQ(pvd_raw_take(guest, 1, &id, &len), -EAGAIN);
        reference_use(&tx, &c, 3);
        CHECK_EQ(pvd_packed_next(guest, 1, 1), at | wrap << 15);
        CHECK_EQ(pvd_raw_take(guest, 1, &id, &len), 0);
        CHECK_EQ(id, 5);
        CHECK_EQ(len, 3);
    }
    /* An id that no chain can have: it costs nothing but the element. */
    for (uint32_t round = 0; round < 50; round++) {
        struct pvd_packed_desc p = { .addr = pvd_scratch_gpa(guest), .len = 7, .id = 16 };
        CHECK_EQ(pvd_packed_post(guest, 1, &p, 1), 0);
        reference_use_raw(&tx, 16, 0, 1);
        CHECK_EQ(pvd_tx_reap(guest, 0), -EPROTO);
    }
    CHECK_EQ(pvd_tx(guest, 0, NULL, frame, 60, NULL), 0);
    pvd_guest_destroy(guest);
}

TEST(driver_writes_any_packed_descriptor_and_event)
{
    struct pvd_packed_desc p = { .addr = 1, .len = 2, .id = 3, .flags = 0x1234 }, q = { 0 };
    struct pvd_event e = { .off_wrap = 0x8765, .flags = 3 }, f = { 0 };
    open_guest(PACKED);
    CHECK_EQ(pvd_packed_set(guest, 1, 16 + 4, &p), 0);
    CHECK_EQ(pvd_packed_get(guest, 1, 4, &q), 0);
    CHECK(memcmp(&p, &q, sizeof p) == 0);
    for (int device = 0; device < 2; device++) {
        struct pvd_vring v;
        CHECK_EQ(pvd_vring_get(guest, 1, &v), 0);
        CHECK_EQ(pvd_event_set(guest, 1, device, &e), 0);
        CHECK_EQ(*(uint32_t *)(uintptr_t)(device ? v.used_uva : v.avail_uva), 0x00038765);
        CHECK_EQ(pvd_event_get(guest, 1, device, &f), 0);
        CHECK_EQ(f.off_wrap, 0x8765);
        CHECK_EQ(f.flags, 3);
    }
    pvd_guest_destroy(guest);
}
