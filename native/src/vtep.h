/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vtep.h - the VTEPs that the switch knows: address <-> number.
 *
 * How it works: a fixed table, chained into hash buckets by number. Who looks for an address takes no lock: an entry is complete before
 * it can be found, and its address stays as it is until control frees it, a grace period after it was unlinked. Adding
 * and unlinking hold one spin lock; workers only TRY it: a VTEP that can't be added now is added with its next packet. Those that
 * workers add are at most LEARNED_MAX, so that packets with invented source addresses leave room for what control wants.
 *
 * Who may call: see at each function.
 */
#ifndef PVS_VTEP_H
#define PVS_VTEP_H

#include <stdatomic.h>

#include "pvs_api.h"

enum { PVS_ADDRESS = 16 }; /* bytes; IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2) */

struct pvs_vteps;

/* -ENOMEM. `seed` keeps senders from aiming at one bucket. */
int pvs_vteps_create(uint64_t seed, struct pvs_vteps **out);
void pvs_vteps_destroy(struct pvs_vteps *vteps);

/* A worker's: the number of an address, 0 if it isn't known; and that a packet has come from it. */
uint16_t pvs_vtep_seen(struct pvs_vteps *vteps, const uint8_t *address, uint32_t now_s);
/* A worker's: add an address that isn't known. 0: not now, or there is no room. */
uint16_t pvs_vtep_learn(struct pvs_vteps *vteps, const uint8_t *address, uint32_t now_s);
/* Can its address be found? A worker asks so of what waits, when control may have unlinked some. */
bool pvs_vtep_is_linked(const struct pvs_vteps *vteps, uint16_t number);
/* The address of a number that tables or an FDB name, of PVS_ADDRESS bytes. */
const uint8_t *pvs_vtep_address(const struct pvs_vteps *vteps, uint16_t number);

/* Control's; see pvs_api.h. */
int pvs_vteps_add(struct pvs_vteps *vteps, const uint8_t *address, uint32_t *number);
int pvs_vteps_info(const struct pvs_vteps *vteps, uint32_t number, uint32_t now_s, struct pvs_vtep_info *out);
int pvs_vteps_unlink(struct pvs_vteps *vteps, uint32_t number);
int pvs_vteps_free(struct pvs_vteps *vteps, uint32_t number);

#endif
