# SPDX-License-Identifier: Apache-2.0
"""The single values of a configuration: their types, and what is said of a wrong one.

Each is an `Annotated` type for the models of `pvswitch.model`, which is the only importer (and
`normalise_mac` for addresses in a URL). Strict: text is not turned into numbers, nor numbers into
truth. A check refuses with one short sentence that follows the place of the value.
"""

from __future__ import annotations

import grp
import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BeforeValidator, Field, Strict, StringConstraints
from pydantic_core import PydanticCustomError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
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
        refuse("is a multicast address: a static entry needs a unicast MAC address")
    if mac == "00:00:00:00:00:00":
        refuse("is not an address: a static entry needs a unicast MAC address")
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
        address = ipaddress.ip_address(match[1] or match[2])
    except ValueError:
        refuse('must be an address and a port, like "127.0.0.1:8080" or "[::1]:8080"')
    if not address.is_loopback:
        refuse(
            "beyond loopback a token is required, which is not available in this version: "
            'use "127.0.0.1:PORT" or "[::1]:PORT"'
        )
    return value


def _check_group(value: str) -> str:
    try:
        grp.getgrnam(value)
    except KeyError:
        refuse(f"there is no group {value!r} here: make it (groupadd {value}) or name another")
    return value


def only(value: int, noun: str) -> Any:
    """Return a validator for a number that this version takes only as `value`."""

    def check(given: object) -> object:
        if isinstance(given, int) and not isinstance(given, bool) and given > value:
            refuse(f"{noun} are not available in this version: only {value} is")
        return given

    return BeforeValidator(check)


def choice(known: str, *later: str) -> Any:
    """Return a validator for a word, naming those of the contract that this version does not take."""

    def check(given: object) -> object:
        if isinstance(given, str) and given in later:
            refuse(f"`{given}` is not available in this version: only `{known}` is")
        return given

    return BeforeValidator(check)


Name = Annotated[str, Strict(), StringConstraints(pattern=NAME_PATTERN)]
Text = Annotated[str, Strict(), AfterValidator(_encodable)]
Int = Annotated[int, Strict()]
Bool = Annotated[bool, Strict()]
AbsolutePath = Annotated[Path, BeforeValidator(_check_path, json_schema_input_type=str)]
FileMode = Annotated[str, BeforeValidator(_check_mode, json_schema_input_type=str)]
Mac = Annotated[str, Strict(), AfterValidator(normalise_mac)]
UnicastMac = Annotated[Mac, AfterValidator(_unicast)]
Vid = Annotated[Int, Field(ge=0, le=0), only(0, "VLANs")]
Cpu = Annotated[Int, Field(ge=0, le=MAX_CPU)]
Listen = Annotated[str, Strict(), AfterValidator(_check_listen)]
Group = Annotated[str, Strict(), AfterValidator(_check_group)]
