# SPDX-License-Identifier: Apache-2.0
"""The single values of a configuration: their types, and what is said of a wrong one.

Each is an `Annotated` type for the models of `pvswitch.model`, which is the only importer (beside
`normalise_mac` for addresses in a URL, and `ELSEWHERE` for what a client reads). Strict: text is
not turned into numbers, nor numbers into truth. A check refuses with one short sentence that follows
the place of the value.
"""

from __future__ import annotations

import functools
import grp
import ipaddress
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BeforeValidator, Field, Strict, StringConstraints, ValidationInfo
from pydantic_core import PydanticCustomError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
IFNAME_PATTERN = r"^[^\s/:%]{1,15}$"  # dev_valid_name() of the kernel; a % would let the kernel choose the name
ELSEWHERE = object()
"""The context of a validation of what another machine has judged already: its groups need not be here."""
MAX_VID = 4094  # IEEE 802.1Q-2022, table 9-2: 4095 is reserved; 0 stands for frames in no VLAN
MAX_VNI = (1 << 24) - 1  # RFC 7348, RFC 8926
MAX_GRE_KEY = (1 << 32) - 1  # RFC 2890
MAX_CPU = 1023  # CPU_SETSIZE - 1 of sched_setaffinity(2)


def refuse(message: str) -> NoReturn:
    """Refuse the value under validation, with this sentence as the whole message."""
    raise PydanticCustomError("refused", "{message}", {"message": message})


def is_name(text: str) -> bool:
    """Return whether `text` can name a bridge or a port."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def _check_path(value: object) -> object:
    if not isinstance(value, str | Path):
        refuse("must be text: an absolute path")
    text = str(value)
    if not text.startswith("/"):
        refuse("must be an absolute path: begin it with /")
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        refuse("must not contain control characters")
    _encodable(text)
    return os.path.normpath(text).replace("//", "/")


def normalise_mac(text: str) -> str:
    """Return a MAC address as lower case with colons; PydanticCustomError when `text` is none."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", text):
        refuse("must be a MAC address like 52:54:00:12:34:56")
    return text.lower().replace("-", ":")


def _encodable(text: str) -> str:
    if any("\ud800" <= char <= "\udfff" for char in text):
        refuse("is not text: it has half of a surrogate pair")
    return text


def _unicast(mac: str) -> str:
    if int(mac[:2], 16) & 1:
        refuse("is a multicast address: a unicast MAC address is needed here")
    if mac == "00:00:00:00:00:00":
        refuse("is not an address: a unicast MAC address is needed here")
    return mac


def _check_mode(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        refuse('must be an octal file mode in quotes, like "0660"')
    return value.rjust(4, "0")


def _check_listen(value: str) -> str:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:]+)\]|([0-9.]+)):([0-9]{1,5})", value)
    if match is None or int(match[3]) > 65535:
        refuse('must be an address and a port, like "127.0.0.1:8080" or "[::1]:8080"')
    try:
        ipaddress.ip_address(match[1] or match[2])
    except ValueError:
        refuse('must be an address and a port, like "127.0.0.1:8080" or "[::1]:8080"')
    return value


def listens_on_loopback(listen: str) -> bool:
    """Return whether `api.listen` names an address that only this machine can reach."""
    return ipaddress.ip_address(listen.rpartition(":")[0].strip("[]")).is_loopback


def _check_group(value: str, info: ValidationInfo) -> str:
    if info.context is ELSEWHERE:
        return value
    try:
        grp.getgrnam(value)
    except KeyError:
        refuse(f"there is no group {value!r} here: make it (groupadd {value}) or name another")
    return value


def _check_ifname(value: str) -> str:
    if value in ("all", "default"):
        refuse(f"{value!r} cannot be the name of an interface: the kernel keeps it for itself")
    if not re.fullmatch(IFNAME_PATTERN, _encodable(value)) or len(value.encode()) > 15 or value in (".", ".."):
        refuse("must be the name of an interface: 1 to 15 bytes without spaces, `/`, `:` and `%`")
    return value


def _check_netns(value: str) -> str:
    """Return a name for what is below /run/netns, however it was written; a path for all else."""
    if not value.startswith("/"):
        if "/" in value or value in ("", ".", ".."):
            refuse("must be the name of a network namespace below /run/netns, or an absolute path")
        return str(_check_path("/" + value))[1:]
    path = str(_check_path(value))
    folder, _, name = path.rpartition("/")
    return name if folder in ("/run/netns", "/var/run/netns") else path


def _check_network(value: str) -> str:
    """Return an address, or a network in its shortest form: 192.0.2.7/24 is 192.0.2.0/24."""
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        refuse("must be an address or a network, like 192.0.2.7, 192.0.2.0/24 or fe80::/10")
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)


def _check_address(value: str) -> str:
    try:
        address = ipaddress.ip_interface(value)
    except ValueError:
        address = None
    if address is None or "/" not in value or "%" in value:
        refuse("must be an address with its prefix length, like 192.0.2.1/24 or 2001:db8::1/64")
    if address.is_multicast or address.is_unspecified:
        refuse(f"{address.ip} cannot be the address of an interface: use a unicast address")
    return str(address)


def _vlan_range(item: object) -> range:
    """Return what one item of a list of VLANs names."""
    match = re.fullmatch(r"([0-9]{1,4})-([0-9]{1,4})", item) if isinstance(item, str) else None
    if isinstance(item, int) and not isinstance(item, bool):
        first = last = item
    elif match is not None:
        first, last = int(match[1]), int(match[2])
    else:
        refuse('must have VLAN IDs and ranges of them, like [10, 20, "100-199"]')
    if not 0 <= first <= last <= MAX_VID:
        refuse(f"has {item}: VLAN IDs are from 0 to {MAX_VID}, the lower one of a range first")
    return range(first, last + 1)


def _check_vlans(value: object) -> tuple[int | str, ...]:
    """Return the VLANs in order, each once; three and more in a row as a range."""
    if not isinstance(value, list | tuple):
        refuse('must be a list of VLAN IDs and ranges of them, like [10, 20, "100-199"]')
    vids = sorted({vid for item in value for vid in _vlan_range(item)})
    found: list[int | str] = []
    for _, group in itertools.groupby(enumerate(vids), lambda place: place[1] - place[0]):
        run = [vid for _, vid in group]
        found += [f"{run[0]}-{run[-1]}"] if len(run) > 2 else run
    return tuple(found)


def _check_host(value: str) -> str:
    """Return the address of one host, in its shortest form."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        refuse("must be an address like 192.0.2.1 or 2001:db8::1")
    if address.is_unspecified or address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        refuse(f"{address} is not the address of one host: use a unicast address")
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            refuse(f"{address} stands for an IPv4 address: write {address.ipv4_mapped}")
        if address.is_link_local:
            refuse(f"{address} means another host on each link: use an address that is routed")
    return str(address)


def _check_tos(value: object) -> object:
    if value == "inherit" or (type(value) is int and 0 <= value <= 255 and not value & 3):
        return value
    refuse("must be `inherit`, or a multiple of 4 from 0 to 252: the DSCP and two bits for ECN, which are the switch's")


def _check_checksums(value: object) -> object:
    if value == "auto" or isinstance(value, bool):
        return value
    refuse("must be `auto`, true or false")


def _numbers(item: object, top: int, what: str) -> range:
    """Return what one side of an entry of a map names: a number, or a range in text."""
    match = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", item) if isinstance(item, str) else None
    if isinstance(item, int) and not isinstance(item, bool):
        first = last = item
    elif match is not None:
        first, last = int(match[1]), int(match[2] or match[1])
    else:
        refuse(f'has {item!r}: {what} are whole numbers, and ranges of them like "100-199"')
    if not 0 <= first <= last <= top:
        refuse(f"has {item}: {what} are from 0 to {top}, the lower one of a range first")
    return range(first, last + 1)


def check_networks(top: int, what: str) -> Callable[[object], object]:
    """Return a check for one virtual network, or for a map from VLANs to them; its keys are text afterwards."""

    def check(value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 0 <= value <= top:
                refuse(f"must be from 0 to {top}")
            return value
        if not isinstance(value, Mapping):
            refuse(f'must be a number, or a map of VLANs to {what} like {{10: 10010, "100-199": "10100-10199"}}')
        if not value:
            refuse("maps no VLAN: name some, or give one number")
        return _read_map(value, top, what)

    return check


def _read_map(value: Mapping[object, object], top: int, what: str) -> dict[str, int | str]:
    """Return a map as it is written; no VLAN and no number may be there twice."""
    found: dict[str, int | str] = {}
    vids: set[int] = set()
    numbers: set[int] = set()
    for key, item in value.items():
        left, right = _numbers(key, MAX_VID, "VLAN IDs"), _numbers(item, top, what)
        if len(left) != len(right):
            refuse(f"has {len(left)} VLANs for {len(right)} {what} in {key}: {item}; make the ranges equally long")
        if left[0] == 0:
            refuse("has VLAN 0, which stands for frames in no VLAN: VLAN IDs here are from 1 to 4094")
        if twice := vids.intersection(left):
            refuse(f"has VLAN {min(twice)} twice: keep one")
        if twice := numbers.intersection(right):
            refuse(f"has {min(twice)} for two VLANs, and what comes in it could be of both: keep one")
        vids.update(left)
        numbers.update(right)
        found[_text(left)] = item if isinstance(item, int) else _text(right)
    return found


def _text(run: range) -> str:
    return str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"


@functools.lru_cache(maxsize=1024)
def _expanded(items: tuple[tuple[str, int | str], ...]) -> tuple[tuple[int, int], ...]:
    ends = [(key.partition("-"), str(item).partition("-")) for key, item in items]
    return tuple(
        sorted(
            (vid, number)
            for (first, _, last), (low, _, high) in ends
            for vid, number in zip(
                range(int(first), int(last or first) + 1), range(int(low), int(high or low) + 1), strict=True
            )
        )
    )


def expand_networks(networks: Mapping[str, int | str]) -> tuple[tuple[int, int], ...]:
    """Return each VLAN of a checked map with its number, in order. It remembers what it was asked before."""
    return _expanded(tuple(networks.items()))


def choice(known: Sequence[str]) -> Any:
    """Return a validator for a word that chooses between `known`."""
    words = ", ".join(f"`{word}`" for word in known)

    def check(given: object) -> object:
        if given not in known:
            refuse(f"must be one of {words}")
        return given

    return BeforeValidator(check)


Name = Annotated[str, Strict(), StringConstraints(pattern=NAME_PATTERN)]
Text = Annotated[str, Strict(), AfterValidator(_encodable)]
Int = Annotated[int, Strict()]
Bool = Annotated[bool, Strict()]
Float = Annotated[float, Strict(), Field(allow_inf_nan=False)]
AbsolutePath = Annotated[Path, BeforeValidator(_check_path, json_schema_input_type=str)]
FileMode = Annotated[str, BeforeValidator(_check_mode, json_schema_input_type=str)]
Mac = Annotated[str, Strict(), AfterValidator(normalise_mac)]
UnicastMac = Annotated[Mac, AfterValidator(_unicast)]
Vid = Annotated[Int, Field(ge=0, le=MAX_VID)]
Vlans = Annotated[
    tuple[int | str, ...],
    BeforeValidator(
        _check_vlans,
        json_schema_input_type=list[
            Annotated[int, Field(ge=0, le=MAX_VID)] | Annotated[str, Field(pattern=r"^[0-9]{1,4}-[0-9]{1,4}$")]
        ],
    ),
]
Cpu = Annotated[Int, Field(ge=0, le=MAX_CPU)]
InterfaceName = Annotated[
    str, Strict(), AfterValidator(_check_ifname), Field(json_schema_extra={"pattern": IFNAME_PATTERN})
]
InterfaceAddress = Annotated[str, Strict(), AfterValidator(_check_address)]
IpNetwork = Annotated[str, Strict(), AfterValidator(_check_network)]
Netns = Annotated[str, Strict(), AfterValidator(_check_netns)]
Listen = Annotated[str, Strict(), AfterValidator(_check_listen)]
Group = Annotated[str, Strict(), AfterValidator(_check_group)]
HostAddress = Annotated[str, Strict(), AfterValidator(_check_host)]
Tos = Annotated[
    Literal["inherit"] | int,
    BeforeValidator(
        _check_tos,
        json_schema_input_type=Literal["inherit"] | Annotated[int, Field(ge=0, le=252, multiple_of=4)],
    ),
]

Checksums = Annotated[
    Literal["auto"] | bool, BeforeValidator(_check_checksums, json_schema_input_type=Literal["auto"] | bool)
]


def _networks(top: int, what: str) -> Any:
    number = Annotated[int, Field(ge=0, le=top)]
    runs = Annotated[str, Field(pattern=r"^[0-9]{1,10}(-[0-9]{1,10})?$")]
    keys = Annotated[str, Field(pattern=r"^[0-9]{1,4}(-[0-9]{1,4})?$")]
    return BeforeValidator(
        check_networks(top, what),
        json_schema_input_type=number
        | Annotated[dict[keys, number | runs], Field(min_length=1, json_schema_extra={"additionalProperties": False})],
    )


Vnis = Annotated[int | dict[str, int | str], _networks(MAX_VNI, "VNIs")]
GreKeys = Annotated[int | dict[str, int | str], _networks(MAX_GRE_KEY, "keys")]
