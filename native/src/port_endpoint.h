/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port_endpoint.h - the socket that packets of tunnels come by, and how frames come out of them.
 *
 * How it works: an endpoint is an uplink's queue (port_uplink.h) of kind PVS_ENDPOINT. Its messages are received whole, into the queue's
 * own buffers. With UDP_GRO one message holds several datagrams of one size; each is looked at in its turn: its header names a
 * network, the demux that network's port, and the frame behind it is checked and parsed as any other. Its head is copied, the rest
 * stays in the message until the burst has been forwarded. What belongs to nobody is counted at the endpoint and goes no further.
 *
 * Who may call: the worker that serves the queue.
 */
#ifndef PVS_PORT_ENDPOINT_H
#define PVS_PORT_ENDPOINT_H

#include "port_uplink.h"
#include "tunnel.h"
#include "vtep.h"

/* A packet goes nowhere; the frame in it, as far as it was found, or NULL. */
typedef void pvs_endpoint_dropped(void *context, const struct pvs_uplink *u, const struct pvs_frame *frame,
                                  enum pvs_drop why);

/*
 * The next burst of frames, in the place of the last one, which is done with: how many, in u->in->frame. `demux` may be NULL: there is no
 * tunnel. VTEPs that were learned are in u->in->fresh.
 */
uint32_t pvs_endpoint_fetch(struct pvs_uplink *u, const struct pvs_demux *demux, struct pvs_vteps *vteps,
                            uint32_t now_s, pvs_endpoint_dropped *dropped, void *context);

/* VTEPs have been unlinked: what it has fetched, and waits, names them no more. */
void pvs_endpoint_forget(struct pvs_uplink *u, const struct pvs_vteps *vteps);

/* How many of these frames, from the first on, came by the same port, of the same network, from the same VTEP. */
uint32_t pvs_endpoint_run(const struct pvs_frame *frame, uint32_t n);

#endif
