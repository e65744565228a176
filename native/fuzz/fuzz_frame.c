/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_frame.c - libFuzzer target: arbitrary bytes as a frame, into parse and decide, and into every copying function.
 *
 * Input: one byte of settings (bridge flags, which port it comes from), then the frame. Nothing may crash, and what parse and
 * decide say must be true of the bytes.
 */
#include <stdlib.h>

#include "decide.h"
#include "hold.h"
#include "parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { N_PORTS = 4 };

static struct pvs_tables tables;
static struct pvs_verdict verdict;
static struct pvs_slab slab;
static uint8_t copy[PVS_MAX_FRAME];
static const _Atomic uint32_t up = 1, down = 0;
static const uint16_t members[N_PORTS] = { 0, 1, 2, 3 };

static void
require(bool truth)
{
    if (!truth)
        abort();
}

static void
set_up(void)
{
    struct pvs_fdb *fdb;
    uint32_t old;

    if (tables.bridge[0].fdb != NULL)
        return;
    require(pvs_slab_init(&slab, 64, 64) == 0);
    require(pvs_fdb_create(64, 300, 1, &fdb) == 0);
    for (uint32_t i = 0; i < N_PORTS; i++) {
        tables.port[i] = (struct pvs_port_view){ .ref = 1 << 16 | i, .enabled = true, .rx_up = i == 3 ? &down : &up };
        pvs_fdb_learn(fdb, 0x020000000000 + i, 0, 1 << 16 | i, 0, &old);
    }
    tables.port[2].mtu = 1500;
    tables.bridge[0] = (struct pvs_bridge_view){ .fdb = fdb, .n_members = N_PORTS, .member = members };
}

static void
check_verdict(const struct pvs_frame *frame)
{
    require(verdict.drop < PVS_DROP_COUNT);
    require(verdict.n_egress <= N_PORTS);
    require((verdict.drop == PVS_DROP_none) == (verdict.n_egress != 0));
    for (uint32_t i = 0; i < verdict.n_egress; i++) {
        require(verdict.egress[i].port < N_PORTS);
        require(verdict.egress[i].port != pvs_ref_index(frame->in_ref));
        require(verdict.egress[i].drop < PVS_DROP_COUNT);
    }
    if (verdict.learn)
        require(!pvs_mac_is_group(frame->parsed.src) && frame->parsed.src != 0);
}

static void
check_copy(const struct pvs_frame *frame, const uint8_t *bytes)
{
    struct pvs_seg to = { .base = copy, .len = sizeof copy };
    struct pvs_cursor c = { .seg = &to, .n = 1 };
    pvs_frame_write(frame, &c);
    require(memcmp(copy, bytes, frame->len) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct pvs_frame frame = { 0 };
    struct pvs_seg tail;

    set_up();
    if (size < 1 || size - 1 > PVS_MAX_FRAME)
        return 0;
    uint32_t len = (uint32_t)size - 1;
    struct pvs_bridge_view *bridge = &tables.bridge[0];
    bridge->forward_bpdu = data[0] & 1;
    bridge->flood_unknown = data[0] & 2;
    bridge->punt_bpdu = data[0] & 4;
    pvs_frame_from_bytes(&frame, &tail, data + 1, len);
    frame.in_ref = 1 << 16 | (uint32_t)(data[0] >> 6);
    if (!pvs_parse(&frame)) { /* no Ethernet header, or a tag cut short */
        require(len < PVS_ETH_HLEN + 2 * PVS_VLAN_HLEN);
        return 0;
    }
    require(frame.parsed.l3_offset <= len && frame.parsed.l3_offset <= frame.head_len);
    pvs_decide(&frame, &tables, 10, false, &verdict);
    check_verdict(&frame);
    check_copy(&frame, data + 1);
    struct pvs_owned *owned = pvs_own(&slab, &frame, 0);
    require(owned != NULL);
    check_copy(&owned->frame, data + 1);
    pvs_owned_free(owned);
    return 0;
}
