/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_tunnel.c - libFuzzer target: arbitrary bytes as packets of tunnels, through sockets of the loopback to an endpoint, and on to two guests
 * (one takes no offloads, one takes all) and out by another tunnel.
 *
 * Input: 1 byte of settings (the kind of the tunnel; whether the kernel may join datagrams), then records: the length of the bytes that
 * follow, into how long datagrams they are cut (0: they aren't; 2 bytes each), the TOS of the way, the bytes. Of GRE a packet begins with an IP header, as
 * a raw socket gives it. A reader that looks at one field after the other says which frames must arrive: these must come to the
 * first guest and to the far VTEP byte by byte, and what isn't among them must be counted for the right reason.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "counters.h"
#include "driver/pvs_driver.h"
#include "encap.h"
#include "pvs_api.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103 /* linux/udp.h */
#define UDP_GRO     104
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { KINDS = 3, PLAIN = 0, TAKES_ALL, GUESTS, RECORDS = 8, NUM = 128, LONGEST = 20000, FRAMES = 64 };
enum { VNI = 100, OUT_VNI = 300, CUTS = 64, USUAL = 1514, IN = 0, KEYLESS, OUT, TUNNELS };

struct record {
    uint8_t len[2], cut[2], tos;
};

static struct {
    pvs_switch *sw;
    pvs_fdb *fdb;
    pvs_port *endpoint, *port[TUNNELS], *guest_port[GUESTS];
    pvs_tunnel *tunnel[TUNNELS];
    pvd_guest *guest[GUESTS];
    uint16_t vtep;
    int fd, source, far;
    uint16_t udp_port;
    uint64_t now_ns;
} f[KINDS];

/* What the slow reader expects of an input. */
static struct {
    uint32_t n_frames;
    struct {
        uint8_t bytes[LONGEST];
        uint32_t len;
        bool to_far;
    } frame[FRAMES];
    uint64_t malformed_packets, unknown_vni, ecn, malformed_frames;
    bool cut_anew; /* frames that aren't compared: how they are cut isn't told here */
} wanted;

static void
require(bool truth)
{
    if (!truth)
        abort();
}

/* ---- the slow reader ---- */

static uint32_t
word(const uint8_t *p, uint32_t at)
{
    return p[at] * 256U + p[at + 1];
}

static void
set_word(uint8_t *p, uint32_t at, uint32_t value)
{
    p[at] = (uint8_t)(value / 256);
    p[at + 1] = (uint8_t)value;
}

/* RFC 1071, from `sum` on. */
static uint32_t
add_up(uint32_t sum, const uint8_t *p, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++) {
        sum += i % 2 == 0 ? p[i] * 256U : p[i];
        if (sum > 0xffff)
            sum -= 0xffff;
    }
    return sum;
}

/* The header's length, 0: it is none that is taken. *vni is PVS_NO_KEY without one. */
static uint32_t
read_outer(int kind, const uint8_t *p, uint32_t len, uint64_t *vni)
{
    if (kind == PVS_VXLAN) {
        if (len < 8 || !(p[0] & 0x08))
            return 0;
        *vni = p[4] * 65536U + p[5] * 256U + p[6];
        return 8;
    }
    if (kind == PVS_GENEVE) {
        if (len < 8 || p[0] / 64 != 0 || p[1] >= 0x40 || p[2] != 0x65 || p[3] != 0x58)
            return 0;
        *vni = p[4] * 65536U + p[5] * 256U + p[6];
        uint32_t header = 8 + p[0] % 64 * 4U;
        return header <= len ? header : 0;
    }
    if (len < 4 || p[2] != 0x65 || p[3] != 0x58 || (p[0] & 0x4c) != 0 || (p[1] & 0x07) != 0)
        return 0;
    uint32_t header = 4;
    if ((p[0] & 0x80) != 0) {
        header += 4;
        if (len < header || add_up(0, p, len) != 0xffff)
            return 0;
    }
    *vni = PVS_NO_KEY;
    if ((p[0] & 0x20) != 0) {
        header += 4;
        if (len < header)
            return 0;
        *vni = word(p, header - 4) * 65536ULL + word(p, header - 2);
    }
    if ((p[0] & 0x10) != 0)
        header += 4;
    return header <= len ? header : 0;
}

/* Where L3 begins, and of what it is; 0: the frame is cut short. */
static uint32_t
read_l2(const uint8_t *p, uint32_t len, uint32_t *type)
{
    uint32_t l3 = 14;

    if (len < 14)
        return 0;
    for (int tags = 0; tags < 2 && (word(p, l3 - 2) == 0x8100 || word(p, l3 - 2) == 0x88a8); tags++) {
        l3 += 4;
        if (len < l3)
            return 0;
    }
    *type = word(p, l3 - 2);
    return l3;
}

/* RFC 6040, figure 4. False: it is dropped. */
static bool
arrive(uint8_t *p, uint32_t len, uint32_t l3, uint32_t type, uint8_t tos)
{
    static const char table[4][5] = { "000D", "1113", "2123", "3333" };
    bool v4 = type == 0x0800 && len >= l3 + 20, v6 = type == 0x86dd && len >= l3 + 40;

    if (!v4 && !v6)
        return true;
    uint32_t inner = v4 ? p[l3 + 1] % 4 : p[l3 + 1] / 16 % 4;
    char out = table[inner][tos % 4];
    if (out == 'D')
        return false;
    uint32_t to = (uint32_t)(out - '0');
    if (to == inner)
        return true;
    if (v6) {
        p[l3 + 1] = (uint8_t)((p[l3 + 1] & 0xcf) | to * 16);
        return true;
    }
    /* ~HC' = ~HC + ~m + m' */
    uint32_t sum = add_up(0xffff - word(p, l3 + 10), (const uint8_t[]){ (uint8_t)~p[l3], (uint8_t)~p[l3 + 1] }, 2);
    p[l3 + 1] = (uint8_t)(p[l3 + 1] - inner + to);
    sum = add_up(sum, p + l3, 2);
    set_word(p, l3 + 10, 0xffff - sum);
    return true;
}

/* Where TCP or UDP begins in what is plain enough for anybody to touch it; 0: nowhere. */
static uint32_t
plain_l4(const uint8_t *p, uint32_t len, uint32_t l3, uint32_t type, uint32_t *protocol)
{
    if (type == 0x0800 && len >= l3 + 20 && p[l3] == 0x45 && (word(p, l3 + 6) & 0xbfff) == 0 &&
        word(p, l3 + 2) == len - l3) {
        *protocol = p[l3 + 9];
        return l3 + 20;
    }
    if (type == 0x86dd && len >= l3 + 40 && p[l3] / 16 == 6 && word(p, l3 + 4) == len - l3 - 40) {
        *protocol = p[l3 + 6];
        return l3 + 40;
    }
    return 0;
}

/* A checksum that was left undone is finished on the way to who takes none. */
static void
finish(uint8_t *p, uint32_t len, uint32_t l3, uint32_t type)
{
    uint32_t protocol = 0, l4 = plain_l4(p, len, l3, type, &protocol);
    uint32_t field = protocol == 6 ? 16 : 6, least = protocol == 6 ? 20 : 8;

    if (l4 == 0 || (protocol != 6 && protocol != 17) || l4 + least > len)
        return;
    const uint8_t rest[] = { 0, (uint8_t)protocol, (uint8_t)((len - l4) / 256), (uint8_t)(len - l4) };
    uint32_t pseudo = type == 0x0800 ? add_up(0, p + l3 + 12, 8) : add_up(0, p + l3 + 8, 32);
    pseudo = add_up(pseudo, rest, 4);
    if (word(p, l4 + field) != pseudo)
        return;
    if (protocol == 6 && len > USUAL)
        wanted.cut_anew = true;
    uint32_t sum = 0xffff - add_up(0, p + l4, len - l4);
    set_word(p, l4 + field, sum == 0 && protocol == 17 ? 0xffff : sum);
}

static void
read_packet(int kind, const uint8_t *p, uint32_t len, uint8_t tos)
{
    uint64_t vni = 0;
    uint32_t type = 0;

    if (kind == PVS_GRE && len != 0) {
        uint32_t ip = p[0] % 16 * 4U;
        ip = ip < len ? ip : len;
        p += ip;
        len -= ip;
    }
    uint32_t header = read_outer(kind, p, len, &vni);
    if (header == 0) {
        wanted.malformed_packets++;
        return;
    }
    if (vni != VNI && vni != OUT_VNI && (vni != PVS_NO_KEY || kind != PVS_GRE)) {
        wanted.unknown_vni++;
        return;
    }
    p += header;
    len -= header;
    uint32_t l3 = read_l2(p, len, &type);
    if (l3 == 0) {
        wanted.malformed_frames++;
        return;
    }
    require(wanted.n_frames < FRAMES);
    uint8_t *bytes = wanted.frame[wanted.n_frames].bytes;
    memcpy(bytes, p, len);
    if (!arrive(bytes, len, l3, type, tos)) {
        wanted.ecn++;
        return;
    }
    finish(bytes, len, l3, type);
    if (memcmp(p, "\x01\x80\xc2\x00\x00\x01", 6) == 0)
        return; /* PAUSE goes nowhere (IEEE 802.1D) */
    wanted.frame[wanted.n_frames].len = len;
    wanted.frame[wanted.n_frames++].to_far = vni != OUT_VNI;
}

/* ---- life ---- */

static int
poll_once(int k)
{
    f[k].now_ns += 100000;
    int work = pvs_poll_once(f[k].sw, 0, f[k].now_ns);
    require(work >= 0);
    return work;
}

static void
wait_for(int k, int64_t seq)
{
    require(seq > 0);
    for (int i = 0; i < 10; i++) {
        uint64_t done;
        int64_t result;
        poll_once(k);
        while (pvs_reap(f[k].sw, &done, &result, 1) == 1) {
            require(result >= 0);
            if (done == (uint64_t)seq)
                return;
        }
    }
    abort();
}

static void
option(int fd, int level, int name, int value)
{
    require(setsockopt(fd, level, name, &value, sizeof value) == 0);
}

/* A socket of 127.0.0.`host`. */
static int
open_socket(uint8_t host, uint16_t port)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = port, .sin_addr.s_addr = htonl(0x7f000000U | host) };
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    require(fd >= 0);
    option(fd, SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20);
    option(fd, SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20);
    option(fd, IPPROTO_IP, IP_RECVTOS, 1);
    require(bind(fd, (struct sockaddr *)&at, sizeof at) == 0);
    return fd;
}

static void
open_sockets(int k)
{
    struct sockaddr_in at;
    socklen_t len = sizeof at;

    f[k].fd = open_socket(1, 0);
    require(getsockname(f[k].fd, (struct sockaddr *)&at, &len) == 0);
    f[k].udp_port = at.sin_port;
    f[k].source = open_socket(1, 0);
    f[k].far = open_socket(2, f[k].udp_port);
    struct pvs_uplink_conf conf = { .kind = PVS_ENDPOINT, .fd = f[k].fd, .tunnel = (uint32_t)k };
    require(pvs_uplink_create(f[k].sw, 1, &f[k].endpoint) == 0);
    wait_for(k, pvs_uplink_start(f[k].endpoint, 0, &conf));
}

static void
open_guest(int k, int g)
{
    struct pvd_region r;
    pvs_region *region;
    pvs_memory *memory, *old;
    struct pvd_conf gc;

    pvd_conf_default(&gc);
    gc.queue_size = NUM;
    gc.rx_buf_size = 4096;
    gc.features = 1ULL << PVD_F_MRG_RXBUF | 1ULL << PVD_F_EVENT_IDX | 1ULL << PVD_F_VERSION_1;
    if (g == TAKES_ALL)
        gc.features |= 1ULL << PVD_F_GUEST_CSUM | 1ULL << PVD_F_GUEST_TSO4 | 1ULL << PVD_F_GUEST_TSO6;
    require(pvs_port_create(f[k].sw, 1, &f[k].guest_port[g]) == 0);
    require(pvd_guest_create(&gc, &f[k].guest[g]) == 0);
    require(pvd_region_get(f[k].guest[g], 0, &r) == 0);
    require(pvs_region_map(f[k].guest_port[g], r.fd, r.gpa, r.size, r.uva, r.mmap_offset, &region) == 0);
    require(pvs_memory_create(&region, 1, &memory) == 0);
    pvs_region_unref(region);
    require(pvs_port_set_memory(f[k].guest_port[g], memory, &old) == 0);
    for (uint32_t ring = 0; ring < 2; ring++) {
        struct pvd_vring v;
        require(pvd_vring_get(f[k].guest[g], ring, &v) == 0);
        struct pvs_ring_conf conf = { .desc_uva = v.desc_uva,
                                      .avail_uva = v.avail_uva,
                                      .used_uva = v.used_uva,
                                      .features = gc.features,
                                      .num = NUM,
                                      .enabled = true,
                                      .kick_fd = -1,
                                      .call_fd = v.call_fd };
        wait_for(k, pvs_ring_start(f[k].guest_port[g], ring, &conf));
    }
}

static void
open_tunnel(int k, int i)
{
    static const uint32_t vni[TUNNELS] = { [IN] = VNI, [OUT] = OUT_VNI };
    struct pvs_segment_conf segment = { .vni = vni[i], .vid = PVS_UNMAPPED };
    struct pvs_tunnel_conf conf = { .kind = (uint32_t)k,
                                    .endpoint = f[k].endpoint,
                                    .no_key = i == KEYLESS,
                                    .segmentation = true,
                                    .dst_port = ntohs(f[k].udp_port),
                                    .n_sockets = 1,
                                    .sockets = &f[k].source,
                                    .n_segments = 1,
                                    .segments = &segment };
    const uint16_t *flood = i == OUT ? &f[k].vtep : NULL, *others = i == OUT ? NULL : &f[k].vtep;

    require(pvs_tunnel_port_create(f[k].sw, &f[k].port[i]) == 0);
    require(pvs_tunnel_create(f[k].sw, &conf, &f[k].tunnel[i]) == 0);
    wait_for(k, pvs_tunnel_set_remotes(f[k].tunnel[i], 0, flood, flood != NULL, others, others != NULL));
}

static void
open_kind(int k)
{
    static const uint8_t far[16] = { [10] = 0xff, [11] = 0xff, [12] = 127, [15] = 2 };
    struct pvs_switch_conf sc = { .n_workers = 1, .cpus = { -1 } };
    struct pvs_bridge_conf bridge = { .flood_unknown = true, .forward_bpdu = true };
    struct pvs_port_conf ports[GUESTS + TUNNELS];
    uint32_t n = 0, number;

    if (f[k].sw != NULL)
        return;
    f[k].now_ns = 1000000000;
    require(pvs_switch_create(&sc, &f[k].sw) == 0);
    require(pvs_fdb_create(64, 300, 1, &f[k].fdb) == 0);
    require(pvs_vtep_add(f[k].sw, far, &number) == 0);
    f[k].vtep = (uint16_t)number;
    open_sockets(k);
    for (int g = 0; g < GUESTS; g++) {
        open_guest(k, g);
        ports[n++] = (struct pvs_port_conf){ .port = f[k].guest_port[g], .enabled = true };
    }
    for (int i = 0; i < TUNNELS; i++) {
        if (i == KEYLESS && k != PVS_GRE)
            continue;
        open_tunnel(k, i);
        ports[n++] = (struct pvs_port_conf){ .port = f[k].port[i], .enabled = true, .tunnel = f[k].tunnel[i] };
    }
    bridge.fdb = f[k].fdb;
    wait_for(k, pvs_publish(f[k].sw, ports, n, &bridge, 1));
}

/* ---- one input ---- */

/* False: the kernel would not send it. */
static bool
send_packets(int k, const uint8_t *bytes, uint32_t len, uint16_t cut, int tos)
{
    _Alignas(16) uint8_t control[64] = { 0 };
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = f[k].udp_port, .sin_addr.s_addr = htonl(0x7f000001) };
    struct iovec part = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = len };
    struct msghdr m = { .msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &part, .msg_iovlen = 1 };
    struct cmsghdr *c = (struct cmsghdr *)(void *)control;

    m.msg_control = control;
    *c = (struct cmsghdr){ .cmsg_level = IPPROTO_IP, .cmsg_type = IP_TOS, .cmsg_len = CMSG_LEN(sizeof tos) };
    memcpy(CMSG_DATA(c), &tos, sizeof tos);
    m.msg_controllen = CMSG_SPACE(sizeof tos);
    if (cut != 0) {
        c = (struct cmsghdr *)(void *)(control + m.msg_controllen);
        *c = (struct cmsghdr){ .cmsg_level = IPPROTO_UDP, .cmsg_type = UDP_SEGMENT, .cmsg_len = CMSG_LEN(sizeof cut) };
        memcpy(CMSG_DATA(c), &cut, sizeof cut);
        m.msg_controllen += CMSG_SPACE(sizeof cut);
    }
    return sendmsg(f[k].far, &m, 0) == (ssize_t)len;
}

/* Sums of which one is 0 and one 0xffff are the same. */
static void
make_alike(uint8_t *got, const uint8_t *frame, uint32_t at, uint32_t len)
{
    if (at + 2 <= len && (word(got, at) == 0 || word(got, at) == 0xffff) &&
        (word(frame, at) == 0 || word(frame, at) == 0xffff))
        memcpy(got + at, frame + at, 2);
}

/* Segments that were joined and cut again are what they were, but for an identification that doesn't matter (RFC 6864, 4.1). */
static bool
is_same(uint8_t *got, const uint8_t *frame, uint32_t len)
{
    uint32_t type = 0, protocol = 0, l3 = read_l2(frame, len, &type);
    uint32_t l4 = plain_l4(frame, len, l3, type, &protocol);

    if (type == 0x0800)
        make_alike(got, frame, l3 + 10, len);
    if (memcmp(got, frame, len) == 0)
        return true;
    if (l4 == 0 || protocol != 6)
        return false;
    if (type == 0x0800) {
        bool right = add_up(0, frame + l3, 20) == 0xffff;
        if (right != (add_up(0, got + l3, 20) == 0xffff))
            return false;
        if (right && (word(frame, l3 + 6) & 0x4000) != 0) {
            memcpy(got + l3 + 4, frame + l3 + 4, 2);
            memcpy(got + l3 + 10, frame + l3 + 10, 2);
        }
    }
    make_alike(got, frame, l4 + 16, len);
    return memcmp(got, frame, len) == 0;
}

static void
check_guests(int k)
{
    static uint8_t got[PVS_MAX_FRAME];
    uint32_t number = 0;
    int n;

    while ((n = pvd_rx(f[k].guest[PLAIN], 0, got, sizeof got, NULL)) >= 0) {
        if (wanted.cut_anew)
            continue;
        require(number < wanted.n_frames && wanted.frame[number].len == (uint32_t)n);
        require(is_same(got, wanted.frame[number++].bytes, (uint32_t)n));
    }
    require(n == -EAGAIN && (wanted.cut_anew || number == wanted.n_frames));
    while ((n = pvd_rx(f[k].guest[TAKES_ALL], 0, got, sizeof got, NULL)) >= 0)
        ;
    require(n == -EAGAIN);
    for (int g = 0; g < GUESTS; g++) {
        struct pvd_counters c;
        require(pvd_counters_get(f[k].guest[g], 0, &c) == 0 && c.errors == 0);
        require(pvs_port_broken(f[k].guest_port[g]) == 0);
    }
}

static void
check_far(int k)
{
    static uint8_t got[PVS_MAX_FRAME + 64];
    uint8_t header[8];
    uint32_t number = 0, header_len = pvs_outer_write((enum pvs_tunnel_kind)k, OUT_VNI, header);
    ssize_t n;

    while ((n = recv(f[k].far, got, sizeof got, 0)) >= 0) {
        if (wanted.cut_anew || k == PVS_GRE) /* GRE has no port, and a socket of UDP sends to none */
            continue;
        while (number < wanted.n_frames && !wanted.frame[number].to_far)
            number++;
        require(number < wanted.n_frames && wanted.frame[number].len + header_len == (uint32_t)n);
        require(memcmp(got, header, header_len) == 0);
        require(is_same(got + header_len, wanted.frame[number++].bytes, (uint32_t)n - header_len));
    }
    while (number < wanted.n_frames && !wanted.frame[number].to_far)
        number++;
    require(wanted.cut_anew || k == PVS_GRE || number == wanted.n_frames);
}

static uint64_t
rx_dropped(const pvs_port *port, enum pvs_drop why)
{
    uint64_t value[PVS_COUNTER_COUNT], rx_drop[PVS_DROP_COUNT], tx_drop[PVS_DROP_COUNT];

    if (port == NULL)
        return 0;
    pvs_port_counters(port, value, rx_drop, tx_drop);
    return rx_drop[why];
}

static uint64_t
malformed_frames(int k)
{
    uint64_t n = 0;

    for (int i = 0; i < TUNNELS; i++)
        n += rx_dropped(f[k].port[i], PVS_DROP_malformed);
    return n;
}

/* Every packet of a message, to the switch and to the slow reader. */
static void
one_message(int k, const uint8_t *bytes, uint32_t len, uint32_t cut, uint8_t tos)
{
    const pvs_port *e = f[k].endpoint;
    uint64_t malformed = rx_dropped(e, PVS_DROP_tunnel_malformed), unknown = rx_dropped(e, PVS_DROP_unknown_vni);
    uint64_t ecn = rx_dropped(e, PVS_DROP_tunnel_ecn), frames = malformed_frames(k);

    wanted.n_frames = 0;
    wanted.malformed_packets = wanted.unknown_vni = wanted.ecn = wanted.malformed_frames = 0;
    wanted.cut_anew = false;
    if (cut >= len || (len + cut - 1) / (cut == 0 ? 1 : cut) > CUTS)
        cut = 0;
    if (!send_packets(k, bytes, len, (uint16_t)cut, tos & 3))
        return;
    for (uint32_t at = 0; at < len || at == 0; at += cut == 0 ? len + (len == 0) : cut) {
        uint32_t left = len - at;
        read_packet(k, bytes + at, cut != 0 && cut < left ? cut : left, tos & 3);
    }
    for (int g = 0; g < GUESTS; g++)
        require(pvd_rx_fill(f[k].guest[g], 0, NUM, NULL) >= 0);
    while (poll_once(k) != 0)
        ;
    poll_once(k);
    check_guests(k);
    check_far(k);
    require(rx_dropped(e, PVS_DROP_tunnel_malformed) - malformed == wanted.malformed_packets);
    require(rx_dropped(e, PVS_DROP_unknown_vni) - unknown == wanted.unknown_vni);
    require(rx_dropped(e, PVS_DROP_tunnel_ecn) - ecn == wanted.ecn);
    require(malformed_frames(k) - frames == wanted.malformed_frames);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    int k = data[0] % KINDS;
    open_kind(k);
    option(f[k].fd, IPPROTO_UDP, UDP_GRO, data[0] / KINDS % 2);
    data++;
    size--;
    for (int i = 0; i < RECORDS && size > sizeof(struct record); i++) {
        struct record r;
        memcpy(&r, data, sizeof r);
        data += sizeof r;
        size -= sizeof r;
        uint32_t len = word(r.len, 0), n = len < size ? len : (uint32_t)size;
        if (n > LONGEST)
            n = LONGEST;
        uint8_t *exact = malloc(n + (n == 0));
        memcpy(exact, data, n);
        one_message(k, exact, n, word(r.cut, 0), r.tos);
        free(exact);
        data += n;
        size -= n;
    }
    return 0;
}
