# SPDX-License-Identifier: Apache-2.0
"""The examples in README and docs/ are true: configurations are valid, commands work on a running switch."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pvswitch.datapath import DROP_REASONS
from pvswitch.process import SwitchProcess
from pvswitch.state import LinkReason
from pvswitch.validation import parse

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
LONG = {"run", "demo", "bench"}  # tested by themselves


def blocks(page: Path, language: str) -> list[str]:
    pattern = rf"^(?P<indent> *)```{language}\n(?P<body>.*?)^(?P=indent)```"
    found = re.finditer(pattern, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{m['indent']}", "", m["body"], flags=re.MULTILINE) for m in found]


def unfolded(block: str) -> list[str]:
    """The lines of a block, continued ones as one."""
    return block.replace("\\\n", " ").splitlines()


def commands() -> list[list[str]]:
    """Every `pvswitch ...` line of the shell examples, but for those that don't end soon."""
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in unfolded(block)]
    words = [shlex.split(line, comments=True) for line in lines]
    return [w[1:] for w in words if w[:1] == ["pvswitch"] and w[1] not in LONG]


def readme_config() -> object:
    (body,) = blocks(ROOT / "README.md", "yaml")
    return YAML(typ="safe").load(body)


def test_there_is_something_to_test() -> None:
    assert len(commands()) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_are_valid(page: Path) -> None:
    for body in blocks(page, "yaml"):
        parse(YAML(typ="safe").load(body))


def test_every_reason_is_explained() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert set(named) == {*LinkReason, *DROP_REASONS} - {"none"}


async def test_commands_work_on_a_running_switch(tmp_path: Path) -> None:
    lab = tmp_path / "lab.yaml"
    async with SwitchProcess(readme_config()) as switch:  # type: ignore[arg-type]
        lab.write_text(switch.config_file.read_text())
        for words in commands():
            words = [str(lab) if word == "lab.yaml" else word for word in words]
            if "--watch" in words:
                continue
            await switch.cli(*words)
