/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_tunnel_too_big.c - who sends what doesn't fit a tunnel gets ICMP, byte by byte as RFC 792, RFC 1191 and RFC 4443 say, and who must not
 * doesn't. Step by step.
 */
#include <errno.h>
#include <string.h>

#include "offload_lab.h"
#include "tunnel_lab.h"

enum { VNI = 9, ROOM = 1014, HOST_CSUM = 0, HOST_USO = 56 };

static struct tunnel_lab t;
static struct cooked c;

static void
open_with(bool too_big)
{
    struct lab_conf lab = lab_conf_default(2);
    struct tunnel_lab_conf conf = { 0 };
    struct pvs_segment_conf segment = { .vni = VNI, .vid = PVS_UNMAPPED };
    uint8_t mac[6];

    lab.guest.tx_buf_size = 10000;
    lab.guest.features |= 1ULL << HOST_CSUM | 1ULL << HOST_USO;
    CHECK(tunnel_lab_open(&t, &lab, &conf));
    struct pvs_tunnel_conf tunnel = tunnel_lab_tunnel(&t, 1, &segment);
    tunnel.too_big = too_big;
    tunnel_lab_add_conf(&t, &tunnel);
    t.tunnel[0].conf->room = ROOM;
    lab_publish(&t.lab);
    tunnel_lab_flood(&t, 0, 0, 1);
    for (uint32_t vid = 0; vid < 8; vid += 7) { /* whom the recipes send to is behind the tunnel */
        pvs_mac_store(mac, LAB_MAC(2));
        CHECK_EQ(pvs_fdb_set_static(t.lab.fdb, mac, (uint16_t)vid, pvs_port_ref(t.tunnel[0].port), t.far[0].number), 0);
    }
    for (uint32_t i = 0; i < 2; i++)
        lab_fill(&t.lab, i, 64);
}

static void
guest_sends(const struct virtio_net_hdr *header)
{
    pvd_guest *guest = t.lab.port[0].guest;

    CHECK(pvd_tx_reap(guest, 0) >= 0);
    CHECK_EQ(pvd_tx(guest, 0, header, c.bytes, c.len, NULL), 0);
    CHECK(pvd_kick(guest, 1) >= 0);
    lab_poll(&t.lab, 3);
}

static void
right_header(void)
{
    uint8_t *ip = c.bytes + c.l3;

    put16(ip + 10, 0);
    put16(ip + 10, 0xffff & ~simple_sum(0, ip, (ip[0] & 15) * 4U));
}

static void
nobody_is_told(void)
{
    uint64_t before = tunnel_lab_counters(&t, 0).tx_drop[PVS_DROP_mtu_exceeded];

    guest_sends(NULL);
    lab_expect_nothing(&t.lab, 0);
    far_expect_nothing(&t, 0);
    CHECK_EQ(tunnel_lab_counters(&t, 0).tx_drop[PVS_DROP_mtu_exceeded], before + 1);
}

/* The guest gets the answer to what it sent, and nothing else. */
static void
expect_answer(bool v6)
{
    static uint8_t got[2000];
    uint32_t ip_len = v6 ? 40 : 20, most = (v6 ? 1280 : 576) - ip_len - 8,
             quoted = c.len - c.l3 < most ? c.len - c.l3 : most;
    const uint8_t *ip = got + c.l3, *icmp = ip + ip_len, *sent = c.bytes + c.l3;

    CHECK_EQ(pvd_rx(t.lab.port[0].guest, 0, got, sizeof got, NULL), c.l3 + ip_len + 8 + quoted);
    CHECK(memcmp(got, c.bytes + 6, 6) == 0 && memcmp(got + 6, c.bytes, 6) == 0);
    CHECK(memcmp(got + 12, c.bytes + 12, c.l3 - 12) == 0); /* with its tags */
    CHECK(memcmp(icmp + 8, sent, quoted) == 0);
    uint32_t mtu = ROOM - c.l3;
    if (v6) {
        uint8_t rest[4] = { 0, 58 };
        put16(rest + 2, 8 + quoted);
        CHECK_EQ(ip[0], 0x60);
        CHECK_EQ(ip[4] << 8 | ip[5], 8 + quoted);
        CHECK_EQ(ip[6], 58);
        CHECK(memcmp(ip + 8, sent + 24, 16) == 0 && memcmp(ip + 24, sent + 8, 16) == 0);
        CHECK_EQ(icmp[0], 2);
        CHECK_EQ(icmp[1], 0);
        CHECK_EQ((uint32_t)icmp[4] << 24 | (uint32_t)icmp[5] << 16 | (uint32_t)icmp[6] << 8 | icmp[7], mtu);
        CHECK_EQ(simple_sum(simple_sum(simple_sum(0, ip + 8, 32), rest, 4), icmp, 8 + quoted), 0xffff);
    } else {
        CHECK_EQ(ip[0], 0x45);
        CHECK_EQ(ip[2] << 8 | ip[3], 20 + 8 + quoted);
        CHECK_EQ(ip[9], 1);
        CHECK_EQ(simple_sum(0, ip, 20), 0xffff);
        CHECK(memcmp(ip + 12, sent + 16, 4) == 0 && memcmp(ip + 16, sent + 12, 4) == 0);
        CHECK_EQ(icmp[0], 3);
        CHECK_EQ(icmp[1], 4);
        CHECK_EQ(icmp[4] << 8 | icmp[5], 0);
        CHECK_EQ(icmp[6] << 8 | icmp[7], mtu);
        CHECK_EQ(simple_sum(0, icmp, 8 + quoted), 0xffff);
    }
    lab_expect_nothing(&t.lab, 0);
    lab_expect_nothing(&t.lab, 1);
    far_expect_nothing(&t, 0);
    lab_fill(&t.lab, 0, 64);
}

TEST(too_big_is_told_to_its_sender)
{
    open_with(true);
    for (uint32_t k = 0; k < 4; k++)
        for (uint8_t tags = 0; tags < 2; tags++) {
            struct recipe r = { .v6 = k % 2 != 0, .udp = k < 2, .tags = tags, .payload = 1000 };
            cook(&r, FINISHED, &c);
            guest_sends(NULL);
            expect_answer(r.v6);
        }
    struct recipe fits = { .udp = true, .payload = ROOM - 42 };
    cook(&fits, FINISHED, &c);
    guest_sends(NULL);
    far_expect(&t, 0, VNI, c.bytes, c.len);
    fits.payload++;
    cook(&fits, FINISHED, &c);
    guest_sends(NULL);
    expect_answer(false);
    struct recipe uso = { .udp = true, .payload = 4000 }; /* datagrams of which each is too big */
    cook(&uso, PSEUDO, &c);
    struct virtio_net_hdr header = header_for(&uso, &c, 1300);
    guest_sends(&header);
    expect_answer(false);
    struct recipe options = { .udp = true, .payload = 1000, .ip_options = 40 };
    cook(&options, FINISHED, &c);
    guest_sends(NULL);
    expect_answer(false);
    tunnel_lab_close(&t);
}

TEST(too_big_is_not_told_to_who_has_not_asked_or_must_not_know)
{
    const struct recipe v4 = { .udp = true, .payload = 1000 }, v6 = { .v6 = true, .udp = true, .payload = 1000 };
    static const uint8_t sources[][4] = { { 0, 0, 0, 0 }, { 127, 0, 0, 1 }, { 224, 0, 0, 1 }, { 255, 255, 255, 255 } };

    open_with(true);
    cook(&v4, FINISHED, &c); /* it may be fragmented: then others must do it */
    c.bytes[20] = 0;
    right_header();
    nobody_is_told();
    cook(&v4, FINISHED, &c); /* a fragment that isn't the first */
    c.bytes[21] = 1;
    right_header();
    nobody_is_told();
    for (uint32_t i = 0; i < 4; i++) { /* sources and destinations that are nobody's */
        cook(&v4, FINISHED, &c);
        memcpy(c.bytes + 26, sources[i], 4);
        right_header();
        nobody_is_told();
        cook(&v4, FINISHED, &c);
        memcpy(c.bytes + 30, sources[i], 4);
        right_header();
        nobody_is_told();
    }
    for (uint32_t type = 0; type < 256; type++) { /* an error of ICMP */
        cook(&v4, FINISHED, &c);
        c.bytes[23] = 1;
        c.bytes[34] = (uint8_t)type;
        right_header();
        if (type == 3 || type == 4 || type == 5 || type == 11 || type == 12 || type == 19 || type == 255)
            nobody_is_told();
    }
    cook(&v6, FINISHED, &c);
    memset(c.bytes + 22, 0, 16);
    nobody_is_told();
    cook(&v6, FINISHED, &c);
    c.bytes[22] = 0xff;
    nobody_is_told();
    cook(&v6, FINISHED, &c);
    c.bytes[38] = 0xff;
    nobody_is_told();
    for (uint8_t type = 0; type < 128; type += 31) {
        cook(&v6, FINISHED, &c);
        c.bytes[20] = 58;
        c.bytes[54] = type;
        nobody_is_told();
    }
    cook(&v4, FINISHED, &c);
    put16(c.bytes + 12, 0x88b5); /* not IP */
    nobody_is_told();
    cook(&v4, FINISHED, &c);
    c.bytes[6] |= 1; /* from a group */
    nobody_is_told();
    tunnel_lab_close(&t);
}

/* A flood may reach its receiver by another port. */
TEST(too_big_is_not_told_of_floods)
{
    struct recipe r = { .udp = true, .payload = 1000 };

    open_with(true);
    for (uint32_t i = 0; i < 2; i++) {
        cook(&r, FINISHED, &c);
        if (i == 0)
            memset(c.bytes, 0xff, 6);
        else
            c.bytes[5] = 0x77;
        guest_sends(NULL);
        lab_expect(&t.lab, 1, c.bytes, c.len);
        lab_expect_nothing(&t.lab, 0);
    }
    CHECK_EQ(tunnel_lab_counters(&t, 0).tx_drop[PVS_DROP_mtu_exceeded], 2);
    tunnel_lab_close(&t);
}

TEST(too_big_is_not_told_when_that_is_off)
{
    struct recipe r = { .udp = true, .payload = 1000 };

    open_with(false);
    cook(&r, FINISHED, &c);
    nobody_is_told();
    tunnel_lab_close(&t);
}

TEST(too_big_is_told_a_thousand_times_a_second)
{
    struct recipe r = { .udp = true, .payload = 1000 };
    static uint8_t got[2000];
    uint32_t told = 0;

    open_with(true);
    cook(&r, FINISHED, &c);
    uint64_t second = t.lab.now_ns / 1000000000;
    for (uint32_t i = 0; i < 2000; i++) {
        guest_sends(NULL);
        while (pvd_rx(t.lab.port[0].guest, 0, got, sizeof got, NULL) >= 0)
            told++;
        lab_fill(&t.lab, 0, 64);
    }
    CHECK(told >= 1000 && told <= 1000 * (t.lab.now_ns / 1000000000 - second + 1));
    tunnel_lab_close(&t);
}
