/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tunnel_ends.h - a VXLAN through the loopback between two bridges of one switch, for tools/frames.c.
 */
#ifndef PVS_TUNNEL_ENDS_H
#define PVS_TUNNEL_ENDS_H

#include "tests/lab.h"

enum { TUNNEL_ENDS = 2 };

/* Make both ends: ports[i] becomes the conf of a tunnel on bridge i, to be published. */
void tunnel_ends_open(struct lab *lab, struct pvs_port_conf *ports);
/* They are out of the tables. */
void tunnel_ends_close(struct lab *lab);

#endif
