# SPDX-License-Identifier: Apache-2.0
"""What the commands share: the application, the words of their arguments, the client, KEY=VALUE, refusals in words.

Only the modules of this package use it. What takes long to import is imported where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pvswitch.cli import completion
from pvswitch.errors import FieldError, PvswitchError

if TYPE_CHECKING:
    from pvswitch.client import ApiError, AsyncClient, Client

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="pvswitch",
    help="A virtual switch for VM labs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)


class Form(StrEnum):
    """How something is shown."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def one_of(words: type[StrEnum]) -> str:
    """Return the metavar of an argument or an option that takes one of these words."""
    return "|".join(words)


@dataclass(frozen=True)
class Options:
    """The global options."""

    api: str | None = None
    token_file: Path | None = None
    ca: Path | None = None
    may_exist: bool = False
    if_exists: bool = False


Context = typer.Context
NewName = Annotated[str, typer.Argument(metavar="NAME")]
PortName = Annotated[str, typer.Argument(metavar="NAME", autocompletion=completion.ports)]
BridgeName = Annotated[str, typer.Argument(metavar="BRIDGE", autocompletion=completion.bridges)]
OnPort = Annotated[str, typer.Argument(metavar="PORT", autocompletion=completion.ports)]
MacAddress = Annotated[str, typer.Argument(metavar="MAC")]
Vid = Annotated[int, typer.Option(help="VLAN ID", min=0, max=4094)]
Format = Annotated[Form, typer.Option("-f", "-o", "--format", metavar=one_of(Form), help="json and yaml are stable")]


def usage(message: str) -> NoReturn:
    """End with status 2 and this message."""
    raise typer.BadParameter(message)


def options(context: Context) -> Options:
    """Return the global options."""
    given = context.find_root().obj
    return given if isinstance(given, Options) else Options()


def client(context: Context) -> Client:
    """Return a client of the switch that the global options name; it is closed when the command ends."""
    from pvswitch.client import Client

    given = options(context)
    made = Client(given.api, token=_token(given.token_file), ca=given.ca)
    context.find_root().call_on_close(made.close)
    return made


def async_client(context: Context) -> AsyncClient:
    """Return the same for a command with an event loop of its own, which closes it."""
    from pvswitch.client import AsyncClient

    given = options(context)
    return AsyncClient(given.api, token=_token(given.token_file), ca=given.ca)


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise PvswitchError(f"{file} cannot be read: {reason}") from None
    if not token or len(token.split()) != 1:
        raise PvswitchError(f"{file} must have one token and nothing else")
    return token


# ---- refusals ----


def words(error: ApiError) -> str:
    """Return a refusal in one line; one line for each value where several are wrong."""
    if error.status == 412:
        return "somebody else has changed the configuration meanwhile; nothing was changed: repeat the command"
    if error.status != 422 or len(error.errors) < 2:
        return str(error)
    lines = []
    for item in error.errors:
        place = field_error(item).place
        lines.append(f"{place}: {item['detail']}" if place else str(item["detail"]))
    return "\n".join(lines)


def field_error(item: dict[str, Any]) -> FieldError:
    """Return an error of the API with its JSON pointer as a place."""
    parts = str(item["pointer"]).removeprefix("#").split("/")[1:]
    names = [part.replace("~1", "/").replace("~0", "~") for part in parts]
    loc = [int(name) if name.isdigit() and i > 1 else name for i, name in enumerate(names)]  # .fdb[0]
    return FieldError(tuple(loc), str(item["detail"]))


# ---- KEY=VALUE ----


def settings(given: Collection[str], lists: Collection[str] = ()) -> dict[str, Any]:
    """Return settings like "mtu=9000", "labels.rack=a1", "mtu=" (the default again) as a merge patch (RFC 7396).

    A value is JSON where it is some (9000, true, {...}), else text. A key among `lists` takes values with commas
    between them.
    """
    patch: dict[str, Any] = {}
    for setting in given:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            usage(f"{setting!r} must be KEY=VALUE, like mtu=9000 or features.indirect=false")
        *path, last = key.split(".", 1)  # a label's name may have dots
        here = patch
        for part in path:
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                usage(f"{part!r} has no keys of its own")
        if text == "":
            here[last] = None
        elif path == ["labels"]:
            here[last] = text
        else:
            here[last] = _values(text) if key in lists else _value(text)
    return patch


def new_settings(given: Collection[str], lists: Collection[str] = ()) -> dict[str, Any]:
    """Return settings of something new: what is the default again is left out."""
    return _without_defaults(settings(given, lists))


def _without_defaults(patch: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_defaults(value) if isinstance(value, dict) else value
        for key, value in patch.items()
        if value is not None
    }


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _values(text: str) -> Any:
    return _value(text) if text.startswith("[") else [_value(part.strip()) for part in text.split(",")]
