/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hostile_lab.h - three ports of which one breaks the rules: what must hold for it and for the others.
 *
 * How it works: ports 0 and 1 are good, BAD is the one that a test makes break a rule. After that it is latched broken
 * with the reason and served no more until its front end comes back; the good ones notice nothing.
 */
#ifndef PVS_HOSTILE_LAB_H
#define PVS_HOSTILE_LAB_H

#include "lab.h"

enum { BAD = 2, HOSTILE_NUM = 64 };

extern struct lab lab;

void hostile_open(void);
/* The good ports still exchange frames. */
void hostile_good_ports_go_on(void);
/* The port is latched with this reason, said so once, and is left alone from now on. */
void hostile_expect_broken(enum pvs_broken why);
/* A front end that comes back with a reset guest is served again. Ends the lab. */
void hostile_heal_and_close(void);
/* The bad port's rings as its driver begins: without a buffer in them. */
void hostile_empty_rings(void);
/* Kick for one of the bad port's rings, whatever the switch asked for, and let it look. */
void hostile_kick(uint32_t ring);
/* A frame for the bad port, by unicast or to all: it is dropped there, and the port is broken. */
void hostile_send_at_it(bool flood, enum pvs_broken why);
/* Memory of the bad port's guest to build chains in. */
uint64_t hostile_scratch(void);

#endif
