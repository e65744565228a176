/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uplink_lab.h - uplinks beside the guests of a lab.
 *
 * How it works: a socket pair stands in for the kernel's descriptor: records of SOCK_SEQPACKET for a tap (one readv or
 * writev is one frame), datagrams for a packet socket. The test holds the other end, the wire, and puts a virtio-net
 * header in front of each frame, as the kernel would. Descriptors of a real interface may be given in their place.
 */
#ifndef PVS_UPLINK_LAB_H
#define PVS_UPLINK_LAB_H

#include "lab.h"
#include "virtio_abi.h"

/* The address of the host behind uplink `i`. */
#define LAB_FAR(i) LAB_MAC(16 + (i))

/* Two guests that ask for `features` as well, and uplink 0; the guests' worker is the last, the uplink's the first. */
void lab_uplink_open(struct lab *lab, uint32_t workers, enum pvs_uplink_kind kind, uint64_t features);
/* The end of a lab with uplinks, however it was opened: all counters must agree. */
void lab_uplink_close(struct lab *lab);
/* A published uplink on socket pairs, its queues running; its number in lab->uplink. */
uint32_t lab_uplink_add(struct lab *lab, enum pvs_uplink_kind kind, uint32_t queues);
/* The same on a real descriptor; `wire` is where the test sees the other side. Both are closed by the lab. */
uint32_t lab_uplink_add_real(struct lab *lab, enum pvs_uplink_kind kind, int fd, int wire);
void lab_uplink_start(struct lab *lab, uint32_t uplink, uint32_t queue);
void lab_uplink_stop(struct lab *lab, uint32_t uplink, uint32_t queue);
void lab_uplink_stop_all(struct lab *lab, uint32_t uplink);
/* It has been stopped and is out of the tables. */
void lab_uplink_destroy(struct lab *lab, uint32_t uplink);
/* The kernel takes little more than `bytes` before it is full. */
void lab_uplink_room(const struct lab *lab, uint32_t uplink, int bytes);
/* The FDB knows every guest and every host behind an uplink, for good. */
void lab_know_all(struct lab *lab);

/* Put a frame on the wire; without a header: nothing is asked for. */
void lab_wire_send(const struct lab *lab, uint32_t uplink, const struct virtio_net_hdr *header, const uint8_t *frame,
                   uint32_t len);
/* Take the next frame off the wire: its length, or -EAGAIN. */
int lab_wire_receive(const struct lab *lab, uint32_t uplink, struct virtio_net_hdr *header, uint8_t *frame,
                     uint32_t cap);
/* The next frame on the wire is exactly this one, with nothing left to do; or there is none. */
void lab_wire_expect(const struct lab *lab, uint32_t uplink, const uint8_t *frame, uint32_t len);
void lab_wire_expect_nothing(const struct lab *lab, uint32_t uplink);

/* Numbered frames from a guest to the host behind uplink 0, and from there to a guest. Expecting does not poll. */
enum { LAB_NUMBERED = 500 };
void lab_send_up(struct lab *lab, uint32_t from, uint32_t number);
void lab_expect_up(const struct lab *lab, uint32_t from, uint32_t number);
void lab_send_down(const struct lab *lab, uint32_t to, uint32_t number);
void lab_expect_down(struct lab *lab, uint32_t to, uint32_t number);

/* How many of its frames the switch has taken from a guest since this was asked last. */
int lab_taken_from(struct lab *lab, uint32_t port);
/* What has gone to uplink 0, and what has not. */
uint64_t lab_sent_up(const struct lab *lab);
uint64_t lab_dropped_up(const struct lab *lab, enum pvs_drop why);
struct lab_counters lab_uplink_counters(const struct lab *lab, uint32_t uplink);
struct pvs_uplink_status lab_uplink_status(const struct lab *lab, uint32_t uplink, uint32_t queue);
/* Its queues carried what the port's counters say. */
void lab_check_uplink(const struct lab *lab, uint32_t uplink);

#endif
