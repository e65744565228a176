# SPDX-License-Identifier: Apache-2.0
"""Configuration files: every error with its line, and nothing in a file can hurt."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvswitch.config import MAX_BYTES, load, read
from pvswitch.errors import ConfigError, ConfigProblem
from tests.control.malformed import MALFORMED

CONFIGS = Path(__file__).parents[2] / "configs"


def problems(path: Path, text: str | bytes) -> tuple[ConfigProblem, ...]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load(path)
    return caught.value.problems


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lab.yaml"


@pytest.mark.parametrize("example", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid(example: Path) -> None:
    assert load(example).ports


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "ports:\nbridges:\n"])
def test_an_empty_file_is_all_defaults(path: Path, text: str) -> None:
    path.write_text(text)
    config = load(path)
    assert list(config.bridges) == ["br0"]
    assert not config.ports


def test_empty_entries_are_defaults(path: Path) -> None:
    path.write_text("ports:\n  vm1:\n  vm2: {mtu: 9000}\nbridges:\n  lan:\n")
    config = load(path)
    assert config.port_bridge("vm1") == "lan"
    assert config.ports["vm2"].mtu == 9000


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_files_name_every_place(path: Path, what: str) -> None:
    document, places, _ = MALFORMED[what]
    assert [problem.place for problem in problems(path, json.dumps(document))] == places


def test_every_error_has_its_line(path: Path) -> None:
    text = "bridges:\n  a: {}\n  b: {}\nports:\n  vm1:\n    mtu: big\n    mtuu: 1\n  vm2: {bridge: a, tag: 5000}\n"
    found = [(problem.line, problem.column, problem.place) for problem in problems(path, text)]
    assert found == [
        (6, 5, "ports.vm1.mtu"),
        (7, 5, "ports.vm1.mtuu"),
        (5, 3, "ports.vm1.bridge"),
        (8, 20, "ports.vm2.tag"),
    ]


def test_the_text_of_an_error_is_one_line_each(path: Path) -> None:
    path.write_text("ports: {vm1: {mtu: 1, tag: 0}}\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}:1:15: ports.vm1.mtu: must be at least 68"
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("- a\n", 1, "mapping"),
        ("just text\n", 1, "mapping"),
        ("ports:\n\tvm1: {}\n", 2, "tab"),
        ("ports:\n  vm1: {}\n  vm1: {}\n", 3, "twice"),
        ("ports: {\n", 2, "not valid YAML"),
        ("ports: 'x\n", 2, "not valid YAML"),
        ("a: *nowhere\n", 1, "alias"),
        ("{}\n--- {}\n", 2, "more than one document"),
        ("ports: !!python/object:os.system {}\n", 1, "tag"),
        ("ports: !x y\n", 1, "tag"),
        ("? [a]\n: b\n", 1, "key"),
        ("ports: {vm1: {mtu: !!int abc}}\n", 1, "type int"),
        ("ports: {vm1: {<<: 5}}\n", 1, "<<"),
        (b"ports:\n  vm1: {labels: {a: \xe4}}\n", 2, "UTF-8"),
        (b"\xff\xfep\x00", 1, "UTF-8"),
        ("ports: \x00\n", 0, "not valid YAML"),
        ("ports: &a {vm1: *a}\n", 1, "nested"),
        ("[" * 2000, 0, "nested"),
        ("ports: {vm1: {mtu: " + "9" * 5000 + "}}\n", 1, "type int"),
    ],
)
def test_what_is_no_document_is_one_clear_error(path: Path, text: str | bytes, line: int, message: str) -> None:
    (problem,) = problems(path, text)
    assert problem.line == line
    assert message in problem.message
    assert "\n" not in problem.message


def test_aliases_cannot_multiply_without_end(path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (problem,) = problems(path, "\n".join(lines))
    assert "aliases" in problem.message


def test_merge_keys_give_defaults_to_several_ports(path: Path) -> None:
    path.write_text("ports:\n  vm1: &jumbo {mtu: 9000}\n  vm2: {<<: *jumbo}\n  vm3: {<<: [*jumbo], mtu: 1400}\n")
    assert [port.mtu for port in load(path).ports.values()] == [9000, 9000, 1400]


def test_a_byte_order_mark_is_allowed(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfports: {vm1: {}}\n")
    assert "vm1" in load(path).ports


def test_a_file_that_is_too_large(path: Path) -> None:
    (problem,) = problems(path, b"#" * (MAX_BYTES + 1))
    assert "8 MiB" in problem.message


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / name)


@given(st.binary(max_size=200) | st.text(alphabet=" \n\t:-[]{}&*!|>'\"%#,a1<", max_size=60).map(str.encode))
def test_no_bytes_can_do_more_than_be_refused(raw: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(raw)
        file.flush()
        with contextlib.suppress(ConfigError):
            read(Path(file.name))
