# SPDX-License-Identifier: Apache-2.0
"""A YAML file -> the model, every error at once with its line.

The file is composed into YAML nodes, which know their place, and turned into plain dicts, lists and
values here; what they mean is for `pvswitch.validation` to say. `load` is for whoever starts a
switch or checks a file; `read` for whoever sends a file elsewhere and places the answer in it.
Nothing in a file can take unbounded time or memory: size, depth and the values that aliases stand
for are limited.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pvswitch.errors import ConfigError, ConfigProblem, FieldError, InvalidDocument
from pvswitch.model import SwitchConfig
from pvswitch.validation import parse

MAX_BYTES = 8 << 20  # as the body of a request
MAX_VALUES = 1 << 18
MAX_DEPTH = 16

Loc = tuple[str | int, ...]
Place = tuple[int, int]

_TAG = "tag:yaml.org,2002:"
_SCALARS = ("null", "bool", "int", "float")
_SECTIONS = ("api", "datapath", "bridges", "ports")


@dataclass(frozen=True)
class Source:
    """A file that is well-formed YAML: its document, and where each value of it is."""

    path: Path
    document: dict[Any, Any]
    places: dict[Loc, Place]

    def problem(self, error: FieldError) -> ConfigProblem:
        """Return `error` with its line: that of its key, or of the nearest key around it."""
        for end in range(len(error.loc), 0, -1):
            if place := self.places.get(tuple(str(part) for part in error.loc[:end])):
                return ConfigProblem(*place, error.place, error.message)
        return ConfigProblem(1, 1, error.place, error.message)

    def error(self, error: InvalidDocument) -> ConfigError:
        """Return the errors of the document as errors of this file."""
        problems = [self.problem(item) for item in error.errors]
        if error.omitted:
            problems.append(ConfigProblem(0, 0, "", f"{error.omitted} more values are wrong: mend these first"))
        return ConfigError(str(self.path), problems)


def load(path: Path) -> SwitchConfig:
    """Return the configuration that a file describes; ConfigError with every error when it is none."""
    source = read(path)
    try:
        return parse(source.document)
    except InvalidDocument as error:
        raise source.error(error) from None


def read(path: Path) -> Source:
    """Return a file's document, not validated; ConfigError when it can't be read or is no YAML mapping."""
    text = _text(path)
    reader = _Reader(str(path))
    try:
        root = reader.yaml.compose(text)
        document = {} if root is None else reader.value(root, ())
    except RecursionError:
        raise reader.fail("is nested too deeply") from None
    except MarkedYAMLError as error:
        raise _syntax_error(str(path), error) from None
    except (YAMLError, ValueError) as error:  # ReaderError has no mark; ValueError: a number past int()'s digits
        raise reader.fail(f"is not valid YAML: {str(error).splitlines()[0]}") from None
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise reader.fail("must be a mapping of keys to values, like `ports: {vm1: {}}`", root)
    return Source(path, _without_empty_sections(document), reader.places)


def _text(path: Path) -> str:
    def fail(message: str, line: int = 0, column: int = 0) -> ConfigError:
        return ConfigError(str(path), [ConfigProblem(line, column, "", message)])

    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise fail(f"cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise fail(f"is larger than {MAX_BYTES >> 20} MiB")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise fail("is not UTF-8 text: save it as UTF-8", line, column) from None


def _syntax_error(path: str, error: MarkedYAMLError) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    message = " ".join(str(error.problem or error.context or "cannot be parsed").split())
    if "'\\t'" in message:
        message = "a tab cannot be used here: indent with spaces"
    elif "expected a single document" in str(error.context):
        message = "has more than one document: keep one, without a second `---`"
    return ConfigError(path, [ConfigProblem(line, column, "", f"is not valid YAML: {message}")])


def _without_empty_sections(document: dict[Any, Any]) -> dict[Any, Any]:
    """Return the document with `ports:` and `vm1:`, which YAML reads as null, as empty mappings."""
    for section in _SECTIONS:
        if section in document and document[section] is None:
            document[section] = {}
    for section in ("bridges", "ports"):
        if isinstance(entries := document.get(section), dict):
            document[section] = {name: {} if entry is None else entry for name, entry in entries.items()}
    return document


class _Reader:
    """Turns nodes into plain values, and remembers where they are."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.yaml = YAML(typ="safe", pure=True)
        self.places: dict[Loc, Place] = {}
        self.count = 0

    def fail(self, message: str, node: Node | None = None, loc: Loc = ()) -> ConfigError:
        line, column = _place(node) if node is not None else (0, 0)
        place = FieldError(loc, message).place
        return ConfigError(self.path, [ConfigProblem(line, column, place, message)])

    def value(self, node: Node, loc: Loc) -> Any:
        """Return what a node stands for; ConfigError where that is no plain value, or too much of it."""
        self.count += 1
        if self.count > MAX_VALUES:
            raise self.fail(f"stands for more than {MAX_VALUES} values: use fewer aliases", node, loc)
        if len(loc) > MAX_DEPTH:
            raise self.fail(f"is nested deeper than {MAX_DEPTH} levels", node)
        if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
            return self.mapping(node, loc)
        if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.item(item, (*loc, index)) for index, item in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            return self.scalar(node, loc)
        raise self.fail(f"the tag {node.tag} is not understood: leave it out", node, loc)

    def item(self, node: Node, loc: Loc) -> Any:
        self.places[_key(loc)] = _place(node)
        return self.value(node, loc)

    def mapping(self, node: MappingNode, loc: Loc) -> dict[Any, Any]:
        merged: dict[Any, Any] = {}
        own: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merged = {**self.merge(value_node, loc), **merged}
                continue
            if not isinstance(key_node, ScalarNode):
                raise self.fail("a key must be a single value", key_node, loc)
            key = self.scalar(key_node, loc)
            here = (*loc, str(key))
            if key in own:
                raise self.fail("is given twice: keep one", key_node, here)
            self.places[_key(here)] = _place(key_node)
            own[key] = self.value(value_node, here)
        return {**merged, **own}

    def merge(self, node: Node, loc: Loc) -> dict[Any, Any]:
        """Return what `<<: *anchor` brings in; its places are those of the anchor."""
        value = self.value(node, loc)
        sources = value if isinstance(value, list) else [value]
        merged: dict[Any, Any] = {}
        for source in sources:
            if not isinstance(source, dict):
                raise self.fail("`<<` takes a mapping, or a list of mappings", node, loc)
            merged = {**source, **merged}
        return merged

    def scalar(self, node: ScalarNode, loc: Loc) -> Any:
        kind = (node.tag or "").removeprefix(_TAG)
        if kind in ("str", "timestamp"):  # a date is text here
            return node.value
        if kind not in _SCALARS:
            raise self.fail(f"the tag {node.tag} is not understood: leave it out", node, loc)
        try:
            return self.yaml.constructor.construct_object(node)
        except (ConstructorError, ValueError, OverflowError):
            raise self.fail(f"is not a value of type {kind}", node, loc) from None


def _place(node: Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _key(loc: Loc) -> Loc:
    return tuple(str(part) for part in loc)
