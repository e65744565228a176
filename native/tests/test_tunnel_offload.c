/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_tunnel_offload.c - large frames and trains of datagrams: what leaves by a tunnel is finished and fits its underlay, and what the kernel
 * gathers and cuts is the same for both sides. Step by step.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "offload_lab.h"
#include "tunnel.h"
#include "tunnel_lab.h"

enum { VNI = 0xabcdef, HOST_CSUM = 0, HOST_TSO4 = 11, HOST_TSO6 = 12, HOST_USO = 56, MSS = 1400 };

static const struct recipe TCP4 = { .payload = 20000, .flags = ACK | PSH, .seq = 0xfffffc00, .id = 65530 };
static const struct recipe TCP6 = { .v6 = true, .payload = 20001, .flags = ACK };
static const struct recipe UDP4 = { .udp = true, .payload = 9000, .id = 3 };
static const struct recipe UDP6 = { .v6 = true, .udp = true, .payload = 9001 };
static const struct recipe *const KINDS[] = { &TCP4, &TCP6, &UDP4, &UDP6 };

static struct tunnel_lab t;
static struct cooked c, wanted;

/* Guest 0 takes everything; guest 1 nothing. */
static void
open_with(const struct tunnel_lab_conf *conf)
{
    struct lab_conf lab = lab_conf_default(2);

    lab.guest.tx_buf_size = 66000;
    lab.guest.features |= 1ULL << HOST_CSUM | 3ULL << HOST_TSO4 | 1ULL << HOST_USO | 1ULL << PVD_F_GUEST_CSUM |
                          1ULL << PVD_F_GUEST_TSO4 | 1ULL << PVD_F_GUEST_TSO6;
    CHECK(tunnel_lab_open(&t, &lab, conf));
    for (uint32_t i = 0; i < 2; i++)
        lab_fill(&t.lab, i, 256);
    CHECK_EQ(tunnel_lab_add(&t, VNI), 0);
    lab_publish(&t.lab);
    tunnel_lab_flood(&t, 0, 0, 1);
}

static void
open_it(void)
{
    open_with(&(struct tunnel_lab_conf){ 0 });
}

/* Its destination is LAB_MAC(2), which nobody has: it goes by the tunnel and to guest 1. */
static void
guest_sends(const struct virtio_net_hdr *header, const struct pvd_layout *layout)
{
    pvd_guest *guest = t.lab.port[0].guest;

    CHECK(pvd_tx_reap(guest, 0) >= 0);
    CHECK_EQ(pvd_tx(guest, 0, header, c.bytes, c.len, layout), 0);
    CHECK(pvd_kick(guest, 1) >= 0);
    lab_poll(&t.lab, 3);
}

static uint64_t
dropped(enum pvs_drop why)
{
    return tunnel_lab_counters(&t, 0).tx_drop[why];
}

/* The segments of a recipe that is cut so come to far VTEP 0, finished, and nothing else. */
static void
expect_segments(const struct recipe *r, uint32_t gso_size)
{
    uint32_t n = (r->payload + gso_size - 1U) / gso_size;

    for (uint32_t i = 0; i < n; i++) {
        struct recipe s = segment_recipe(r, gso_size, i, n);
        cook(&s, FINISHED, &wanted);
        far_expect(&t, 0, VNI, wanted.bytes, wanted.len);
    }
    far_expect_nothing(&t, 0);
}

TEST(tunnel_large_frames_leave_cut_and_summed)
{
    open_it();
    for (uint32_t k = 0; k < 4; k++)
        for (uint8_t tags = 0; tags <= 2; tags++) {
            struct recipe r = *KINDS[k];
            r.tags = tags;
            cook(&r, PSEUDO, &c);
            struct virtio_net_hdr header = header_for(&r, &c, MSS);
            guest_sends(&header, NULL);
            expect_segments(&r, MSS);
        }
    CHECK_EQ(lab_sum(tunnel_lab_counters(&t, 0).tx_drop), 0);
    tunnel_lab_close(&t);
}

/* With the rest of the frame in parts of all kinds, odd ones as well, and more than a message names. */
TEST(tunnel_checksums_are_finished_wherever_the_bytes_lie)
{
    open_it();
    for (uint32_t k = 0; k < 4; k++)
        for (uint32_t step = 1; step < 30; step += 3) {
            struct pvd_layout layout = { .n_cuts = 40 };
            for (uint32_t i = 0; i < layout.n_cuts;
                 i++) /* odd lengths and even ones, from before the end of the head on */
                layout.cuts[i] = 130 + step * i + (i * i) % step;
            struct recipe r = *KINDS[k];
            r.payload = 1371;
            cook(&r, PSEUDO, &c);
            struct virtio_net_hdr header = header_for(&r, &c, 0);
            guest_sends(&header, &layout);
            cook(&r, FINISHED, &wanted);
            far_expect(&t, 0, VNI, wanted.bytes, wanted.len);
        }
    far_expect_nothing(&t, 0);
    tunnel_lab_close(&t);
}

/* Frames in very many parts, finished or not, several in one burst. */
TEST(tunnel_frames_in_too_many_parts_are_put_together)
{
    enum { FRAMES = 3 };
    struct pvd_layout layout = { .n_cuts = PVD_MAX_CUTS };
    pvd_guest *guest;

    for (uint32_t i = 0; i < PVD_MAX_CUTS; i++)
        layout.cuts[i] = 160 + 7 * i; /* 65 parts are behind the head */
    open_it();
    guest = t.lab.port[0].guest;
    for (uint32_t unfinished = 0; unfinished < 2; unfinished++) {
        struct recipe r = UDP4;
        for (r.at = 0; r.at < FRAMES; r.at++) {
            r.payload = 2000 + r.at;
            cook(&r, unfinished != 0 ? PSEUDO : FINISHED, &c);
            struct virtio_net_hdr header = { 0 };
            if (unfinished != 0)
                header = header_for(&r, &c, 0);
            CHECK_EQ(pvd_tx(guest, 0, &header, c.bytes, c.len, &layout), 0);
        }
        CHECK(pvd_kick(guest, 1) >= 0);
        lab_poll(&t.lab, 3);
        for (r.at = 0; r.at < FRAMES; r.at++) {
            r.payload = 2000 + r.at;
            cook(&r, FINISHED, &wanted);
            far_expect(&t, 0, VNI, wanted.bytes, wanted.len);
        }
        CHECK_EQ(pvd_tx_reap(guest, 0), FRAMES);
    }
    tunnel_lab_close(&t);
}

/* ---- what fits ---- */

TEST(tunnel_tcp_is_cut_to_what_fits)
{
    open_it();
    for (uint32_t k = 0; k < 2; k++)
        for (uint8_t tags = 0; tags <= 1; tags++)
            for (uint32_t payload = 500; payload <= MSS + 100; payload += 450) {
                struct recipe r = *KINDS[k];
                r.tags = tags;
                cook(&r, PSEUDO, &c);
                t.tunnel[0].conf->room = c.hdr_len + payload;
                lab_publish(&t.lab);
                struct virtio_net_hdr header = header_for(&r, &c, MSS);
                guest_sends(&header, NULL);
                expect_segments(&r, payload < MSS ? payload : MSS);
            }
    CHECK_EQ(dropped(PVS_DROP_mtu_exceeded), 0);
    tunnel_lab_close(&t);
}

TEST(tunnel_what_can_not_be_cut_and_does_not_fit_is_dropped)
{
    open_it();
    for (uint32_t k = 0; k < 4; k++) {
        struct recipe r = *KINDS[k];
        cook(&r, PSEUDO, &c);
        struct virtio_net_hdr header = header_for(&r, &c, MSS);
        t.tunnel[0].conf->room = r.udp ? c.hdr_len + MSS - 1 : c.hdr_len;
        lab_publish(&t.lab);
        guest_sends(&header, NULL); /* datagrams are their sender's; and of TCP not even one byte fits */
        CHECK_EQ(dropped(PVS_DROP_mtu_exceeded), 3 * k + 1);
        r.payload = 1000;
        cook(&r, PSEUDO, &c);
        header = header_for(&r, &c, 0);
        t.tunnel[0].conf->room = c.len - 1;
        lab_publish(&t.lab);
        guest_sends(&header, NULL);
        CHECK_EQ(dropped(PVS_DROP_mtu_exceeded), 3 * k + 2);
        cook(&r, FINISHED, &c);
        guest_sends(NULL, NULL);
        CHECK_EQ(dropped(PVS_DROP_mtu_exceeded), 3 * k + 3);
        far_expect_nothing(&t, 0);
        t.tunnel[0].conf->room = c.len;
        lab_publish(&t.lab);
        guest_sends(NULL, NULL);
        far_expect(&t, 0, VNI, c.bytes, c.len);
    }
    tunnel_lab_close(&t);
}

/* The port's own MTU is of L3: a tag doesn't count; with both bounds the lower one does. */
TEST(tunnel_mtu_and_room)
{
    open_it();
    for (uint8_t tags = 0; tags <= 2; tags++) {
        struct recipe r = { .udp = true, .tags = tags, .payload = 1000 };
        cook(&r, FINISHED, &c);
        for (uint32_t bound = 0; bound < 4; bound++) {
            t.tunnel[0].conf->mtu = bound == 1 ? c.len - c.l3 - 1 : c.len - c.l3;
            t.tunnel[0].conf->room = bound == 2 ? c.len - 1 : bound == 3 ? 0 : c.len;
            lab_publish(&t.lab);
            guest_sends(NULL, NULL);
            if (bound == 0 || bound == 3)
                far_expect(&t, 0, VNI, c.bytes, c.len);
            far_expect_nothing(&t, 0);
        }
    }
    CHECK_EQ(dropped(PVS_DROP_mtu_exceeded), 6);
    tunnel_lab_close(&t);
}

/* With VLANs mapped to networks the tag that is taken off makes room, and one that is put on needs some. */
TEST(tunnel_room_is_that_of_the_frame_as_it_leaves)
{
    open_it();
    t.tunnel[0].conf->vlan_mode = PVS_VLAN_ACCESS;
    t.tunnel[0].conf->tag = 7;
    for (uint32_t k = 0; k < 4; k++) {
        struct recipe r = *KINDS[k], plain = r;
        r.tags = 1; /* VLAN 7 */
        cook(&r, PSEUDO, &c);
        t.tunnel[0].conf->room = c.hdr_len - 4 + MSS;
        lab_publish(&t.lab);
        struct virtio_net_hdr header = header_for(&r, &c, MSS);
        guest_sends(&header, NULL);
        expect_segments(&plain, MSS);
        t.tunnel[0].conf->room--;
        lab_publish(&t.lab);
        guest_sends(&header, NULL);
        if (r.udp)
            far_expect_nothing(&t, 0);
        else
            expect_segments(&plain, MSS - 1);
    }
    CHECK_EQ(dropped(PVS_DROP_mtu_exceeded), 2);
    tunnel_lab_close(&t);
}

/* ---- several as one ---- */

/* A burst of frames of these lengths, of one flow. */
static void
burst(const uint32_t *len, uint32_t n)
{
    static uint8_t frame[9000];
    pvd_guest *guest = t.lab.port[0].guest;

    CHECK(pvd_tx_reap(guest, 0) >= 0);
    for (uint32_t i = 0; i < n; i++) {
        lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), len[i], i);
        CHECK_EQ(pvd_tx(guest, 0, NULL, frame, len[i], NULL), 0);
    }
    CHECK(pvd_kick(guest, 1) >= 0);
    lab_poll(&t.lab, 3);
}

/* What comes is what was sent, in its order, whether the kernel hands it out one by one or in trains. How many of these. */
static uint32_t
collect(const uint32_t *len, uint32_t n)
{
    static uint8_t got[OUTER_MOST + PVS_MAX_FRAME], frame[9000];
    uint32_t trains = 0, number = 0;
    int size;

    while ((size = far_receive(&t, 0, got, sizeof got, NULL, NULL)) != -EAGAIN) {
        uint32_t cut = far_cut != 0 ? far_cut : (uint32_t)size;
        trains += far_cut != 0;
        for (uint32_t at = 0; at < (uint32_t)size; at += cut, number++) {
            uint32_t left = (uint32_t)size - at;
            CHECK(number < n);
            lab_frame(frame, LAB_BROADCAST, LAB_MAC(0), len[number], number);
            CHECK_EQ(left < cut ? left : cut, len[number] + 8);
            CHECK(memcmp(got + at + 8, frame, len[number]) == 0);
        }
    }
    CHECK_EQ(number, n);
    return trains;
}

TEST(tunnel_datagrams_of_a_burst_are_sent_together)
{
    static const uint32_t lens[] = { 1000, 1000, 1000, 400, 400, 1000, 1000, 60, 300, 300, 300, 200 };

    for (uint32_t far_gro = 0; far_gro < 2; far_gro++) {
        open_with(&(struct tunnel_lab_conf){ .far_gro = far_gro != 0 });
        burst(lens, 12);
        /* 1000 1000 1000 400 | 400 | 1000 1000 60 | 300 300 300 200: each train ends in a shorter one */
        CHECK_EQ(collect(lens, 12), far_gro != 0 ? 3 : 0);
        CHECK(atomic_load(&t.tunnel[0].tunnel->segmentation));
        CHECK_EQ(tunnel_lab_counters(&t, 0).value[PVS_C_tx_packets], 12);
        tunnel_lab_close(&t);
    }
}

TEST(tunnel_bursts_of_any_lengths_arrive_in_order)
{
    uint64_t seed = 9;
    uint32_t lens[60];

    open_with(&(struct tunnel_lab_conf){ .far_gro = true });
    for (uint32_t round = 0; round < 200; round++) {
        uint32_t kinds = 1 + lab_random(&seed, 3), n = 1 + lab_random(&seed, 60);
        for (uint32_t i = 0; i < n; i++)
            lens[i] = 60 + 700 * lab_random(&seed, kinds) + (lab_random(&seed, 4) == 0 ? lab_random(&seed, 1300) : 0);
        burst(lens, n);
        collect(lens, n);
        lab_fill(&t.lab, 1, 256);
        uint8_t got[9000];
        while (pvd_rx(t.lab.port[1].guest, 0, got, sizeof got, NULL) >= 0)
            ;
    }
    CHECK_EQ(lab_sum(tunnel_lab_counters(&t, 0).tx_drop), 0);
    tunnel_lab_close(&t);
}

/* More than one message holds: 65,507 bytes. */
TEST(tunnel_trains_end_where_a_message_does)
{
    static uint32_t lens[30];

    open_with(&(struct tunnel_lab_conf){ .far_gro = true });
    for (uint32_t i = 0; i < 30; i++)
        lens[i] = 8992; /* 9000 with its header: 7 of them */
    burst(lens, 30);
    CHECK(collect(lens, 30) >= 4);
    tunnel_lab_close(&t);
}

/* Without UDP checksums the kernel cuts nothing: each datagram goes by itself then. */
TEST(tunnel_what_the_kernel_does_not_cut_goes_one_by_one)
{
    static const uint32_t lens[] = { 500, 500, 500, 500, 100 };
    int one = 1;

    open_with(&(struct tunnel_lab_conf){ .far_gro = true });
    for (uint32_t i = 0; i < SOURCES; i++)
        CHECK_EQ(setsockopt(t.source[i], SOL_SOCKET, SO_NO_CHECK, &one, sizeof one), 0);
    for (uint32_t round = 0; round < 3; round++) {
        burst(lens, 5);
        CHECK_EQ(collect(lens, 5), 0);
    }
    CHECK_EQ(lab_sum(tunnel_lab_counters(&t, 0).tx_drop), 0);
    CHECK_EQ(tunnel_lab_counters(&t, 0).value[PVS_C_tx_packets], 15);
    tunnel_lab_close(&t);
}

/* Flows are spread over the sockets, and each stays with one. */
TEST(tunnel_a_flow_has_one_source_port)
{
    static uint8_t frame[200], got[300];
    uint16_t port[50];
    uint32_t of_first = 0;

    open_it();
    for (uint32_t round = 0; round < 3; round++)
        for (uint16_t flow = 0; flow < 50; flow++) {
            memset(frame, 0, sizeof frame);
            lab_udp(frame, LAB_MAC(9), LAB_MAC(0), flow, sizeof frame);
            frame[100] = (uint8_t)round;
            lab_send(&t.lab, 0, frame, sizeof frame);
            lab_poll(&t.lab, 2);
            CHECK_EQ(far_receive(&t, 0, got, sizeof got, NULL, NULL), sizeof frame + 8);
            if (round == 0)
                port[flow] = far_source_port;
            CHECK_EQ(far_source_port, port[flow]);
            of_first += far_source_port == port[0];
        }
    CHECK(of_first > 15 && of_first < 135);
    tunnel_lab_close(&t);
}

/* ---- trains that come ---- */

/* `n` frames behind their headers, of `len` bytes, the last one shorter. */
static uint32_t
train(uint8_t *to, uint32_t n, uint32_t len, uint32_t last)
{
    uint32_t size = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t bytes = i + 1 < n ? len : last;
        pvs_outer_write(PVS_VXLAN, VNI, to + size);
        lab_frame(to + size + 8, LAB_MAC(0), LAB_MAC(77), bytes, i);
        size += 8 + bytes;
    }
    return size;
}

TEST(tunnel_a_train_is_taken_apart)
{
    static uint8_t packets[65536], frame[2000];
    static const struct {
        uint32_t n, len, last;
    } trains[] = { { 2, 1000, 1000 }, { 7, 1000, 60 }, { 40, 1400, 1399 },
                   { 64, 100, 100 },  { 2, 60, 20 },   { 1, 60, 60 } };

    for (uint32_t no_gro = 0; no_gro < 2; no_gro++) {
        open_with(&(struct tunnel_lab_conf){ .no_gro = no_gro != 0 });
        for (uint32_t k = 0; k < 6; k++) {
            uint32_t n = trains[k].n, size = train(packets, n, trains[k].len, trains[k].last);
            lab_fill(&t.lab, 0, 256);
            lab_fill(&t.lab, 1, 256);
            far_send_bytes(&t, 0, packets, size, n > 1 ? (uint16_t)(trains[k].len + 8) : 0, 0);
            lab_poll(&t.lab, 10);
            for (uint32_t i = 0; i < n; i++) {
                uint32_t len = i + 1 < n ? trains[k].len : trains[k].last;
                lab_frame(frame, LAB_MAC(0), LAB_MAC(77), len, i);
                lab_expect(&t.lab, 0, frame, len);
                lab_expect(&t.lab, 1, frame, len);
            }
            lab_expect_nothing(&t.lab, 0);
        }
        tunnel_lab_close(&t);
    }
}

/* Segments of TCP in trains of datagrams, and one by one. */
static void
far_sends_segments(const struct recipe *r, uint32_t gso_size, bool together)
{
    static uint8_t packets[70000];
    uint32_t n = (r->payload + gso_size - 1U) / gso_size, at = 0, first = 0;

    for (uint32_t i = 0; i < n; i++) {
        struct recipe s = segment_recipe(r, gso_size, i, n);
        cook(&s, FINISHED, &wanted);
        pvs_outer_write(PVS_VXLAN, VNI, packets + at);
        memcpy(packets + at + 8, wanted.bytes, wanted.len);
        first = i == 0 ? wanted.len + 8 : first;
        if (!together)
            far_send_bytes(&t, 0, packets + at, wanted.len + 8, 0, 0);
        at += wanted.len + 8;
    }
    if (together)
        far_send_bytes(&t, 0, packets, at, (uint16_t)first, 0);
    lab_poll(&t.lab, 5);
}

/* All payload of a recipe comes to guest 0, in frames that are whole, in order; how many frames. */
static uint32_t
guest_has_payload(const struct recipe *r, uint32_t gso_size)
{
    static uint8_t got[PVS_MAX_FRAME];
    struct pvd_rx_info info;
    uint32_t frames = 0, at = 0;
    int n;

    while ((n = pvd_rx(t.lab.port[0].guest, 0, got, sizeof got, &info)) >= 0) {
        struct recipe s = *r;
        uint32_t before = wanted.hdr_len;
        s.at = r->at + at;
        s.seq = r->seq + at;
        s.payload = (uint32_t)n - before;
        s.id = (uint16_t)(r->id + at / gso_size);
        if (at + s.payload < r->payload)
            s.flags &= (uint8_t) ~(FIN | PSH);
        cook(&s, info.gso_type != 0 ? PSEUDO : FINISHED, &c);
        CHECK_EQ(c.len, n);
        CHECK(memcmp(got, c.bytes, c.len) == 0);
        if (info.gso_type != 0) {
            CHECK_EQ(info.gso_type, gso_type_of(r));
            CHECK_EQ(info.gso_size, gso_size);
        } else {
            CHECK(s.payload <= gso_size);
        }
        at += s.payload;
        frames++;
    }
    CHECK_EQ(at, r->payload);
    lab_fill(&t.lab, 0, 256);
    lab_fill(&t.lab, 1, 256);
    uint8_t discarded[PVS_MAX_FRAME];
    while (pvd_rx(t.lab.port[1].guest, 0, discarded, sizeof discarded, NULL) >= 0)
        ;
    return frames;
}

TEST(tunnel_segments_of_tcp_are_joined)
{
    for (uint32_t no_gro = 0; no_gro < 2; no_gro++) {
        open_with(&(struct tunnel_lab_conf){ .no_gro = no_gro != 0 });
        for (uint32_t k = 0; k < 2; k++)
            for (uint32_t payload = 1; payload < 20000; payload = payload * 3 + 1)
                for (uint8_t tags = 0; tags < 3; tags++) {
                    struct recipe r = *KINDS[k];
                    r.payload = tags == 2 ? (payload / 1300 + 1) * 1300 : payload; /* there may be no short last one */
                    r.tags = tags;
                    r.flags = tags == 2 ? ACK : r.flags;
                    r.tcp_options = 12;
                    far_sends_segments(&r, 1300, no_gro == 0 && r.payload > 1300);
                    uint32_t frames = guest_has_payload(&r, 1300);
                    CHECK(frames == 1 || no_gro != 0);
                }
        tunnel_lab_close(&t);
    }
}

/* Whatever of segments is lost, comes twice, late, or damaged: the guest gets the bytes that came, none of them changed. */
TEST(tunnel_segments_that_do_not_belong_together_stay_apart)
{
    static const struct {
        uint32_t offset;
        uint8_t bits;
    } harm[] = { { 14 + 1, 4 },  { 14 + 8, 1 },  { 14 + 12 + 3, 1 }, { 34 + 1, 1 },  { 34 + 7, 1 },    { 34 + 11, 1 },
                 { 34 + 13, 2 }, { 34 + 13, 4 }, { 34 + 13, 128 },   { 34 + 15, 1 }, { 14 + 6, 0x40 }, { 14 + 5, 1 } };
    static uint8_t packet[2][2000], got[PVS_MAX_FRAME];
    struct recipe r = TCP4;

    open_it();
    r.payload = 2000;
    r.flags = ACK;
    for (uint32_t which = 0; which < 2; which++)
        for (uint32_t k = 0; k < sizeof harm / sizeof harm[0] + 2; k++) {
            uint32_t len[2];
            for (uint32_t i = 0; i < 2; i++) {
                struct recipe s = segment_recipe(&r, 1000, i, 2);
                cook(&s, FINISHED, &c);
                pvs_outer_write(PVS_VXLAN, VNI, packet[i]);
                memcpy(packet[i] + 8, c.bytes, c.len);
                len[i] = c.len;
            }
            uint8_t *frame = packet[which] + 8;
            bool fragile = k < 12 && (harm[k].offset == 14 + 6 || harm[k].offset == 14 + 5);
            if (k == 12)
                frame[54 + 500] ^= 1; /* its checksum is wrong */
            else if (k == 13)
                frame[14 + 10] ^= 1; /* or its IP header's */
            else
                frame[harm[k].offset] ^= harm[k].bits;
            if (k < 12) { /* it is right, but different */
                put16(frame + 24, 0);
                put16(frame + 24, 0xffff & ~simple_sum(0, frame + 14, 20));
                c.l3 = 14;
                memcpy(c.bytes, frame, len[which]);
                put16(c.bytes + 34 + 16, 0);
                uint32_t sum = pseudo_sum(&r, &c);
                put16(frame + 34 + 16, 0xffff & ~simple_sum(sum, c.bytes + 34, len[which] - 34));
            }
            for (uint32_t i = 0; i < 2; i++)
                far_send_bytes(&t, 0, packet[i], len[i] + 8, 0, 0);
            lab_poll(&t.lab, 3);
            if (fragile && k == 11) /* with DF the identification doesn't matter */
                CHECK_EQ(pvd_rx(t.lab.port[0].guest, 0, got, sizeof got, NULL), 2054);
            for (uint32_t i = 0; i < 2 && !(fragile && k == 11); i++) {
                CHECK_EQ(pvd_rx(t.lab.port[0].guest, 0, got, sizeof got, NULL), len[i]);
                CHECK(memcmp(got, packet[i] + 8, len[i]) == 0);
            }
            lab_expect_nothing(&t.lab, 0);
            lab_fill(&t.lab, 0, 256);
            lab_fill(&t.lab, 1, 256);
            while (pvd_rx(t.lab.port[1].guest, 0, got, sizeof got, NULL) >= 0)
                ;
        }
    tunnel_lab_close(&t);
}

/* A peer whose checksums were never finished, since its veth promised to. */
TEST(tunnel_unfinished_checksums_are_finished)
{
    static uint8_t packet[2000];

    open_it();
    for (uint32_t k = 0; k < 4; k++)
        for (uint32_t payload = 1; payload < 1400; payload += 97) {
            struct recipe r = *KINDS[k];
            r.payload = payload;
            cook(&r, PSEUDO, &c);
            pvs_outer_write(PVS_VXLAN, VNI, packet);
            memcpy(packet + 8, c.bytes, c.len);
            far_send_bytes(&t, 0, packet, c.len + 8, 0, 0);
            lab_poll(&t.lab, 3);
            struct pvd_rx_info info;
            static uint8_t got[PVS_MAX_FRAME];
            CHECK_EQ(pvd_rx(t.lab.port[0].guest, 0, got, sizeof got, &info), c.len);
            CHECK_EQ(info.flags, VIRTIO_NET_HDR_F_NEEDS_CSUM);
            CHECK_EQ(info.csum_start, c.l4);
            CHECK_EQ(info.csum_offset, c.csum_offset);
            CHECK(memcmp(got, c.bytes, c.len) == 0);
            CHECK_EQ(pvd_rx(t.lab.port[1].guest, 0, got, sizeof got, NULL), c.len);
            lab_fill(&t.lab, 0, 256);
            lab_fill(&t.lab, 1, 256);
        }
    tunnel_lab_close(&t);
}

/* ---- TOS ---- */

static uint8_t
sent_tos(int32_t tos, bool v6, uint8_t inner)
{
    static uint8_t got[OUTER_MOST + 2000];
    struct pvs_segment_conf segment = { .vni = VNI, .vid = PVS_UNMAPPED };
    struct pvs_tunnel_conf conf = tunnel_lab_tunnel(&t, 1, &segment);
    struct recipe r = { .udp = true, .v6 = v6, .payload = 100 };
    uint8_t outer = 0xee;

    conf.tos = tos;
    tunnel_lab_remove(&t);
    tunnel_lab_add_conf(&t, &conf);
    lab_publish(&t.lab);
    tunnel_lab_flood(&t, 0, 0, 1);
    cook(&r, FINISHED, &c);
    uint8_t *ip = c.bytes + c.l3;
    if (v6) {
        ip[0] = (uint8_t)(0x60 | inner >> 4);
        ip[1] = (uint8_t)(inner << 4);
    } else {
        ip[1] = inner;
        put16(ip + 10, 0);
        put16(ip + 10, 0xffff & ~simple_sum(0, ip, 20));
    }
    guest_sends(NULL, NULL);
    CHECK_EQ(far_receive(&t, 0, got, sizeof got, &outer, NULL), c.len + 8);
    CHECK(memcmp(got + 8, c.bytes, c.len) == 0);
    return outer;
}

TEST(tunnel_the_outer_tos_is_as_the_conf_says)
{
    open_it();
    for (uint32_t v6 = 0; v6 < 2; v6++)
        for (uint32_t ecn = 0; ecn < 4; ecn++) {
            CHECK_EQ(sent_tos(-1, v6 != 0, (uint8_t)(0xb8 | ecn)), 0xb8 | ecn);
            CHECK_EQ(sent_tos(0, v6 != 0, (uint8_t)(0xb8 | ecn)), ecn);
            CHECK_EQ(sent_tos(0x28, v6 != 0, (uint8_t)(0xb8 | ecn)), 0x28 | ecn);
        }
    tunnel_lab_close(&t);
}

/* Datagrams of different TOS can't be one message. */
TEST(tunnel_a_burst_of_different_tos)
{
    static uint8_t got[OUTER_MOST + 2000];
    pvd_guest *guest;
    struct recipe r = { .udp = true, .payload = 100 };
    struct pvs_segment_conf segment = { .vni = VNI, .vid = PVS_UNMAPPED };

    open_with(&(struct tunnel_lab_conf){ .far_gro = true });
    struct pvs_tunnel_conf conf = tunnel_lab_tunnel(&t, 1, &segment);
    conf.tos = -1;
    tunnel_lab_remove(&t);
    tunnel_lab_add_conf(&t, &conf);
    lab_publish(&t.lab);
    tunnel_lab_flood(&t, 0, 0, 1);
    guest = t.lab.port[0].guest;
    for (uint32_t i = 0; i < 20; i++) {
        cook(&r, FINISHED, &c);
        c.bytes[15] = (uint8_t)(i / 3 * 4);
        put16(c.bytes + 24, 0);
        put16(c.bytes + 24, 0xffff & ~simple_sum(0, c.bytes + 14, 20));
        CHECK_EQ(pvd_tx(guest, 0, NULL, c.bytes, c.len, NULL), 0);
    }
    CHECK(pvd_kick(guest, 1) >= 0);
    lab_poll(&t.lab, 3);
    uint32_t number = 0;
    while (number < 20) {
        uint8_t tos = 0xee;
        int n = far_receive(&t, 0, got, sizeof got, &tos, NULL);
        CHECK(n > 0);
        uint32_t cut = far_cut != 0 ? far_cut : (uint32_t)n;
        for (uint32_t at = 0; at < (uint32_t)n; at += cut, number++) {
            CHECK_EQ(got[at + 8 + 15], number / 3 * 4);
            CHECK_EQ(tos, number / 3 * 4);
        }
    }
    far_expect_nothing(&t, 0);
    tunnel_lab_close(&t);
}

TEST(tunnel_congestion_on_the_way_is_told_to_the_guest)
{
    static uint8_t packet[200], got[200];
    struct recipe r = { .udp = true, .payload = 50 };

    open_it();
    for (int inner = 0; inner < 4; inner++)
        for (int outer = 0; outer < 4; outer++) {
            static const uint8_t arrives[4][4] = { { 0, 0, 0, 9 }, { 1, 1, 1, 3 }, { 2, 1, 2, 3 }, { 3, 3, 3, 3 } };
            cook(&r, FINISHED, &c);
            c.bytes[15] = (uint8_t)(0x40 | inner);
            put16(c.bytes + 24, 0);
            put16(c.bytes + 24, 0xffff & ~simple_sum(0, c.bytes + 14, 20));
            pvs_outer_write(PVS_VXLAN, VNI, packet);
            memcpy(packet + 8, c.bytes, c.len);
            far_send_bytes(&t, 0, packet, c.len + 8, 0, outer);
            lab_poll(&t.lab, 3);
            int n = pvd_rx(t.lab.port[0].guest, 0, got, sizeof got, NULL);
            if (arrives[inner][outer] == 9) {
                CHECK_EQ(n, -EAGAIN);
                continue;
            }
            CHECK_EQ(n, c.len);
            CHECK_EQ(got[15], 0x40 | arrives[inner][outer]);
            CHECK_EQ(simple_sum(0, got + 14, 20), 0xffff);
        }
    CHECK_EQ(tunnel_lab_endpoint(&t).rx_drop[PVS_DROP_tunnel_ecn], 1);
    tunnel_lab_close(&t);
}
