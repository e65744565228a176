/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_frame.c - libFuzzer target: arbitrary bytes as a frame, into parse and decide, and into every copying function.
 *
 * Input: two bytes of settings (bridge flags, which port it comes from; limits, port security, mirrors), then the frame. Nothing may
 * crash, and what parse and decide say must be true of the bytes.
 */
#include <stdlib.h>

#include "decide.h"
#include "hold.h"
#include "parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { N_PORTS = 4, VID = 5, SNAPLEN = 60, SETTINGS = 2 };

static struct pvs_tables tables;
static struct pvs_verdict verdict;
static struct pvs_slab slab;
static uint8_t copy[PVS_MAX_FRAME + PVS_VLAN_HLEN];
static const _Atomic uint32_t up = 1, down = 0;
static const uint16_t members[N_PORTS] = { 0, 1, 2, 3 };
static struct pvs_meters meters;
/* one goes to a port, one into a VLAN, both of all VLANs */
static struct pvs_mirror mirrors[2] = { { .out_ref = 1 << 16 | 1, .snaplen = SNAPLEN, .drops = true }, { .vid = VID } };
static const uint64_t macs[] = { 0x020000000001, 0x020000000002 };
static const struct pvs_network networks[] = { { { [10] = 0xff, 0xff, 10 }, 104 }, { { 0xfe, 0x80 }, 10 } };
static const struct pvs_security security = {
    .max_macs = 2, .n_macs = 2, .mac = macs, .n_networks = 2, .network = networks
};

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
        pvs_fdb_learn(fdb, 0x020000000000 + i, 0, 1 << 16 | i, 0, 0, &old);
    }
    memset(mirrors[0].set, 0xff, sizeof mirrors[0].set);
    memset(mirrors[1].set, 0xff, sizeof mirrors[1].set);
    tables.port[2].mtu = 1500;
    tables.bridge[0] = (struct pvs_bridge_view){ .fdb = fdb, .n_members = N_PORTS, .member = members };
}

/* Limits that pass nothing, or next to nothing; who may send; who watches. */
static void
set_policies(uint8_t choice, uint32_t in)
{
    static struct pvs_policy policy;

    policy.policing = choice & 1 ? pvs_rate_of(1000, 1000) : (struct pvs_rate){ 0 };
    for (uint32_t i = 0; i < PVS_STORM_CLASSES; i++)
        policy.storm[i] = choice >> (1 + i) & 1 ? pvs_rate_of(1, 0) : (struct pvs_rate){ 0 };
    for (uint32_t i = 0; i < N_PORTS; i++) {
        tables.port[i].policy = i == in ? &policy : NULL;
        tables.port[i].meters = &meters;
        tables.port[i].security = i == in && (choice & 16) ? &security : NULL;
        tables.port[i].mirror_in = tables.port[i].mirror_out = 0;
    }
    tables.port[in].mirror_in = choice >> 5 & 3;
    tables.port[2].mirror_out = choice & 128 ? 3 : 0;
    tables.bridge[0].mirror = mirrors;
    tables.bridge[0].n_mirrors = choice >> 5 != 0 ? 2 : 0;
}

/* A copy as it leaves: what its mirror keeps, in the mirror's VLAN. */
static void
check_edited(const struct pvs_frame *frame, const struct pvs_egress *egress)
{
    static struct pvs_frame edited;
    struct pvs_seg seg;
    const struct pvs_edit *edit = pvs_verdict_edit(&verdict, egress->form);
    bool into_vlan = egress->form >= 2 * PVS_FORMS;

    require(egress->form < 3 * PVS_FORMS);
    pvs_frame_edit(&edited, frame, edit, &seg);
    struct pvs_seg to = { .base = copy, .len = sizeof copy };
    struct pvs_cursor c = { .seg = &to, .n = 1 };
    pvs_frame_write(&edited, &c);
    require(c.offset == edited.len);
    require(memcmp(copy, frame->head, PVS_TAG_OFFSET) == 0);
    if (egress->form < PVS_FORMS)
        require(edited.len == frame->len);
    else if (!into_vlan)
        require(edited.len == (frame->len < SNAPLEN ? frame->len : SNAPLEN));
    else
        require((copy[PVS_TAG_OFFSET + 2] & 0xf) == 0 && copy[PVS_TAG_OFFSET + 3] == VID);
}

static void
check_verdict(const struct pvs_frame *frame)
{
    uint32_t own = 0;

    require(verdict.drop < PVS_DROP_COUNT);
    require(verdict.n_egress <= 3 * N_PORTS);
    while (own < verdict.n_egress && verdict.egress[own].form < PVS_FORMS)
        own++;
    require((verdict.drop == PVS_DROP_none) == (own != 0));
    for (uint32_t i = 0; i < verdict.n_egress; i++) {
        require((i < own) == (verdict.egress[i].form < PVS_FORMS));
        check_edited(frame, &verdict.egress[i]);
        require(verdict.egress[i].port < N_PORTS);
        require(verdict.egress[i].port != pvs_ref_index(frame->in_ref) || i >= own);
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
    if (size < SETTINGS || size - SETTINGS > PVS_MAX_FRAME)
        return 0;
    uint32_t len = (uint32_t)size - SETTINGS;
    struct pvs_bridge_view *bridge = &tables.bridge[0];
    bridge->forward_bpdu = data[0] & 1;
    bridge->flood_unknown = data[0] & 2;
    bridge->punt_bpdu = data[0] & 4;
    set_policies(data[1], data[0] >> 6);
    pvs_frame_from_bytes(&frame, &tail, data + SETTINGS, len);
    frame.in_ref = 1 << 16 | (uint32_t)(data[0] >> 6);
    if (!pvs_parse(&frame)) { /* no Ethernet header, or a tag cut short */
        require(len < PVS_ETH_HLEN + 2 * PVS_VLAN_HLEN);
        return 0;
    }
    require(frame.parsed.l3_offset <= len && frame.parsed.l3_offset <= frame.head_len);
    pvs_decide(&frame, &tables, (struct pvs_moment){ .ns = 10000000000, .s = 10 }, false, &verdict);
    check_verdict(&frame);
    check_copy(&frame, data + SETTINGS);
    struct pvs_owned *owned = pvs_own(&slab, &frame, 0);
    require(owned != NULL);
    check_copy(&owned->frame, data + SETTINGS);
    pvs_owned_free(owned);
    return 0;
}
