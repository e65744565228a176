/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_bpf.c - classic BPF: what libpcap makes of real expressions, every instruction by itself, and what must not be run.
 */
#include <errno.h>
#include <stdlib.h>

#include "bpf.h"
#include "lab.h"

enum { LEN = 400, WANTED = 0xffff };

static uint8_t bytes[LEN];
static struct pvs_frame frame;
static struct pvs_seg seg[LEN];

/* The bytes as a frame whose tail lies in pieces of so many bytes; 0: in one. */
static void
make(uint32_t len, uint32_t piece)
{
    pvs_frame_from_bytes(&frame, seg, bytes, len);
    if (piece == 0 || frame.n_seg == 0)
        return;
    uint32_t left = seg[0].len;
    uint8_t *base = seg[0].base;
    for (frame.n_seg = 0; left != 0; frame.n_seg++) {
        uint32_t part = left < piece ? left : piece;
        seg[frame.n_seg] = (struct pvs_seg){ .base = base, .len = part };
        base += part;
        left -= part;
    }
}

/* From a port to 80. */
static void
udp(uint16_t port, uint32_t len)
{
    memset(bytes, 0, sizeof bytes);
    lab_udp(bytes, LAB_MAC(2), LAB_MAC(1), 0, len);
    bytes[34] = (uint8_t)(port >> 8);
    bytes[35] = (uint8_t)port;
    make(len, 0);
}

static uint32_t
run(const struct pvs_bpf *program, uint32_t n)
{
    CHECK(pvs_bpf_valid(program, n));
    return pvs_bpf_run(program, &frame);
}

#define RUN(program) run(program, sizeof(program) / sizeof(program)[0])

/* ---- by tcpdump -ddd (libpcap 1.10), of Ethernet ---- */

/* tcp port 80 */
static const struct pvs_bpf TCP_PORT_80[] = {
    { 0x28, 0, 0, 0xc },   { 0x15, 0, 6, 0x86dd }, { 0x30, 0, 0, 0x14 },   { 0x15, 0, 15, 0x6 },   { 0x28, 0, 0, 0x36 },
    { 0x15, 12, 0, 0x50 }, { 0x28, 0, 0, 0x38 },   { 0x15, 10, 11, 0x50 }, { 0x15, 0, 10, 0x800 }, { 0x30, 0, 0, 0x17 },
    { 0x15, 0, 8, 0x6 },   { 0x28, 0, 0, 0x14 },   { 0x45, 6, 0, 0x1fff }, { 0xb1, 0, 0, 0xe },    { 0x48, 0, 0, 0xe },
    { 0x15, 2, 0, 0x50 },  { 0x48, 0, 0, 0x10 },   { 0x15, 0, 1, 0x50 },   { 0x6, 0, 0, 0xffff },  { 0x6, 0, 0, 0x0 }
};
/* vlan 100 and arp */
static const struct pvs_bpf VLAN_100_ARP[] = { { 0x28, 0, 0, 0xc },    { 0x15, 2, 0, 0x8100 }, { 0x15, 1, 0, 0x88a8 },
                                               { 0x15, 0, 6, 0x9100 }, { 0x28, 0, 0, 0xe },    { 0x54, 0, 0, 0xfff },
                                               { 0x15, 0, 3, 0x64 },   { 0x28, 0, 0, 0x10 },   { 0x15, 0, 1, 0x806 },
                                               { 0x6, 0, 0, 0xffff },  { 0x6, 0, 0, 0x0 } };
/* (udp port 53 or icmp) and not host 10.0.0.9 */
static const struct pvs_bpf DNS_OR_ICMP[] = {
    { 0x28, 0, 0, 0xc },       { 0x15, 0, 6, 0x86dd }, { 0x30, 0, 0, 0x14 },      { 0x15, 0, 20, 0x11 },
    { 0x28, 0, 0, 0x36 },      { 0x15, 17, 0, 0x35 },  { 0x28, 0, 0, 0x38 },      { 0x15, 15, 16, 0x35 },
    { 0x15, 0, 15, 0x800 },    { 0x30, 0, 0, 0x17 },   { 0x15, 0, 7, 0x11 },      { 0x28, 0, 0, 0x14 },
    { 0x45, 11, 0, 0x1fff },   { 0xb1, 0, 0, 0xe },    { 0x48, 0, 0, 0xe },       { 0x15, 3, 0, 0x35 },
    { 0x48, 0, 0, 0x10 },      { 0x15, 1, 6, 0x35 },   { 0x15, 0, 5, 0x1 },       { 0x20, 0, 0, 0x1a },
    { 0x15, 3, 0, 0xa000009 }, { 0x20, 0, 0, 0x1e },   { 0x15, 1, 0, 0xa000009 }, { 0x6, 0, 0, 0xffff },
    { 0x6, 0, 0, 0x0 }
};
/* greater 300 */
static const struct pvs_bpf GREATER[] = {
    { 0x80, 0, 0, 0 }, { 0x35, 0, 1, 300 }, { 0x6, 0, 0, 0xffff }, { 0x6, 0, 0, 0 }
};
/* ether[300:2] == 0x1234 */
static const struct pvs_bpf FAR_AWAY[] = {
    { 0x28, 0, 0, 0x12c }, { 0x15, 0, 1, 0x1234 }, { 0x6, 0, 0, 0xffff }, { 0x6, 0, 0, 0 }
};
/* ip[2:2] / ip[8] > 20: ip[8] is the TTL */
static const struct pvs_bpf DIVIDES[] = { { 0x28, 0, 0, 0xc },   { 0x15, 0, 8, 0x800 }, { 0x28, 0, 0, 0x10 },
                                          { 0x2, 0, 0, 0x1 },    { 0x30, 0, 0, 0x16 },  { 0x7, 0, 0, 0x3 },
                                          { 0x60, 0, 0, 0x1 },   { 0x3c, 0, 0, 0x0 },   { 0x25, 0, 1, 0x14 },
                                          { 0x6, 0, 0, 0xffff }, { 0x6, 0, 0, 0x0 } };

TEST(a_filter_of_ports_looks_behind_the_ip_header)
{
    udp(1000, 60);
    CHECK_EQ(RUN(TCP_PORT_80), 0);
    bytes[23] = 6;
    make(60, 0);
    CHECK_EQ(RUN(TCP_PORT_80), WANTED);
    bytes[14] = 0x46; /* with an option, where the ports are others */
    make(60, 0);
    CHECK_EQ(RUN(TCP_PORT_80), 0);
    bytes[38] = 0;
    bytes[39] = 80;
    make(60, 0);
    CHECK_EQ(RUN(TCP_PORT_80), WANTED);
    bytes[21] = 1; /* a fragment */
    make(60, 0);
    CHECK_EQ(RUN(TCP_PORT_80), 0);
}

TEST(a_filter_of_a_vlan_and_one_with_alternatives)
{
    static const uint8_t tagged[] = { 0x81, 0, 0x20, 100, 8, 6 };

    udp(1000, 60);
    CHECK_EQ(RUN(VLAN_100_ARP), 0);
    memcpy(bytes + 12, tagged, sizeof tagged);
    make(60, 0);
    CHECK_EQ(RUN(VLAN_100_ARP), WANTED);
    bytes[15] = 101;
    make(60, 0);
    CHECK_EQ(RUN(VLAN_100_ARP), 0);

    udp(53, 60);
    CHECK_EQ(RUN(DNS_OR_ICMP), WANTED);
    bytes[33] = 9; /* to 10.0.0.9 */
    make(60, 0);
    CHECK_EQ(RUN(DNS_OR_ICMP), 0);
    udp(54, 60);
    CHECK_EQ(RUN(DNS_OR_ICMP), 0);
    bytes[23] = 1;
    make(60, 0);
    CHECK_EQ(RUN(DNS_OR_ICMP), WANTED);
}

TEST(a_division_by_what_is_zero_rejects_the_frame)
{
    udp(1000, 14 + 64 * 5); /* 5 times the TTL */
    CHECK_EQ(RUN(DIVIDES), 0);
    bytes[22] = 10;
    make(14 + 64 * 5, 0);
    CHECK_EQ(RUN(DIVIDES), WANTED);
    bytes[22] = 0;
    make(14 + 64 * 5, 0);
    CHECK_EQ(RUN(DIVIDES), 0);
}

TEST(the_tail_is_read_wherever_it_lies)
{
    static const struct pvs_bpf word[] = { { 0x20, 0, 0, 126 }, { 0x16, 0, 0, 0 } }; /* from the head into the tail */

    for (uint32_t piece = 0; piece < 5; piece++) {
        udp(1000, LEN);
        bytes[300] = 0x12;
        bytes[301] = 0x34;
        make(LEN, piece);
        CHECK_EQ(RUN(FAR_AWAY), WANTED);
        CHECK_EQ(RUN(GREATER), WANTED);
        make(302, piece);
        CHECK_EQ(RUN(FAR_AWAY), WANTED);
        make(301, piece); /* half of it is beyond the end */
        CHECK_EQ(RUN(FAR_AWAY), 0);
        make(299, piece);
        CHECK_EQ(RUN(GREATER), 0);
        for (uint32_t i = 0; i < 4; i++)
            bytes[126 + i] = (uint8_t)(0xa1 + i);
        make(130, piece);
        CHECK_EQ(RUN(word), 0xa1a2a3a4);
        make(129, piece);
        CHECK_EQ(RUN(word), 0);
    }
}

/* ---- one by one ---- */

/* A and X are set, then comes the instruction, then A is returned. */
static uint32_t
one(uint32_t a, uint32_t x, struct pvs_bpf instruction)
{
    const struct pvs_bpf program[] = { { 0x01, 0, 0, x }, { 0x00, 0, 0, a }, instruction, { 0x16, 0, 0, 0 } };
    return RUN(program);
}

TEST(each_operation_computes_with_a_constant_and_with_x)
{
    static const struct {
        uint16_t operation;
        uint32_t a, b, result;
    } known[] = {
        { 0x00, 0xffffffff, 3, 2 },   { 0x10, 2, 3, 0xffffffff }, { 0x20, 0x10001, 0x10001, 0x20001 },
        { 0x30, 100, 7, 14 },         { 0x40, 0xf0, 0x1f, 0xff }, { 0x50, 0xf0, 0x1f, 0x10 },
        { 0x60, 1, 31, 0x80000000 },  { 0x60, 1, 32, 0 },         { 0x70, 0x80000000, 31, 1 },
        { 0x70, 0x80000000, 200, 0 }, { 0x90, 100, 7, 2 },        { 0xa0, 0xf0, 0x1f, 0xef },
    };

    make(60, 0);
    for (uint32_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        CHECK_EQ(one(known[i].a, 99, (struct pvs_bpf){ 0x04 | known[i].operation, 0, 0, known[i].b }), known[i].result);
        CHECK_EQ(one(known[i].a, known[i].b, (struct pvs_bpf){ 0x0c | known[i].operation, 0, 0, 99 }), known[i].result);
    }
    CHECK_EQ(one(5, 0, (struct pvs_bpf){ 0x84, 0, 0, 0 }), (uint32_t)-5);
    CHECK_EQ(one(5, 0, (struct pvs_bpf){ 0x3c, 0, 0, 0 }), 0); /* by X, which is 0 */
    CHECK_EQ(one(5, 0, (struct pvs_bpf){ 0x9c, 0, 0, 0 }), 0);
    CHECK_EQ(one(5, 6, (struct pvs_bpf){ 0x87, 0, 0, 0 }), 6); /* TXA */
}

TEST(each_test_jumps_when_it_holds)
{
    static const uint16_t test[] = { 0x15, 0x25, 0x35, 0x45 };
    static const uint32_t operand[] = { 4, 5, 6 };
    static const bool holds[4][3] = {
        { false, true, false }, { true, false, false }, { true, true, false }, { true, true, true }
    };

    make(60, 0);
    for (uint32_t t = 0; t < 4; t++)
        for (uint32_t i = 0; i < 3; i++)
            for (uint16_t by_x = 0; by_x <= 8; by_x = (uint16_t)(by_x + 8)) {
                const struct pvs_bpf program[] = { { 0x01, 0, 0, operand[i] },
                                                   { 0x00, 0, 0, 5 },
                                                   { (uint16_t)(test[t] + by_x), 1, 0, by_x ? 0 : operand[i] },
                                                   { 0x06, 0, 0, 1 },
                                                   { 0x05, 0, 0, 1 },
                                                   { 0x06, 0, 0, 3 },
                                                   { 0x06, 0, 0, 2 } };
                CHECK_EQ(RUN(program), holds[t][i] ? 2 : 1);
            }
}

TEST(loads_stores_and_the_length)
{
    static const struct pvs_bpf memory[] = { { 0x00, 0, 0, 7 }, { 0x02, 0, 0, 15 }, { 0x01, 0, 0, 8 },
                                             { 0x03, 0, 0, 0 }, { 0x60, 0, 0, 0 },  { 0x61, 0, 0, 15 },
                                             { 0x0c, 0, 0, 0 }, { 0x07, 0, 0, 0 },  { 0x00, 0, 0, 100 },
                                             { 0x0c, 0, 0, 0 }, { 0x16, 0, 0, 0 } };
    static const struct pvs_bpf untouched[] = { { 0x00, 0, 0, 7 }, { 0x60, 0, 0, 3 }, { 0x16, 0, 0, 0 } };
    static const struct pvs_bpf length[] = { { 0x81, 0, 0, 0 }, { 0x87, 0, 0, 0 }, { 0x16, 0, 0, 0 } };

    udp(1000, 60);
    CHECK_EQ(RUN(memory), 115);
    CHECK_EQ(RUN(untouched), 0); /* scratch memory begins as zeros */
    CHECK_EQ(RUN(length), 60);
    CHECK_EQ(one(0, 10, (struct pvs_bpf){ 0x50, 0, 0, 12 }), 64);        /* the TTL */
    CHECK_EQ(one(0, 10, (struct pvs_bpf){ 0x40, 0, 0, 2 }), 0x08004500); /* a word */
    CHECK_EQ(one(9, 0xffffffff, (struct pvs_bpf){ 0x50, 0, 0, 24 }), 0); /* it doesn't wrap */
    CHECK_EQ(one(9, 0x7fffffff, (struct pvs_bpf){ 0x40, 0, 0, 0x7fffffff }), 0);
    CHECK_EQ(one(9, 0, (struct pvs_bpf){ 0xb1, 0, 0, 60 }), 0);
}

/* ---- what isn't run ---- */

TEST(what_could_go_wrong_is_refused_before)
{
    static const struct pvs_bpf bad[] = {
        { 0x05, 0, 0, 2 },                                                         /* out of the program */
        { 0x05, 0, 0, 0xffffffff },                                                /* backwards */
        { 0x15, 2, 0, 0 },          { 0x15, 0, 2, 0 },          { 0x34, 0, 0, 0 }, /* division by 0 */
        { 0x94, 0, 0, 0 },          { 0x02, 0, 0, 16 },                            /* no such memory */
        { 0x03, 0, 0, 16 },         { 0x60, 0, 0, 16 },         { 0x61, 0, 0, 0xffffffff },
        { 0x30, 0, 0, 0xfffff02c },                                                /* SKF_AD_VLAN_TAG: the kernel's */
        { 0x50, 0, 0, 0x80000000 }, { 0xb1, 0, 0, 0xffffffff }, { 0xb0, 0, 0, 0 }, /* no instructions */
        { 0x21, 0, 0, 0 },          { 0x41, 0, 0, 0 },          { 0x8c, 0, 0, 0 },
        { 0xb4, 0, 0, 1 },          { 0x55, 0, 0, 0 },          { 0x0d, 0, 0, 0 },
        { 0x0e, 0, 0, 0 },          { 0x17, 0, 0, 0 },          { 0x38, 0, 0, 0 },
        { 0x100, 0, 0, 0 },         { 0x104, 0, 0, 1 },         { 0x115, 0, 0, 0 },
    };
    static const struct pvs_bpf good[] = {
        { 0x05, 0, 0, 1 }, { 0x15, 1, 1, 0 }, { 0x34, 0, 0, 1 }, { 0x60, 0, 0, 15 }
    };
    static struct pvs_bpf much[PVS_MAX_FILTER + 1];
    struct pvs_filter *filter;

    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const struct pvs_bpf program[] = { bad[i], { 0x06, 0, 0, 1 }, { 0x06, 0, 0, 0 } };
        CHECK(!pvs_bpf_valid(program, 3));
        CHECK_EQ(pvs_filter_create(program, 3, &filter), -EINVAL);
        CHECK(filter == NULL);
    }
    for (uint32_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        const struct pvs_bpf program[] = { good[i], { 0x06, 0, 0, 1 }, { 0x06, 0, 0, 0 } };
        CHECK(pvs_bpf_valid(program, 3));
        CHECK(!pvs_bpf_valid(program, 1)); /* its end returns nothing */
    }
    for (uint32_t i = 0; i <= PVS_MAX_FILTER; i++)
        much[i] = (struct pvs_bpf){ 0x06, 0, 0, 1 };
    CHECK(pvs_bpf_valid(much, PVS_MAX_FILTER));
    CHECK(!pvs_bpf_valid(much, PVS_MAX_FILTER + 1));
    CHECK(!pvs_bpf_valid(much, 0));
    CHECK_EQ(pvs_filter_create(much, PVS_MAX_FILTER, &filter), 0);
    make(60, 0);
    CHECK(pvs_filter_passes(filter, &frame));
    free(filter);
    CHECK_EQ(pvs_filter_create(NULL, 0, &filter), 0);
    CHECK(pvs_filter_passes(filter, &frame));
}
