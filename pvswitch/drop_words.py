# SPDX-License-Identifier: Apache-2.0
"""Why a frame was dropped, in words: what each reason means, and what to do about it.

The one source of these words: a trace says them of one frame, docs/troubleshooting.md is their table (a test compares).
The names are the core's (`pvswitch.datapath.DROP_REASONS`). Every room may import this module; it imports none.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Drop(NamedTuple):
    """One reason. `at`: whose counter has it, the port's that it came from (rx) or was for (tx).

    A meaning says "rx: ...; tx: ..." where these differ. `{port}` in a remedy is that port, `{bridge}` its bridge.
    """

    at: str
    meaning: str
    remedy: str


DROPS: dict[str, Drop] = {
    "malformed": Drop(
        "rx",
        "no Ethernet header, a VLAN tag cut short, longer than 65,568 bytes, an offload that was not "
        "negotiated, or a buffer of the wrong direction",
        "look at the sender's driver; an ordinary guest doesn't do this",
    ),
    "link_down": Drop(
        "rx, tx",
        "the port is administratively down; or the destination is known, but its guest is not there",
        "`pvswitch doctor {port}` says why there is no link, and what to do",
    ),
    "queue_disabled": Drop(
        "rx",
        "sent on a ring that its front end has disabled",
        "bring the interface up in the guest, or `set_link` on in QEMU's monitor",
    ),
    "no_destination": Drop(
        "rx, tx",
        "rx: no other port to flood to, unknown unicast with `flood_unknown: false`, or a flow's actions name "
        "only the port it came by; tx: the network of a tunnel has no remote",
        "`pvswitch show fdb {bridge}` and `show vlans {bridge}` say who is where; add a port to the VLAN, or a "
        "remote to the tunnel",
    ),
    "same_port": Drop(
        "rx",
        "the destination is behind the port that the frame came from",
        "nothing, where that is so; else `pvswitch fdb flush {bridge}` forgets a wrong address",
    ),
    "bpdu": Drop(
        "rx",
        "link-local address with `forward_bpdu: false`, or PAUSE",
        "`pvswitch bridge set {bridge} forward_bpdu=true`; PAUSE is never forwarded",
    ),
    "vlan_filtered": Drop(
        "rx, tx",
        "rx: the port's `vlan_mode` and `trunks` don't take frames with these tags, like a tagged one on an "
        "access port; tx: the destination is known, and its port isn't in that VLAN any more, or would have to "
        "hand out a tag within the tag",
        "change `vlan_mode`, `tag` or `trunks` of port {port}, or send with a tag that it takes (`pvswitch show"
        " vlans {bridge}`)",
    ),
    "isolated": Drop(
        "tx",
        "from a `protected` port to another",
        "take `protected` off one of the two, if they are to talk",
    ),
    "port_security": Drop(
        "rx",
        "the port's `port_security` doesn't allow this sender: another MAC or IP address, one more than "
        "`max_macs`, or one that belongs to another port; or what it says of itself can't be found in the frame",
        "allow the address in `port_security` of port {port}, or correct the guest's",
    ),
    "storm_control": Drop(
        "rx",
        "more broadcast, multicast or flooded unicast than the port's `storm_control` lets through",
        "raise `storm_control` of port {port}, if that much is right",
    ),
    "policed": Drop(
        "rx",
        "more than the port's `policing` lets in",
        "raise `policing` of port {port}, or send more slowly",
    ),
    "shaped": Drop(
        "tx",
        "it would have had to wait longer than 100 ms for the rate of the port's `shaping`, or too much waits already",
        "raise `shaping` of port {port}, or send less to it",
    ),
    "flow_drop": Drop(
        "rx",
        "a flow says `drop`, or none of its actions sends the frame anywhere",
        "`pvswitch flow dump {bridge}` shows the flows; change this one, or put one of a higher priority before it",
    ),
    "meter": Drop("rx", "more than a flow's meter lets through", "raise the meter's rate, or send more slowly"),
    "ttl_exceeded": Drop(
        "rx",
        "a flow's `dec_ttl` would have made the TTL 0",
        "send with a larger TTL; where frames go in circles, change the flows",
    ),
    "mirror_output": Drop(
        "rx, tx",
        "by, or for, a port that is the `output_port` of a mirror: only mirrored frames leave by it",
        "use another port for traffic, or another `output_port` for the mirror",
    ),
    "mtu_exceeded": Drop(
        "tx",
        "the L3 part is larger than the port's `mtu`; of a tunnel: than what fits the path, which `state.mtu` says",
        "raise `mtu` of port {port}, or lower that of the senders; of a tunnel, that of its underlay",
    ),
    "split_horizon": Drop(
        "tx",
        "by a tunnel, for a known address behind another tunnel of the same network: these hosts reach each other",
        "nothing, where the remotes are a full mesh; else `pvswitch fdb flush {bridge}` forgets a wrong address",
    ),
    "no_route": Drop(
        "tx",
        "of a tunnel: the kernel has no way to the remote",
        "`ip route get ADDRESS` says why; add the route",
    ),
    "tunnel_malformed": Drop(
        "rx",
        "of an endpoint: no packet of its type, one cut short, or one that asks for what isn't understood "
        "(critical options of Geneve, a source route of GRE); a frame that is too short counts as `malformed` "
        "at its port",
        "look at the remote's tunnel: its type and its options",
    ),
    "tunnel_ecn": Drop(
        "rx",
        "of an endpoint: its way has marked congestion, and the sender of the frame in it can't be told (RFC 6040)",
        "relieve the underlay, or let the senders use ECN",
    ),
    "unknown_vni": Drop(
        "rx",
        "of an endpoint: no tunnel at this address has this VNI or key",
        "give the tunnel this `vni` (`key`), or the other side this one's",
    ),
    "unknown_vtep": Drop(
        "rx",
        "with `learning: false`: the packet came from a host that isn't a remote",
        "add the host to `remotes` of port {port}",
    ),
    "guest_rx_full": Drop(
        "tx",
        "the receiving guest had no buffers posted: it is slower than its senders; with `on_full: backpressure`"
        " it took nothing for `backpressure_ms`",
        "give the guest more queues, larger rings or more processor time",
    ),
    "guest_rx_too_small": Drop(
        "tx",
        "the guest has no mergeable buffers and posts smaller ones than the frame",
        "let its driver negotiate mergeable buffers (`mrg_rxbuf=on`), or lower the senders' MTU",
    ),
    "uplink_tx_full": Drop(
        "tx",
        "the kernel had no room to send it by the interface: the network behind it is slower than the senders; "
        "of a pcap port: its disk is, or is full, which `state.message` says",
        "`on_full: backpressure` makes known unicast wait",
    ),
    "uplink_rx_full": Drop(
        "rx",
        "frames came by the interface faster than a worker fetched them, and the packet socket's buffer was full",
        "give the switch more processor time, or another worker",
    ),
    "uplink_refused": Drop(
        "tx",
        "the kernel would not send the frame; a pcap port without `write` has no use for any frame",
        "the kernel's log (`dmesg`) and the interface's features (`ethtool -k`) may say why",
    ),
}


def explain(reason: str, at: Literal["rx", "tx"], port: str, bridge: str) -> str:
    """Return a reason in a sentence with the remedy, of a frame that came by a port (rx) or was for it (tx)."""
    drop = DROPS[reason]
    meaning = drop.meaning
    if meaning.startswith("rx: "):
        rx, _, tx = meaning.removeprefix("rx: ").partition("; tx: ")
        meaning = rx if at == "rx" else tx
    return f"{meaning}: {drop.remedy.format(port=port, bridge=bridge)}"


def table() -> str:
    """Return the table of docs/troubleshooting.md."""
    rows = [
        f"| `{name}` | {drop.at} | {drop.meaning} | {drop.remedy.format(port='NAME', bridge='BRIDGE')} |"
        for name, drop in DROPS.items()
    ]
    return "\n".join(["| reason | at | meaning | what to do |", "|---|---|---|---|", *rows]) + "\n"
