# SPDX-License-Identifier: Apache-2.0
"""Who may import the compiled modules, which import-linter cannot see."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pvswitch"


def importers(module: str) -> set[str]:
    """Return the files of the package that import pvswitch.`module` in any form."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module or ''}.{name}" for name in names] + [node.module or ""]
            if any(module in name.split(".") for name in names):
                found.add(path.relative_to(PACKAGE).as_posix())
    return found


@pytest.mark.parametrize(("module", "door"), [("_native", "datapath/core.py"), ("_driver", "driver.py")])
def test_each_compiled_module_has_one_door(module: str, door: str) -> None:
    assert importers(module) == {door}
