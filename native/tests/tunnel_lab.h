/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tunnel_lab.h - tunnels beside the guests of a lab, and the far VTEPs, on real sockets of 127.0.0.0/8.
 *
 * How it works: the endpoint is bound to 127.0.0.1, as are the sockets that tunnels send by; far VTEP `i` is a socket of the test's, bound to
 * 127.0.0.(2 + i) and the same port. What a tunnel must send is built by the test byte by byte. With `wide` far VTEP 0 receives for all
 * addresses that nobody else is bound to, and says which one it was.
 */
#ifndef PVS_TUNNEL_LAB_H
#define PVS_TUNNEL_LAB_H

#include "encap.h"
#include "lab.h"

enum { FARS = 3, SOURCES = 2, TUNNELS = LAB_OTHERS, OUTER_MOST = 64 };

struct tunnel_lab_conf {
    enum pvs_tunnel_kind kind;
    bool no_gro;  /* the endpoint gets each datagram by itself */
    bool far_gro; /* the far VTEPs don't */
    bool wide;
};

struct tunnel_lab {
    struct lab lab;
    struct tunnel_lab_conf conf;
    pvs_port *endpoint;
    bool running;
    int32_t worker; /* who is to fetch from the endpoint */
    int fd, source[SOURCES];
    uint16_t port;
    struct {
        int fd;
        uint16_t number; /* of its VTEP */
    } far[FARS];
    struct {
        pvs_port *port;
        pvs_tunnel *tunnel;
        struct pvs_port_conf *conf; /* for lab_publish */
    } tunnel[TUNNELS];
};

/* False: sockets of this kind aren't ours to open; the test is skipped. */
bool tunnel_lab_open(struct tunnel_lab *t, const struct lab_conf *lab, const struct tunnel_lab_conf *conf);
void tunnel_lab_close(struct tunnel_lab *t);
void tunnel_lab_start(struct tunnel_lab *t);
void tunnel_lab_stop(struct tunnel_lab *t);

/* A conf for tunnel_lab_add: learns, floods to nobody yet. */
struct pvs_tunnel_conf tunnel_lab_tunnel(const struct tunnel_lab *t, uint32_t n_segments,
                                         const struct pvs_segment_conf *segments);
/* Make a tunnel, of one network that carries all, or as the conf says; lab_publish is the caller's. Its number. */
uint32_t tunnel_lab_add(struct tunnel_lab *t, uint32_t vni);
uint32_t tunnel_lab_add_conf(struct tunnel_lab *t, const struct pvs_tunnel_conf *conf);
/* Take the last one out of the tables, and destroy it. */
void tunnel_lab_remove(struct tunnel_lab *t);
/* It floods to the first `n` far VTEPs. */
void tunnel_lab_flood(struct tunnel_lab *t, uint32_t tunnel, uint32_t segment, uint32_t n);

/* The address of far VTEP `i`, or of host number `i` - FARS behind the wide one. */
const uint8_t *tunnel_lab_address(uint32_t i);
uint16_t tunnel_lab_vtep(struct tunnel_lab *t, uint32_t i);

/* Send from a far VTEP: a frame in a network; anything; several of `cut` bytes in one message, with this TOS. */
void far_send(struct tunnel_lab *t, uint32_t far, uint64_t vni, const uint8_t *frame, uint32_t len);
void far_send_bytes(struct tunnel_lab *t, uint32_t far, const uint8_t *packet, uint32_t len, uint16_t cut, int tos);
/* What came to a far VTEP next: its length, or -EAGAIN. `host`: the last byte but one, and the last one, of who it was for. */
int far_receive(struct tunnel_lab *t, uint32_t far, uint8_t *packet, uint32_t cap, uint8_t *tos, uint16_t *host);
/* It is exactly this frame, in this network; or there is none. */
void far_expect(struct tunnel_lab *t, uint32_t far, uint64_t vni, const uint8_t *frame, uint32_t len);
void far_expect_nothing(struct tunnel_lab *t, uint32_t far);
/* The source port of what came last. */
extern uint16_t far_source_port;
/* Into how long pieces UDP_GRO would have it cut; 0: it came by itself. */
extern uint32_t far_cut;

struct lab_counters tunnel_lab_counters(const struct tunnel_lab *t, uint32_t tunnel);
struct lab_counters tunnel_lab_endpoint(const struct tunnel_lab *t);

#endif
