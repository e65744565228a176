# SPDX-License-Identifier: Apache-2.0
"""Wrong documents, each with the places that must be named: used for files and for requests alike."""

from __future__ import annotations

from typing import Any

M = "52:54:00:00:00:01"


def ports(**settings: Any) -> dict[str, Any]:
    return {"ports": {"vm1": settings}}


def fdb(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"bridges": {"br0": {"fdb": list(entries)}}, "ports": {"vm1": {}}}


def tap(**settings: Any) -> dict[str, Any]:
    return {"ports": {"t": {"type": "tap", "ifname": "tap0", **settings}}}


def pcap(**settings: Any) -> dict[str, Any]:
    return {"ports": {"f": {"type": "pcap", **settings}}}


TUNNEL = {"type": "vxlan", "vni": 7, "local": "192.0.2.1"}


def tunnel(**settings: Any) -> dict[str, Any]:
    own = {key: value for key, value in TUNNEL.items() if key != "vni" or settings.get("type") != "gre"}
    return {"ports": {"t": {**own, **settings}}}


# What it is -> (document, places, a part of the first message)
MALFORMED: dict[str, tuple[Any, list[str], str]] = {
    "unknown key": ({"portz": {}}, ["portz"], "did you mean `ports`"),
    "unknown key, nothing close": ({"zzz": 1}, ["zzz"], "unknown key"),
    "state_dir": ({"state_dir": "x"}, ["state_dir"], "absolute path"),
    "no filter": ({"recorder": {"filter": "tcp port"}}, ["recorder.filter"], "syntax error"),
    "a name in a filter": ({"recorder": {"filter": "host vm1.lan"}}, ["recorder.filter"], "addresses as numbers"),
    "relative path": ({"runtime_dir": "run"}, ["runtime_dir"], "absolute path"),
    "control characters": ({"socket_dir": "/a\nb"}, ["socket_dir"], "control characters"),
    "number as mode": ({"socket_mode": 660}, ["socket_mode"], "in quotes"),
    "no octal mode": ({"socket_mode": "0999"}, ["socket_mode"], "octal"),
    "no such group": ({"socket_group": "no-such"}, ["socket_group"], "groupadd no-such"),
    "listen beyond loopback": ({"api": {"listen": "0.0.0.0:80"}}, ["api.listen"], "token"),
    "listen without a port": ({"api": {"listen": "127.0.0.1"}}, ["api.listen"], "address and a port"),
    "listen on port 70000": ({"api": {"listen": "127.0.0.1:70000"}}, ["api.listen"], "address and a port"),
    "tokens without a port": ({"api": {"tokens_file": "/t"}}, ["api.tokens_file"], "set `api.listen` too"),
    "tls without a port": ({"api": {"tls": {"cert": "/c", "key": "/k"}}}, ["api.tls"], "set `api.listen` too"),
    "tls without its key": (
        {"api": {"listen": "127.0.0.1:1", "tls": {"cert": "/c"}}},
        ["api.tls.key"],
        "is missing",
    ),
    "tls with another key": (
        {"api": {"listen": "127.0.0.1:1", "tls": {"cert": "/c", "key": "/k", "certs": "/x"}}},
        ["api.tls.certs"],
        "did you mean `cert`",
    ),
    "tokens in a wrong place": (
        {"api": {"listen": "0.0.0.0:1", "tokens_file": "t"}},
        ["api.tokens_file"],
        "absolute path",
    ),
    "tokens for a wrong address": (
        {"api": {"listen": "everywhere:1", "tokens_file": "/t"}},
        ["api.listen"],
        "address and a port",
    ),
    "workers": ({"datapath": {"workers": 17}}, ["datapath.workers"], "at most 16"),
    "workers as text": ({"datapath": {"workers": "2"}}, ["datapath.workers"], "whole number"),
    "no worker": ({"datapath": {"workers": 0}}, ["datapath.workers"], "at least 1"),
    "polling": ({"datapath": {"polling": "often"}}, ["datapath.polling"], "'busy'"),
    "too many CPUs": ({"datapath": {"cpus": [0, 1]}}, ["datapath.cpus"], "each of the 1 workers, or none: 2 are named"),
    "too few CPUs": ({"datapath": {"workers": 3, "cpus": [0]}}, ["datapath.cpus"], "each of the 3 workers"),
    "17 CPUs": ({"datapath": {"workers": 16, "cpus": [0] * 17}}, ["datapath.cpus"], "at most 16"),
    "too rarely": (
        {"datapath": {"workers": 2, "rebalance_seconds": 3601}},
        ["datapath.rebalance_seconds"],
        "at most 3600",
    ),
    "nothing to balance": (
        {"datapath": {"rebalance_seconds": 5}},
        ["datapath.rebalance_seconds"],
        "moves queues between workers, and there is one",
    ),
    "no CPU": ({"datapath": {"workers": 2, "cpus": [0, 1024]}}, ["datapath.cpus[1]"], "at most 1023"),
    "CPUs of an unknown number of workers": (
        {"datapath": {"workers": 20, "cpus": [0, 1]}} | ports(rxq_affinity=[15, 0]),
        ["datapath.workers"],
        "at most 16",
    ),
    "bridges as a list": ({"bridges": [1]}, ["bridges"], "mapping"),
    "bridge name": ({"bridges": {"br 0": {}}}, ["bridges.br 0"], "not a name"),
    "65 bridges": ({"bridges": {f"b{i}": {} for i in range(65)}}, ["bridges"], "at most 64"),
    "ageing as text": ({"bridges": {"br0": {"aging_time": "5"}}}, ["bridges.br0.aging_time"], "whole number"),
    "ageing below 0": ({"bridges": {"br0": {"aging_time": -1}}}, ["bridges.br0.aging_time"], "at least 0"),
    "fdb_size": ({"bridges": {"br0": {"fdb_size": 1000001}}}, ["bridges.br0.fdb_size"], "at most 1000000"),
    "flow's port": (
        {"bridges": {"br0": {"flows": {"f": "in_port=vm8,actions=output:vm9"}}}},
        ["bridges.br0.flows.f.match.in_port", "bridges.br0.flows.f.actions[0]"],
        "there is no port",
    ),
    "flow's meter": (
        {"bridges": {"br0": {"flows": {"f": "actions=meter:m,mirror:w,normal"}}}},
        ["bridges.br0.flows.f.actions[0]", "bridges.br0.flows.f.actions[1]"],
        "on this bridge",
    ),
    "flow's text": (
        {"bridges": {"br0": {"flows": {"f": "table=1,actions=drop", "g": {"actions": ["drop"], "match": {"x": 1}}}}}},
        ["bridges.br0.flows.f.table", "bridges.br0.flows.g.match.x"],
        "",
    ),
    "flow's name": (
        {"bridges": {"br0": {"flows": {"a b": "actions=drop", "priority=5": "priority=6,actions=drop"}}}},
        ["bridges.br0.flows.a b", "bridges.br0.flows.priority=5"],
        "priority=",
    ),
    "the same flow": (
        {"bridges": {"br0": {"flows": {"a": "tcp,actions=drop", "b": "ip,nw_proto=6,actions=normal"}}}},
        ["bridges.br0.flows.b"],
        "the priority and the match of flow 'a'",
    ),
    "a flow beside a wrong meter": (
        {"bridges": {"br0": {"meters": {"m": {"rate_pps": 0}}, "flows": {"f": "actions=meter:m,normal"}}}},
        ["bridges.br0.meters.m.rate_pps"],
        "at least 1",
    ),
    "a flow without actions": (
        {"bridges": {"br0": {"flows": {"f": {"match": {}, "color": 1}}}}},
        ["bridges.br0.flows.f.color", "bridges.br0.flows.f.actions"],
        "",
    ),
    "static multicast": (
        fdb({"mac": "01:00:5e:00:00:01", "port": "vm1"}),
        ["bridges.br0.fdb[0].mac"],
        "multicast",
    ),
    "no MAC": (fdb({"mac": "52:54", "port": "vm1"}), ["bridges.br0.fdb[0].mac"], "MAC address"),
    "missing MAC": (fdb({"port": "vm1"}), ["bridges.br0.fdb[0].mac"], "missing"),
    "VLAN": (fdb({"mac": M, "vid": 4095, "port": "vm1"}), ["bridges.br0.fdb[0].vid"], "at most 4094"),
    "static, no such port": (fdb({"mac": M, "port": "vm9"}), ["bridges.br0.fdb[0].port"], "no port 'vm9'"),
    "static twice": (
        fdb({"mac": M, "port": "vm1"}, {"mac": M.upper(), "port": "vm1"}),
        ["bridges.br0.fdb[1].mac"],
        "already",
    ),
    "static, wrong bridge": (
        {"bridges": {"a": {"fdb": [{"mac": M, "port": "x"}]}, "b": {}}, "ports": {"x": {"bridge": "b"}}},
        ["bridges.a.fdb[0].port"],
        "on bridge 'b'",
    ),
    "more static entries than size": (
        {"bridges": {"br0": {"fdb_size": 1, "fdb": [{"mac": f"02:00:00:00:00:0{i}", "port": "vm1"} for i in (1, 2)]}}}
        | {"ports": {"vm1": {}}},
        ["bridges.br0.fdb"],
        "fdb_size",
    ),
    "port name": ({"ports": {"-vm": {}}}, ["ports.-vm"], "not a name"),
    "long port name": ({"ports": {"v" * 64: {}}}, ["ports." + "v" * 64], "not a name"),
    "1025 ports": ({"ports": {f"p{i}": {} for i in range(1025)}}, ["ports"], "at most 1024"),
    "port type": (ports(type="stt", vni=1, dst_port=1), ["ports.vm1.type"], "must be one of `vhost-user`"),
    "unknown port type": (
        ports(type="tapp", ifname="t"),
        ["ports.vm1.type"],
        "one of `vhost-user`, `tap`, `af_packet`",
    ),
    "wrong type, and more": (
        ports(type="tapp", ifname="t", mtu=1, bridge="br9"),
        ["ports.vm1.type", "ports.vm1.mtu", "ports.vm1.bridge"],
        "must be one of",
    ),
    "type as number": (ports(type=1), ["ports.vm1.type"], "must be one of"),
    "tap's key": (ports(ifname="tap0"), ["ports.vm1.ifname"], "a key of tap and af_packet ports"),
    "tap's key in vain": (ports(type="vhost-user", addresses=[]), ["ports.vm1.addresses"], "a key of tap ports"),
    "vhost-user's key": (tap(socket="/s"), ["ports.t.socket"], "a key of vhost-user ports"),
    "af_packet's queues": (
        ports(type="af_packet", ifname="e", queues=2),
        ["ports.vm1.queues"],
        "a key of vhost-user and tap ports",
    ),
    "tunnel's key": (tap(vni=1), ["ports.t.vni"], "a key of vxlan and geneve ports"),
    "tap's typo": (tap(adresses=[]), ["ports.t.adresses"], "did you mean `addresses`"),
    "no ifname": (ports(type="tap"), ["ports.vm1.ifname"], "is missing"),
    "no ifname, and more": (
        ports(type="af_packet", bridge="br9"),
        ["ports.vm1.bridge", "ports.vm1.ifname"],
        "no bridge 'br9'",
    ),
    "long ifname": (tap(ifname="i" * 16), ["ports.t.ifname"], "1 to 15 bytes"),
    "ifname of many bytes": (tap(ifname="é" * 8), ["ports.t.ifname"], "1 to 15 bytes"),
    "ifname that the kernel completes": (tap(ifname="tap%d"), ["ports.t.ifname"], "`%`"),
    "ifname with a space": (tap(ifname="tap 0"), ["ports.t.ifname"], "without spaces"),
    "ifname of dots": (tap(ifname=".."), ["ports.t.ifname"], "1 to 15 bytes"),
    "ifname of the kernel": (tap(ifname="all"), ["ports.t.ifname"], "keeps it for itself"),
    "empty ifname": (tap(ifname=""), ["ports.t.ifname"], "1 to 15 bytes"),
    "netns": (tap(netns="a/b"), ["ports.t.netns"], "below /run/netns, or an absolute path"),
    "17 queues of a tap": (tap(queues=17), ["ports.t.queues"], "at most 16"),
    "address without length": (tap(addresses=["192.0.2.1"]), ["ports.t.addresses[0]"], "prefix length"),
    "no address": (tap(addresses=["192.0.2.1/24", "x/24"]), ["ports.t.addresses[1]"], "prefix length"),
    "address of a group": (tap(addresses=["ff02::1/64"]), ["ports.t.addresses[0]"], "unicast"),
    "address twice": (tap(addresses=["fd00::1/64", "FD00::0:1/64"]), ["ports.t.addresses[1]"], "listed already"),
    "mtu beyond a tap's": (tap(mtu=65522), ["ports.t.mtu"], "at most 65521"),
    "promisc as number": (ports(type="af_packet", ifname="e", promisc=1), ["ports.vm1.promisc"], "true or false"),
    "no file": (pcap(), ["ports.f.read"], "a file to `read`, one to `write`, or both"),
    "relative file": (pcap(read="a.pcap"), ["ports.f.read"], "absolute path"),
    "wrong file, and nothing else": (pcap(write="a.pcap"), ["ports.f.write"], "absolute path"),
    "wrong files, and a bridge": (
        {"ports": {"f": {"type": "pcap", "read": 1, "write": "\n", "bridge": "br9"}}},
        ["ports.f.read", "ports.f.write", "ports.f.bridge"],
        "an absolute path",
    ),
    "speed below 0": (pcap(read="/a", speed=-1), ["ports.f.speed"], "at least 0"),
    "speed beyond measure": (pcap(read="/a", speed=1e7), ["ports.f.speed"], "at most 1000000"),
    "speed as text": (pcap(read="/a", speed="fast"), ["ports.f.speed"], "must be a number"),
    "speed as truth": (pcap(read="/a", speed=True), ["ports.f.speed"], "must be a number"),
    "loop as number": (pcap(read="/a", loop=3), ["ports.f.loop"], "true or false"),
    "pcap's key": (ports(read="/a"), ["ports.vm1.read"], "a key of pcap ports"),
    "the file that it reads": (pcap(read="/a//b", write="/a/b"), ["ports.f.write"], "the file that this port reads"),
    "a file that another reads": (
        {"ports": {"r": {"type": "pcap", "read": "/a"}, "w": {"type": "pcap", "write": "/x/../a"}}},
        ["ports.w.write"],
        "port 'r' reads",
    ),
    "a file that another reads, behind": (
        {"ports": {"w": {"type": "pcap", "write": "/a"}, "r": {"type": "pcap", "read": "/a"}}},
        ["ports.w.write"],
        "port 'r' reads",
    ),
    "a file that another writes": (
        {"ports": {"v": {"type": "pcap", "write": "/a"}, "w": {"type": "pcap", "write": "/a"}}},
        ["ports.w.write"],
        "port 'v' writes already",
    ),
    "same interface": (
        {
            "ports": {
                "a": {"type": "tap", "ifname": "x", "netns": "n"},
                "b": {"type": "tap", "ifname": "x"},
                "c": {"type": "af_packet", "ifname": "x", "netns": "/var/run/netns/n"},
            }
        },
        ["ports.c.ifname"],
        "port 'a' already",
    ),
    "ports named as types": (
        {"ports": {"tap": {"mtu": 1}, "af_packet": {"type": "af_packet", "tap": 1, "ifname": "x"}}},
        ["ports.tap.mtu", "ports.af_packet.tap"],
        "at least 68",
    ),
    "vni": (ports(vni=1), ["ports.vm1.vni"], "a key of vxlan and geneve ports"),
    "tunnel without anything": (ports(type="vxlan"), ["ports.vm1.local", "ports.vm1.vni"], "is missing"),
    "tunnel without vni": (tunnel(vni=None), ["ports.t.vni"], "must be a number, or a map of VLANs"),
    "vni too large": (tunnel(vni=1 << 24), ["ports.t.vni"], "must be from 0 to 16777215"),
    "vni true": (tunnel(vni=True), ["ports.t.vni"], "must be a number, or a map"),
    "key too large": (tunnel(type="gre", key=1 << 32), ["ports.t.key"], "must be from 0 to 4294967295"),
    "vxlan with key": (tunnel(key=1), ["ports.t.key"], "a key of gre ports"),
    "gre with dst_port": (tunnel(type="gre", dst_port=1), ["ports.t.dst_port"], "a key of vxlan and geneve ports"),
    "map without VLANs": (tunnel(vni={}), ["ports.t.vni"], "maps no VLAN"),
    "map of VLAN 0": (tunnel(vni={"0": 1}), ["ports.t.vni"], "has VLAN 0"),
    "map of VLAN 4095": (tunnel(vni={"4095": 1}), ["ports.t.vni"], "from 0 to 4094"),
    "map with a word": (tunnel(vni={"ten": 1}), ["ports.t.vni"], "has 'ten'"),
    "map of unequal ranges": (tunnel(vni={"1-10": "1-9"}), ["ports.t.vni"], "has 10 VLANs for 9 VNIs"),
    "map backwards": (tunnel(vni={"9-1": "9-1"}), ["ports.t.vni"], "the lower one of a range first"),
    "VLAN twice in a map": (tunnel(vni={"10-12": "1-3", "12": 9}), ["ports.t.vni"], "has VLAN 12 twice"),
    "VNI twice in a map": (tunnel(vni={"10-12": "1-3", "13": 2}), ["ports.t.vni"], "has 2 for two VLANs"),
    "mapped tunnel with VLANs": (
        tunnel(vni={"10": 1}, vlan_mode="access", tag=1, trunks=[1], cvlans=[1]),
        ["ports.t.vlan_mode", "ports.t.tag", "ports.t.trunks", "ports.t.cvlans"],
        "doesn't go with a map of VLANs",
    ),
    "local is no address": (tunnel(local="here"), ["ports.t.local"], "must be an address like"),
    "local is any": (tunnel(local="0.0.0.0"), ["ports.t.local"], "not the address of one host"),
    "local of a link": (tunnel(local="fe80::1"), ["ports.t.local"], "another host on each link"),
    "local mapped": (tunnel(local="::ffff:192.0.2.1"), ["ports.t.local"], "write 192.0.2.1"),
    "remote is a group": (tunnel(remotes=["239.1.1.1"]), ["ports.t.remotes[0]"], "not the address of one host"),
    "remote is local": (tunnel(remotes=["192.0.2.1"]), ["ports.t.remotes[0]"], "is this port's `local`"),
    "remote twice": (tunnel(remotes=["192.0.2.2", "192.0.2.2"]), ["ports.t.remotes[1]"], "is listed already"),
    "remote of another family": (tunnel(remotes=["2001:db8::1"]), ["ports.t.remotes[0]"], "are not both IPv4"),
    "1025 remotes": (
        tunnel(remotes=[f"10.0.{i >> 8}.{i & 255}" for i in range(1, 1026)]),
        ["ports.t.remotes"],
        "at most 1024",
    ),
    "no remotes and no learning": (tunnel(remotes=[], learning=False), ["ports.t.remotes"], "`external: true`"),
    "ttl 0": (tunnel(ttl=0), ["ports.t.ttl"], "must be at least 1"),
    "tos with ECN": (tunnel(tos=3), ["ports.t.tos"], "a multiple of 4"),
    "tos true": (tunnel(tos=True), ["ports.t.tos"], "must be `inherit`"),
    "udp_csum": (tunnel(udp_csum="yes"), ["ports.t.udp_csum"], "must be"),
    "tunnel that waits": (tunnel(on_full="backpressure"), ["ports.t.on_full"], "doesn't go with tunnels"),
    "network twice": (
        {"ports": {"a": TUNNEL, "b": TUNNEL | {"vni": {"10-20": "1-11"}}}},
        ["ports.b.vni"],
        "`vni` 7 at 192.0.2.1 belongs to port 'a' already",
    ),
    "no key twice": (
        {"ports": {name: {"type": "gre", "local": "192.0.2.1"} for name in "ab"}},
        ["ports.b.key"],
        "what has no `key` at 192.0.2.1 belongs to port 'a' already",
    ),
    "two types on one UDP port": (
        {"ports": {"a": TUNNEL, "b": TUNNEL | {"type": "geneve", "dst_port": 4789}}},
        ["ports.b.dst_port"],
        "is where the vxlan of port 'a' comes in",
    ),
    "32 meshes": (
        {"ports": {f"p{i}{j}": TUNNEL | {"vni": i, "local": f"10.0.0.{j}"} for i in range(32) for j in (1, 2)}},
        ["ports.p312"],
        "more than 31 such groups",
    ),
    "tunnel with wrong and missing values": (
        tunnel(local="x", remotes=["192.0.2.2"], bridge="br9"),
        ["ports.t.local", "ports.t.bridge"],
        "must be an address like",
    ),
    "no senders": (ports(port_security={"max_macs": 0}), ["ports.vm1.port_security.max_macs"], "at least 1"),
    "sticky without an end": (
        ports(port_security={"sticky": True}),
        ["ports.vm1.port_security.sticky"],
        "needs `max_macs`",
    ),
    "a multicast sender": (
        ports(port_security={"allowed_macs": ["01:00:5e:00:00:01"]}),
        ["ports.vm1.port_security.allowed_macs[0]"],
        "is a multicast address",
    ),
    "not an address": (
        ports(port_security={"allowed_ips": ["192.0.2.1/33"]}),
        ["ports.vm1.port_security.allowed_ips[0]"],
        "an address or a network, like 192.0.2.7",
    ),
    "a storm of nothing": (
        ports(storm_control={"broadcast_pps": 0, "unicast_pps": 1}),
        ["ports.vm1.storm_control.broadcast_pps", "ports.vm1.storm_control.unicast_pps"],
        "at least 1",
    ),
    "no rate": (ports(policing={}), ["ports.vm1.policing.rate_kbps"], "is missing"),
    "a small burst": (
        ports(shaping={"rate_kbps": 1000, "burst_bytes": 1500}),
        ["ports.vm1.shaping.burst_bytes"],
        "at least 65550",
    ),
    "shaping and backpressure": (
        ports(shaping={"rate_kbps": 1000}, on_full="backpressure"),
        ["ports.vm1.on_full"],
        "doesn't go with `shaping`",
    ),
    "a mirror to nowhere": (
        {"bridges": {"br0": {"mirrors": {"m": {"snaplen": 13}}}}},
        ["bridges.br0.mirrors.m", "bridges.br0.mirrors.m.snaplen"],
        "one of `output_port` and `output_vlan`",
    ),
    "a mirror of nobody": (
        {
            "bridges": {"br0": {"mirrors": {"m": {"select_src_port": ["a", "b"], "output_port": "a"}}}, "br1": {}},
            "ports": {"a": {"bridge": "br1"}},
        },
        [
            "bridges.br0.mirrors.m.select_src_port[0]",
            "bridges.br0.mirrors.m.select_src_port[1]",
            "bridges.br0.mirrors.m.output_port",
        ],
        "port 'a' is on bridge 'br1'",
    ),
    "a mirror to nobody, and more": (
        {
            "bridges": {"br0": {"mirrors": {"m": {"select_src_port": ["x", "a"], "output_port": "y"}}}},
            "ports": {"a": {"tag": 10, "trunks": [1]}},
        },
        ["bridges.br0.mirrors.m.select_src_port[0]", "bridges.br0.mirrors.m.output_port", "ports.a.trunks"],
        "there is no port 'x'",
    ),
    "a mirror of its output": (
        {
            "bridges": {"br0": {"mirrors": {"m": {"select_dst_port": ["a"], "output_port": "a"}}}},
            "ports": {"a": {}},
        },
        ["bridges.br0.mirrors.m.select_dst_port[0]"],
        "is the output of a mirror",
    ),
    "vlan_mode": (ports(vlan_mode="tagged"), ["ports.vm1.vlan_mode"], "'access', 'trunk', 'native-tagged'"),
    "access without a tag": (ports(vlan_mode="access"), ["ports.vm1.tag"], "missing: access ports have a VLAN"),
    "tunnel without a tag": (ports(vlan_mode="dot1q-tunnel", cvlans=[1]), ["ports.vm1.tag"], "is missing"),
    "trunk with a tag": (ports(vlan_mode="trunk", tag=1), ["ports.vm1.tag"], "not for trunks: use native-untagged"),
    "access with trunks": (ports(tag=1, trunks=[2]), ["ports.vm1.trunks"], "not for access ports"),
    "tunnel with trunks": (
        ports(vlan_mode="dot1q-tunnel", tag=1, trunks=[2]),
        ["ports.vm1.trunks"],
        "use cvlans for the customer's VLANs",
    ),
    "trunk with cvlans": (ports(cvlans=[2]), ["ports.vm1.cvlans"], "for dot1q-tunnel ports only"),
    "tag 0": (ports(tag=0), ["ports.vm1.tag"], "at least 1"),
    "tag 4095": (ports(tag=4095), ["ports.vm1.tag"], "at most 4094"),
    "trunks as a number": (ports(trunks=10), ["ports.vm1.trunks"], "must be a list of VLAN IDs"),
    "trunk of 4095": (ports(trunks=[4095]), ["ports.vm1.trunks"], "has 4095: VLAN IDs are from 0 to 4094"),
    "trunk of a negative one": (ports(trunks=[-1]), ["ports.vm1.trunks"], "has -1: VLAN IDs are from 0 to 4094"),
    "range the wrong way": (ports(trunks=["20-10"]), ["ports.vm1.trunks"], "the lower one of a range first"),
    "range beyond": (ports(trunks=["4000-4095"]), ["ports.vm1.trunks"], "from 0 to 4094"),
    "range in words": (ports(trunks=["all"]), ["ports.vm1.trunks"], "ranges of them, like"),
    "trunk of truth": (ports(trunks=[True]), ["ports.vm1.trunks"], "ranges of them, like"),
    "mode": (ports(mode="both"), ["ports.vm1.mode"], "'server' or 'client'"),
    "no queues": (ports(queues=0), ["ports.vm1.queues"], "at least 1"),
    "queues": (ports(queues=17, rxq_affinity=[0] * 9), ["ports.vm1.queues"], "at most 16"),
    "on_full": (ports(on_full="wait"), ["ports.vm1.on_full"], "'drop' or 'backpressure'"),
    "no backpressure_ms": (ports(backpressure_ms=0), ["ports.vm1.backpressure_ms"], "at least 1"),
    "backpressure_ms": (ports(backpressure_ms=1001), ["ports.vm1.backpressure_ms"], "at most 1000"),
    "affinity to no worker": (
        {"datapath": {"workers": 2}} | ports(rxq_affinity=[1, 2]),
        ["ports.vm1.rxq_affinity[1]"],
        "there is no worker 2: `datapath.workers` is 2",
    ),
    "affinity of no queue": (ports(queues=1, rxq_affinity=[0, 0]), ["ports.vm1.rxq_affinity"], "1 queue pairs"),
    "long affinity": (ports(queues=16, rxq_affinity=[0] * 17), ["ports.vm1.rxq_affinity"], "at most 16"),
    "affinity as one number": (ports(rxq_affinity=0), ["ports.vm1.rxq_affinity"], "must be a list"),
    "affinity, one wrong": (
        ports(rxq_affinity=["a", 16], bridge="br9"),
        ["ports.vm1.rxq_affinity[0]", "ports.vm1.rxq_affinity[1]", "ports.vm1.bridge"],
        "whole number",
    ),
    "mtu below": (ports(mtu=67), ["ports.vm1.mtu"], "at least 68"),
    "mtu as truth": (ports(mtu=True), ["ports.vm1.mtu"], "whole number"),
    "enabled as text": (ports(enabled="yes"), ["ports.vm1.enabled"], "true or false"),
    "label as number": (ports(labels={"rack": 7}), ["ports.vm1.labels.rack"], "text"),
    "feature as number": (ports(features={"tso": 0}), ["ports.vm1.features.tso"], "true or false"),
    "feature typo": (ports(features={"indirct": False}), ["ports.vm1.features.indirct"], "`indirect`"),
    "no such bridge": (ports(bridge="br9"), ["ports.vm1.bridge"], "no bridge 'br9'"),
    "which bridge": ({"bridges": {"a": {}, "b": {}}, "ports": {"vm1": {}}}, ["ports.vm1.bridge"], "several"),
    "same socket": (
        {"ports": {"vm1": {"socket": "/x/s"}, "vm2": {"socket": "/x//s"}}},
        ["ports.vm2.socket"],
        "port 'vm1' already",
    ),
    "the API's socket": (
        {"api": {"socket": "/x/s"}, "ports": {"vm1": {"socket": "/x/s"}}},
        ["ports.vm1.socket"],
        "the API already",
    ),
    "long socket": (ports(socket="/" + "s" * 107), ["ports.vm1.socket"], "107 bytes"),
    "all at once, and both kinds": (
        {
            "bridges": {"br0": {"aging_time": "x", "fdb": [{"mac": "zz", "port": "vm1"}, {"mac": M, "port": "no"}]}},
            "ports": {"vm1": {"mtu": 1, "tag": 5000}, "vm2": {"bridge": "br9"}, "vm3": []},
        },
        [
            "bridges.br0.aging_time",
            "bridges.br0.fdb[0].mac",
            "bridges.br0.fdb[1].port",
            "ports.vm1.mtu",
            "ports.vm1.tag",
            "ports.vm2.bridge",
            "ports.vm3",
        ],
        "whole number",
    ),
}
