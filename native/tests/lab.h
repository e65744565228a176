/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lab.h - a switch with driver guests on it, for tests: no sockets, no Python.
 *
 * How it works: lab_open makes a switch, one bridge and n ports, each with a driver guest whose memory is mapped and whose
 * rings run. Without threads every step is taken by lab_poll, with a clock that moves LAB_STEP_NS a round; with
 * `threads` the workers run by themselves and waiting has a deadline. Anything that fails ends the test.
 * In a TEST_EACH_RING the guests' rings have the format at hand, and what looks into a ring goes by the functions here.
 */
#ifndef PVS_LAB_H
#define PVS_LAB_H

#include "counters.h"
#include "driver/pvs_driver.h"
#include "pvs_api.h"
#include "test.h"
#include "virtqueue.h"

enum {
    LAB_PORTS = 8,
    LAB_UPLINKS = 3,
    LAB_OTHERS = 4,
    LAB_QUEUES = 4,
    LAB_STEP_NS = 100000,
    LAB_DEADLINE_MS = 20000,
    LAB_COMMANDS = 2 * PVS_COMMANDS
};

struct lab_conf {
    uint32_t n_ports;
    uint32_t workers, polling, poll_us;
    bool threads;
    bool no_kick; /* rings without a kick */
    uint32_t fdb_limit, aging_s;
    struct pvs_bridge_conf bridge; /* flood_unknown is set by lab_conf_default */
    struct pvd_conf guest;
    uint32_t pairs[LAB_PORTS]; /* of each port's guest; 0: as `guest` says */
};

struct lab_port {
    pvs_port *port;
    pvd_guest *guest;
    pvs_memory *memory;
    struct pvs_port_conf conf;
    int32_t worker; /* who is to poll it; -1 = spread */
    bool running[2 * PVS_MAX_PAIRS];
    uint32_t base[2 * PVS_MAX_PAIRS]; /* where each ring goes on when it is started: what its stop told */
};

/* See uplink_lab.h. */
struct lab_uplink {
    pvs_port *port;
    struct pvs_port_conf conf;
    enum pvs_uplink_kind kind;
    bool uso;
    int32_t worker;                       /* who is to fetch from it; -1 = spread */
    int fd[LAB_QUEUES], wire[LAB_QUEUES]; /* what the switch has, and what the test has of the other side */
    bool open[LAB_QUEUES], running[LAB_QUEUES];
};

struct lab {
    struct lab_conf conf;
    pvs_switch *sw;
    pvs_fdb *fdb;
    uint64_t now_ns;
    struct lab_port port[LAB_PORTS];
    uint32_t n_uplinks;
    struct lab_uplink uplink[LAB_UPLINKS]; /* on the same bridge; lab_close removes them */
    uint32_t n_others;
    struct pvs_port_conf other[LAB_OTHERS]; /* ports of who uses the lab, published with the others */
    struct {
        uint64_t seq;
        int64_t result;
    } done[LAB_COMMANDS]; /* finished commands, by number */
};

struct lab_conf lab_conf_default(uint32_t n_ports);
void lab_open(struct lab *lab, const struct lab_conf *conf);
void lab_close(struct lab *lab);

void lab_poll(struct lab *lab, int rounds);
/* Wait for a command to finish; its result. Of several under way, the order of asking doesn't matter. */
int64_t lab_wait(struct lab *lab, int64_t seq);
void lab_publish(struct lab *lab);

struct pvs_ring_conf lab_ring_conf(const struct lab *lab, uint32_t port, uint32_t ring);
void lab_ring_start(struct lab *lab, uint32_t port, uint32_t ring);
int64_t lab_ring_stop(struct lab *lab, uint32_t port, uint32_t ring);
/* A stop that the test asked for itself has this result. */
void lab_ring_stopped(struct lab *lab, uint32_t port, uint32_t ring, int64_t base);
/* The guest's driver starts anew; its rings must be stopped. */
void lab_reset(struct lab *lab, uint32_t port);
/* Map the guest's memory and start all of its rings; stop them and unmap. */
void lab_attach(struct lab *lab, uint32_t port);
void lab_detach(struct lab *lab, uint32_t port);
pvs_memory *lab_map(pvs_port *port, const pvd_guest *guest);

/* A frame of `len` bytes whose payload depends on `salt`. MAC addresses with the first byte in bits 40-47. */
#define LAB_MAC(i)    (0x020000000000ULL + (uint64_t)(i))
#define LAB_BROADCAST 0xffffffffffffULL
void lab_frame(uint8_t *frame, uint64_t dst, uint64_t src, uint32_t len, uint32_t salt);
/* Its first 42 bytes become those of UDP over IPv4, of a flow of the two that looks the same from both sides. */
void lab_udp(uint8_t *frame, uint64_t dst, uint64_t src, uint16_t flow, uint32_t len);
/* Put it into the port's transmit ring (and kick). */
void lab_send(struct lab *lab, uint32_t port, const uint8_t *frame, uint32_t len);
/* The port's guest must have received exactly this frame next; or nothing at all. */
void lab_expect(struct lab *lab, uint32_t port, const uint8_t *frame, uint32_t len);
void lab_expect_nothing(struct lab *lab, uint32_t port);
void lab_fill(struct lab *lab, uint32_t port, uint32_t n);
/* One broadcast frame from each port, so that the FDB knows LAB_MAC(port) everywhere; received copies are discarded. */
void lab_learn_all(struct lab *lab);

/* ---- rings of either format ---- */

/* Feature bits of the format at hand. */
uint64_t lab_ring_features(void);
bool lab_packed(const struct lab *lab);
/* What GET_VRING_BASE answers for a ring that was begun anew and has given `n` chains of one descriptor back. */
uint32_t lab_base(const struct lab *lab, uint32_t n);
/* The same as the guest's memory shows it now, while nobody changes it. */
uint32_t lab_used(const struct lab *lab, uint32_t port, uint32_t ring);
/* Where the next chain must begin for a kick, as lab_base; -1: nowhere. Needs EVENT_IDX. */
int64_t lab_kick_event(const struct lab *lab, uint32_t port, uint32_t ring);

/* A piece of a chain; the flags are PVD_DESC_WRITE and PVD_DESC_INDIRECT. */
struct lab_piece {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
};
/* Make `n` pieces available as one chain, whatever they are; split: in descriptors from `id` on. Doesn't kick. */
void lab_post(const struct lab *lab, uint32_t port, uint32_t ring, uint16_t id, const struct lab_piece *piece,
              uint32_t n);
/* A chain of one piece, which is nowhere: who looks at it finds the ring broken by BAD_ADDRESS. */
void lab_post_bad(const struct lab *lab, uint32_t port, uint32_t ring);
/* The piece in descriptor `i` of the ring. */
struct lab_piece lab_piece(const struct lab *lab, uint32_t port, uint32_t ring, uint16_t i);

struct lab_counters {
    uint64_t value[PVS_COUNTER_COUNT], rx_drop[PVS_DROP_COUNT], tx_drop[PVS_DROP_COUNT];
};
struct lab_counters lab_counters(const struct lab *lab, uint32_t port);
struct lab_counters lab_counters_of(const pvs_port *port);
struct pvd_counters lab_driver(const struct lab *lab, uint32_t port, uint32_t ring);
uint64_t lab_sum(const uint64_t *drops);
/* Each received frame is in one bin of sizes. */
void lab_check_sizes(const struct lab_counters *counters);
/* Every frame taken off a ring is received or malformed; what was received left, or was dropped for a reason. */
void lab_check_port(const struct lab *lab, uint32_t port); /* what of it can be seen at one port */
void lab_check_sums(const struct lab *lab);
/* For each direction and reason, the records of a port's drops stand for as many as its counter says; unless some are written over. */
void lab_check_records(const struct lab *lab, const pvs_port *port);

/* A generator of test data; never 0. */
uint32_t lab_random(uint64_t *state, uint32_t below);
uint64_t lab_clock_ns(void);

#endif
