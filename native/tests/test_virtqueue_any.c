/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_virtqueue_any.c - the short way to a plain chain (pvs_vq_look_plain) against the long one (pvs_vq_look), on random
 * descriptors about the borders of memory, for both formats.
 */
#include "virtqueue_lab.h"

static uint64_t seed = 1;

static uint32_t
any(uint32_t below)
{
    return lab_random(&seed, below);
}

/* An address about the places where something ends. */
static uint64_t
address(void)
{
    struct pvd_region r[2];
    CHECK_EQ(pvd_region_get(guest, 0, &r[0]), 0);
    CHECK_EQ(pvd_region_get(guest, 1, &r[1]), 0);
    uint64_t about[] = { 0, r[0].gpa, r[1].gpa, r[1].gpa + r[1].size, scratch, UINT64_MAX };
    return about[any(6)] + any(64) - 32;
}

/* A descriptor that may be anything, as the next chain of the ring. */
static void
post(bool packed)
{
    uint32_t len = any(8) == 0 ? UINT32_MAX - any(64) : any(64);
    uint16_t id = (uint16_t)any(any(4) == 0 ? 0x10000 : VQ_NUM), flags = (uint16_t)(any(4) == 0 ? any(8) : any(2) * W);
    uint64_t addr = address();
    struct pvd_packed_desc p = { addr, len, id, flags | PVD_DESC_AVAIL };
    struct pvd_desc d = { addr, len, flags, (uint16_t)any(VQ_NUM) };

    if (packed) {
        CHECK_EQ(pvd_packed_set(guest, 1, 0, &p), 0);
        return;
    }
    CHECK_EQ(pvd_desc_set(guest, 1, id, &d), 0);
    CHECK_EQ(pvd_avail_entry_set(guest, 1, 0, id), 0);
    CHECK_EQ(pvd_avail_idx_set(guest, 1, 1), 0);
}

static void
compare(bool packed, uint16_t flags, uint32_t region, uint32_t *n_plain)
{
    struct pvs_seg plain_seg = { 0 };
    uint16_t at = vq.next_avail, id;
    bool plain = pvs_vq_look_plain(&vq, packed, at, flags, &memory->spans[region], region, &plain_seg, &id);

    broken = PVS_BROKEN_NONE;
    bool found = pvs_vq_look(&vq, at, flags != 0, seg, PVS_MAX_SEGS, &chain, &broken);
    /* a table of one entry is not plain, though it looks alike afterwards */
    bool simple = found && !chain.wrong_direction && chain.walked == 1 && chain.n == 1 && seg[0].region == region;
    CHECK(!plain || simple);
    if (plain) {
        ++*n_plain;
        CHECK(plain_seg.base == seg[0].base);
        CHECK_EQ(plain_seg.len, seg[0].len);
        CHECK_EQ(plain_seg.region, seg[0].region);
        CHECK_EQ(id, chain.id);
    }
}

static void
many(uint64_t features)
{
    bool packed = (features >> VIRTIO_F_RING_PACKED & 1) != 0;
    uint32_t n_plain = 0;

    vq_set_up(features, VQ_NUM);
    for (uint32_t i = 0; i < 200000; i++) {
        post(packed);
        vq.seen_avail = 0;
        compare(packed, any(2) != 0 ? W : 0, any(2), &n_plain);
    }
    CHECK(n_plain > 5000);
    vq_tear_down();
}

TEST(plain_chains_of_a_split_ring_are_what_they_look_like)
{
    many(VQ_MODERN);
}

TEST(plain_chains_of_a_packed_ring_are_what_they_look_like)
{
    many(VQ_MODERN | 1ULL << VIRTIO_F_RING_PACKED);
}
