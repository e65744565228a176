/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_vlan.c - libFuzzer target: a port's rules, another's, and arbitrary bytes as a frame between them. The copy that leaves,
 * and a mirror's, in another VLAN or cut, is compared, byte for byte, with that of a slow model which works on lists of tags.
 *
 * Input: two bytes for each port (mode; which sets of VLANs, which tag), one for the VLAN of a mirror (0: none), one for how many
 * bytes it keeps (0: all), then the frame. VLANs are 0, 1, 2, 0x7ff and 0xfff.
 */
#include <stdlib.h>

#include "parse.h"
#include "vlan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SETTINGS = 6, TAGS = 2, VIDS = 5 };

static const uint16_t VID[VIDS] = { 0, 1, 2, 0x7ff, 0xfff };
static uint8_t copy[PVS_MAX_FRAME + PVS_VLAN_HLEN], wanted[PVS_MAX_FRAME + PVS_VLAN_HLEN];

static void
require(bool truth)
{
    if (!truth)
        abort();
}

static void
set_rules(struct pvs_vlan *rules, uint8_t mode, uint8_t choice)
{
    *rules = (struct pvs_vlan){ .mode = mode % (PVS_VLAN_DOT1Q_TUNNEL + 1), .tag = VID[1 + (choice & 1)] };
    for (uint32_t i = 0; i < VIDS; i++)
        if (choice >> (3 + i) & 1)
            rules->set[VID[i] / 64] |= UINT64_C(1) << VID[i] % 64;
    if (rules->mode == PVS_VLAN_NATIVE_TAGGED || rules->mode == PVS_VLAN_NATIVE_UNTAGGED) { /* as tables.c does */
        rules->set[0] &= ~UINT64_C(1);
        rules->set[0] |= UINT64_C(1) << rules->tag;
    }
}

/* ---- the model ---- */

struct tags {
    uint32_t n;
    uint32_t tag[TAGS + 1]; /* TPID << 16 | TCI, the outermost first */
};

static uint16_t
vid_of(const struct tags *t, uint32_t i)
{
    return i < t->n ? t->tag[i] & 0xfff : 0;
}

static bool
carries(const struct pvs_vlan *rules, uint16_t vid)
{
    return (rules->set[vid / 64] & UINT64_C(1) << vid % 64) != 0;
}

static void
push(struct tags *t, uint32_t tag)
{
    memmove(t->tag + 1, t->tag, t->n * sizeof t->tag[0]);
    t->tag[0] = tag;
    t->n++;
}

static void
pop(struct tags *t)
{
    if (t->n == 0)
        return;
    t->n--;
    memmove(t->tag, t->tag + 1, t->n * sizeof t->tag[0]);
}

/* False: the tag at the end of the list is cut short. */
static bool
read_tags(const uint8_t *bytes, uint32_t len, struct tags *t)
{
    uint32_t at = 12;

    t->n = 0;
    while (t->n < TAGS) {
        uint32_t type = (uint32_t)bytes[at] << 8 | bytes[at + 1];
        if (type != ETHERTYPE_8021Q && type != ETHERTYPE_8021AD)
            return true;
        if (at + 6 > len)
            return false;
        t->tag[t->n++] = type << 16 | (uint32_t)bytes[at + 2] << 8 | bytes[at + 3];
        at += 4;
    }
    return true;
}

static bool
model_enter(const struct pvs_vlan *rules, struct tags *t)
{
    uint16_t vid = vid_of(t, 0);

    switch (rules->mode) {
    case PVS_VLAN_DOT1Q_TUNNEL:
        push(t, 0x88a80000U | rules->tag);
        return carries(rules, vid);
    case PVS_VLAN_ACCESS:
        if (vid != 0 || t->n > 1)
            return false;
        break;
    case PVS_VLAN_TRUNK:
        return carries(rules, vid);
    default:
        if (vid != 0)
            return carries(rules, vid);
    }
    uint32_t old = t->n != 0 ? t->tag[0] : 0x81000000U;
    pop(t);
    push(t, old | rules->tag);
    return true;
}

static bool
model_leave(const struct pvs_vlan *rules, struct tags *t)
{
    uint16_t vid = vid_of(t, 0);

    if (rules->mode == PVS_VLAN_DOT1Q_TUNNEL) {
        bool takes = vid == rules->tag && carries(rules, vid_of(t, 1));
        pop(t);
        return takes;
    }
    if (rules->mode == PVS_VLAN_ACCESS ? vid != rules->tag : !carries(rules, vid))
        return false;
    if (rules->mode == PVS_VLAN_ACCESS || (rules->mode == PVS_VLAN_NATIVE_UNTAGGED && vid == rules->tag)) {
        pop(t);
        return t->n == 0;
    }
    return true;
}

/* What a mirror makes of it: the outermost tag is another, or there is one. */
static void
model_move(uint16_t vid, struct tags *t)
{
    if (t->n == 0)
        push(t, 0x81000000U);
    t->tag[0] = (t->tag[0] & 0xfffff000U) | vid;
}

/* ---- the comparison ---- */

static void
compare(const struct pvs_frame *frame, const struct pvs_vlan *to, const struct pvs_vlan_place *place, struct tags *t,
        const uint8_t *bytes, uint32_t tags_before, uint16_t keep)
{
    enum pvs_form form;
    struct pvs_frame edited;
    struct pvs_seg seg;
    uint32_t at = 12, rest = 12 + 4 * tags_before;

    bool leaves = pvs_vlan_leave(to, place, &form);
    require(leaves == model_leave(to, t));
    if (!leaves)
        return;
    memcpy(wanted, bytes, 12);
    for (uint32_t i = 0; i < t->n; i++)
        for (int shift = 24; shift >= 0; shift -= 8)
            wanted[at++] = (uint8_t)(t->tag[i] >> shift);
    memcpy(wanted + at, bytes + rest, frame->len - rest);
    struct pvs_edit edit = place->form[form];
    uint32_t len = frame->len - rest + at;
    if (keep != 0 && keep < len) {
        edit.keep = keep;
        len = keep;
    }
    require(pvs_frame_edit(&edited, frame, &edit, &seg) <= 1);
    require(edited.len == len && edited.head_len <= len);
    require(edited.parsed.l3_offset == frame->parsed.l3_offset + at - rest);
    struct pvs_seg all = { .base = copy, .len = sizeof copy };
    struct pvs_cursor c = { .seg = &all, .n = 1 };
    pvs_frame_write(&edited, &c);
    require(memcmp(copy, wanted, edited.len) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct pvs_frame frame = { 0 };
    struct pvs_seg tail;
    struct pvs_vlan from, to;
    struct pvs_vlan_place place;
    struct tags t;

    if (size < SETTINGS + PVS_ETH_HLEN || size - SETTINGS > PVS_MAX_FRAME)
        return 0;
    const uint8_t *bytes = data + SETTINGS;
    uint32_t len = (uint32_t)size - SETTINGS;
    set_rules(&from, data[0], data[1]);
    set_rules(&to, data[2], data[3]);
    pvs_frame_from_bytes(&frame, &tail, bytes, len);
    bool whole = read_tags(bytes, len, &t);
    require(pvs_parse(&frame) == whole);
    if (!whole)
        return 0;
    uint32_t before = t.n;
    uint16_t mirror = VID[data[4] % (VIDS - 1)], keep = data[5] == 0 ? 0 : (uint16_t)(PVS_ETH_HLEN + data[5] - 1);
    bool enters = pvs_vlan_enter(&from, &frame, &place);
    require(enters == model_enter(&from, &t));
    if (!enters)
        return 0;
    require(place.vid == vid_of(&t, 0) && place.vid == pvs_vlan_of(&from, &frame.parsed));
    require(pvs_vlan_member(&to, place.vid) ||
            !model_leave(&to, &(struct tags){ t.n, { t.tag[0], t.tag[1], t.tag[2] } }));
    if (mirror != 0) {
        struct pvs_vlan_place moved;
        pvs_vlan_move(&place, &frame, mirror, &moved);
        model_move(mirror, &t);
        require(moved.vid == mirror);
        place = moved;
    }
    compare(&frame, &to, &place, &t, bytes, before, keep);
    return 0;
}
