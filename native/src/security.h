/* SPDX-License-Identifier: Apache-2.0 */
/*
 * security.h - which senders a port may have: MAC addresses, and IP addresses in IPv4, IPv6, ARP and neighbour discovery.
 *
 * How it works: a frame of a port with rules is looked at before anything is learned from it. With a list of MAC addresses the
 * source must be one of them. With a list of networks only IPv4, IPv6 and ARP pass, and every address by which a frame claims to
 * be somebody must be in the list: the source, the sender of ARP, the target of a neighbour advertisement; MAC addresses told by
 * ARP and neighbour discovery must be the frame's own source. What can't be located in the frame's head is refused: headers behind a third
 * tag or too far back, fragments of neighbour discovery (RFC 6980), unknown extension headers. Router advertisements and redirects are
 * a router's, and a port with a list is a host's. A checksum that the sender left to be filled in may not be where it would
 * change what was looked at.
 *
 * Whoever has no address yet may ask for one of those in the list: DHCP from 0.0.0.0 (RFC 2131), ARP probes (RFC 5227), duplicate address
 * detection and multicast listener reports from :: (RFC 4862, RFC 3810).
 *
 * Pure functions; called by pvs_decide.
 */
#ifndef PVS_SECURITY_H
#define PVS_SECURITY_H

#include "frame.h"
#include "pvs_api.h"

struct pvs_security {
    bool sticky;       /* what is learned stays (fdb.h) */
    uint32_t max_macs; /* addresses that may be learned; 0: no limit */
    uint32_t n_macs, n_networks;
    const uint64_t *mac; /* ascending, as in struct pvs_parsed */
    const struct pvs_network *network;
};

/* Is what the frame says about its sender allowed? It has been parsed. */
bool pvs_security_allows(const struct pvs_security *rules, const struct pvs_frame *frame);

#endif
