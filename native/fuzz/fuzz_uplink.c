/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_uplink.c - libFuzzer target: arbitrary bytes as virtio-net headers and frames of an uplink, through a socket in the
 * place of the kernel's descriptor, to a guest and to a second uplink; or of that guest, to both uplinks.
 *
 * Input: 2 bytes of settings (who sends; the kind of the uplinks; what guest and kernel take), then records: the length of
 * the bytes that follow and how many times 8 zeros come behind those (2 bytes each), a virtio-net header of 10 bytes, the
 * frame. Nothing may crash; each record is counted once; the guest finds its rings in order; and what leaves by an uplink
 * would be let in by one, with nothing asked for but what the header may ask.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "counters.h"
#include "driver/pvs_driver.h"
#include "offload.h"
#include "parse.h"
#include "pvs_api.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { A, B, UPLINKS, HEADER = 10, NUM = 64, RECORDS = 16, PAD = 8, LONGEST = PVS_MAX_FRAME + 64 };
enum { FROM_GUEST = 1, IS_PACKET = 2, USO = 4, EVERYTHING = 63, HOST_CSUM = 0, HOST_TSO4 = 11, HOST_USO = 56 };

struct record {
    uint16_t len, pad;
    uint8_t header[HEADER];
};

static struct {
    pvs_switch *sw;
    pvs_fdb *fdb;
    pvs_port *up[UPLINKS], *port;
    pvd_guest *guest;
    int fd[UPLINKS], wire[UPLINKS];
    uint64_t now_ns;
} f;

static uint8_t bytes[HEADER + LONGEST];

static void
require(bool truth)
{
    if (!truth)
        abort();
}

static int
poll_once(void)
{
    f.now_ns += 100000;
    int work = pvs_poll_once(f.sw, 0, f.now_ns);
    require(work >= 0);
    return work;
}

static void
wait_for(int64_t seq)
{
    require(seq > 0);
    for (int i = 0; i < 10; i++) {
        uint64_t done;
        int64_t result;
        poll_once();
        while (pvs_reap(f.sw, &done, &result, 1) == 1) {
            require(result >= 0);
            if (done == (uint64_t)seq)
                return;
        }
    }
    abort();
}

/* ---- life ---- */

static void
map_guest(void)
{
    struct pvd_region r;
    pvs_region *region;
    pvs_memory *memory, *old;

    require(pvd_region_get(f.guest, 0, &r) == 0);
    require(pvs_region_map(f.port, r.fd, r.gpa, r.size, r.uva, r.mmap_offset, &region) == 0);
    require(pvs_memory_create(&region, 1, &memory) == 0);
    pvs_region_unref(region);
    require(pvs_port_set_memory(f.port, memory, &old) == 0);
}

static void
open_once(void)
{
    struct pvs_switch_conf sc = { .n_workers = 1, .cpus = { -1 } };
    struct pvs_bridge_conf bridge = { .flood_unknown = true };
    struct pvs_port_conf ports[UPLINKS + 1];
    struct pvd_conf gc;

    if (f.sw != NULL)
        return;
    pvd_conf_default(&gc);
    gc.queue_size = NUM;
    gc.rx_buf_size = 4096;
    gc.tx_buf_size = sizeof bytes + 2;
    require(pvs_switch_create(&sc, &f.sw) == 0);
    require(pvs_fdb_create(64, 300, 1, &f.fdb) == 0);
    for (int u = 0; u < UPLINKS; u++) {
        require(pvs_uplink_create(f.sw, 1, &f.up[u]) == 0);
        ports[u] = (struct pvs_port_conf){ .port = f.up[u], .enabled = true };
    }
    require(pvs_port_create(f.sw, 1, &f.port) == 0);
    require(pvd_guest_create(&gc, &f.guest) == 0);
    ports[UPLINKS] = (struct pvs_port_conf){ .port = f.port, .enabled = true };
    map_guest();
    bridge.fdb = f.fdb;
    f.now_ns = 1000000000;
    wait_for(pvs_publish(f.sw, ports, UPLINKS + 1, &bridge, 1));
}

static void
guest_start(uint8_t taken)
{
    static const uint8_t bit[] = { PVD_F_GUEST_CSUM, PVD_F_GUEST_TSO4, PVD_F_GUEST_TSO6,
                                   PVD_F_GUEST_ECN,  PVD_F_GUEST_USO4, PVD_F_GUEST_USO6 };
    uint64_t features = 1ULL << PVD_F_MRG_RXBUF | 1ULL << PVD_F_EVENT_IDX | 1ULL << PVD_F_VERSION_1 |
                        1ULL << PVD_F_ANY_LAYOUT | 1ULL << HOST_CSUM | 7ULL << HOST_TSO4 | 1ULL << HOST_USO;

    for (uint32_t i = 0; i < sizeof bit; i++)
        features |= (uint64_t)(taken >> i & 1) << bit[i];
    require(pvd_guest_reset(f.guest, features) == 0);
    for (uint32_t ring = 0; ring < 2; ring++) {
        struct pvd_vring v;
        require(pvd_vring_get(f.guest, ring, &v) == 0);
        struct pvs_ring_conf conf = { .desc_uva = v.desc_uva,
                                      .avail_uva = v.avail_uva,
                                      .used_uva = v.used_uva,
                                      .features = features,
                                      .num = NUM,
                                      .enabled = true,
                                      .kick_fd = -1,
                                      .call_fd = v.call_fd };
        wait_for(pvs_ring_start(f.port, ring, &conf));
    }
    require(pvd_rx_fill(f.guest, 0, NUM, NULL) == NUM);
}

static void
uplinks_start(uint8_t settings)
{
    bool packet = (settings & IS_PACKET) != 0;

    for (int u = 0; u < UPLINKS; u++) {
        int pair[2];
        require(socketpair(AF_UNIX, (packet ? SOCK_DGRAM : SOCK_SEQPACKET) | SOCK_NONBLOCK, 0, pair) == 0);
        f.fd[u] = pair[0];
        f.wire[u] = pair[1];
        struct pvs_uplink_conf conf = {
            .kind = packet ? PVS_PACKET : PVS_TAP, .fd = f.fd[u], .uso = (settings & USO) != 0, .worker = -1
        };
        wait_for(pvs_uplink_start(f.up[u], 0, &conf));
    }
}

static void
stop_all(void)
{
    for (uint32_t ring = 0; ring < 2; ring++)
        wait_for(pvs_ring_stop(f.port, ring));
    for (int u = 0; u < UPLINKS; u++) {
        wait_for(pvs_uplink_stop(f.up[u], 0));
        close(f.fd[u]);
        close(f.wire[u]);
    }
    pvs_fdb_flush(f.fdb, &(struct pvs_fdb_filter){ 0 });
}

/* ---- what comes out ---- */

/* A frame that an uplink has sent: one that it would accept. */
static void
check_sent(size_t size)
{
    struct virtio_net_hdr header = { 0 };
    struct pvs_frame frame = { 0 };
    struct pvs_seg tail;

    require(size >= HEADER + PVS_ETH_HLEN && size <= HEADER + PVS_MAX_FRAME);
    memcpy(&header, bytes, HEADER);
    pvs_frame_from_bytes(&frame, &tail, bytes + HEADER, (uint32_t)size - HEADER);
    require(pvs_parse(&frame) && pvs_offload_check(&frame, &header, EVERYTHING));
    const struct pvs_request *r = &frame.request;
    require(header.flags == (r->checksum ? VIRTIO_NET_HDR_F_NEEDS_CSUM : 0) && header.gso_type == r->gso_type &&
            header.gso_size == r->gso_size && header.hdr_len == r->hdr_len && header.csum_start == r->csum_start &&
            header.csum_offset == r->csum_offset);
}

static void
drain(int u)
{
    ssize_t n;
    while ((n = recv(f.wire[u], bytes, sizeof bytes, 0)) >= 0)
        check_sent((size_t)n);
    require(errno == EAGAIN);
}

static void
settle(void)
{
    static uint8_t got[PVS_MAX_FRAME];
    int n;

    for (int i = 0; i < 200 && poll_once() != 0; i++)
        for (int u = 0; u < UPLINKS; u++)
            drain(u);
    while ((n = pvd_rx(f.guest, 0, got, sizeof got, NULL)) >= 0)
        ;
    require(n == -EAGAIN); /* never EPROTO */
    require(pvs_port_broken(f.port) == 0);
}

/* Frames that a port has taken from its sender, malformed ones too. */
static uint64_t
taken_by(const pvs_port *port)
{
    uint64_t value[PVS_COUNTER_COUNT], rx_drop[PVS_DROP_COUNT], tx_drop[PVS_DROP_COUNT];
    pvs_port_counters(port, value, rx_drop, tx_drop);
    return value[PVS_C_rx_packets] + rx_drop[PVS_DROP_malformed];
}

/* ---- what goes in ---- */

static bool
send_record(const struct record *r, const uint8_t *data, size_t n, bool from_guest)
{
    size_t pad = (size_t)r->pad * PAD, len = n + pad < LONGEST ? n + pad : LONGEST;
    uint8_t header[HEADER + 2] = { 0 };

    memcpy(header, r->header, HEADER);
    memset(bytes, 0, HEADER + len);
    memcpy(bytes, header, HEADER);
    memcpy(bytes + HEADER, data, n < len ? n : len);
    if (from_guest)
        return pvd_tx(f.guest, 0, header, bytes + HEADER, (uint32_t)len, NULL) == 0;
    return send(f.wire[A], bytes, HEADER + len, 0) >= 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    uint8_t settings = data[0];
    bool from_guest = (settings & FROM_GUEST) != 0;
    uint64_t sent = 0;

    open_once();
    guest_start(data[1]);
    uplinks_start(settings);
    pvs_port *source = from_guest ? f.port : f.up[A];
    uint64_t before = taken_by(source);
    data += 2;
    size -= 2;
    for (int i = 0; i < RECORDS && size > sizeof(struct record); i++) {
        struct record r;
        memcpy(&r, data, sizeof r);
        data += sizeof r;
        size -= sizeof r;
        size_t n = r.len < size ? r.len : size;
        sent += send_record(&r, data, n, from_guest);
        data += n;
        size -= n;
    }
    settle();
    require(taken_by(source) - before == sent);
    require(!from_guest || pvd_tx_reap(f.guest, 0) == (int)sent);
    stop_all();
    return 0;
}
