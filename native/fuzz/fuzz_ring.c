/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_ring.c - libFuzzer target: arbitrary bytes as split rings (ring_fixture.h). The fuzzer writes the transmit ring of A,
 * the receive ring of B and both guests' memory.
 *
 * Input: 8 bytes of settings (features), then a stream that fills descriptors, avail rings and their indices (as
 * a distance from the used index) and indirect tables of A and B in turn.
 */
#include "ring_fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct pvd_desc
descriptor(struct input *in, int p)
{
    struct pvd_desc d;
    d.addr = fixture_fold(p, take(in, 8));
    d.len = fixture_len(take(in, 4));
    d.flags = (uint16_t)(take(in, 1) & 7);
    d.next = (uint16_t)take(in, 1);
    if ((d.next & 0xe0) != 0)
        d.next &= NUM - 1;
    return d;
}

static void
ring_fill(struct input *in, int p, uint32_t ring)
{
    pvd_guest *guest = fixture_guest(p);
    uint16_t ahead = (uint16_t)take(in, 1);

    struct pvd_desc *table = pvd_ptr(guest, pvd_scratch_gpa(guest), TABLE * sizeof *table);
    for (uint32_t i = 0; i < TABLE; i++)
        table[i] = descriptor(in, p);
    for (uint32_t i = 0; i < NUM; i++) {
        struct pvd_desc d = descriptor(in, p);
        if ((d.flags & PVD_DESC_INDIRECT) && (d.len & 1)) /* an odd length makes a good one */
            d = (struct pvd_desc){ .addr = pvd_scratch_gpa(guest), .len = 16 * (1 + d.len % TABLE), .flags = d.flags };
        pvd_desc_set(guest, ring, i, &d);
        pvd_avail_entry_set(guest, ring, i, (uint16_t)(take(in, 1) % (NUM + 1)));
    }
    pvd_avail_flags_set(guest, ring, (uint16_t)take(in, 1));
    pvd_used_event_set(guest, ring, (uint16_t)take(in, 1));
    pvd_avail_idx_set(guest, ring, ahead <= NUM + 1 ? ahead : ahead % NUM);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };

    if (size < 16)
        return 0;
    fixture_start(fixture_features(&in), NUM, 0);
    ring_fill(&in, A, 1);
    ring_fill(&in, B, 0);
    fixture_litter(&in);
    for (int turn = 0; turn < TURNS; turn++)
        fixture_honest_turn(turn);
    fixture_stop();
    return 0;
}
