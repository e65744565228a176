# SPDX-License-Identifier: Apache-2.0
"""Tokens and certificate of a running switch: from its start to their change at SIGHUP."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import ssl
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pvswitch.process import SwitchProcess, SwitchProcessError
from tests.system.conftest import running_switch
from tests.wire.lab import PATIENCE


def write_tokens(path: Path, token: str) -> None:
    path.write_text(f"reader read {hashlib.sha256(token.encode()).hexdigest()}\n")
    path.chmod(0o600)


def write_certificate(folder: Path) -> dict[str, str]:
    cert, key = str(folder / "tls.crt"), str(folder / "tls.key")
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9"]
    names = ["-subj", "/CN=switch", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*words, *names, "-out", cert, "-keyout", key], check=True, capture_output=True, timeout=20)
    return {"cert": cert, "key": key}


async def status(switch: SwitchProcess, token: str, cert: str) -> int:
    """What a client gets that trusts this certificate; 0 when it can't trust the switch."""
    match = re.search(r"listen=(127\.0\.0\.1:[1-9][0-9]*)", switch.log())
    assert match is not None, switch.log()
    trust = ssl.create_default_context(cafile=cert)
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session,
            session.get(f"https://{match[1]}/version", ssl=trust, headers=headers) as answer,
        ):
            return answer.status
    except aiohttp.ClientConnectorCertificateError:
        return 0


async def test_tokens_and_certificate_change_at_sighup(tmp_path: Path) -> None:
    tokens, tls = tmp_path / "tokens", write_certificate(tmp_path)
    write_tokens(tokens, "first")
    api: dict[str, Any] = {"listen": "127.0.0.1:0", "tokens_file": str(tokens), "tls": tls}
    async with running_switch({"api": api}) as switch:
        assert await status(switch, "first", tls["cert"]) == 200
        assert await status(switch, "second", tls["cert"]) == 401
        write_tokens(tokens, "second")
        write_certificate(tmp_path)
        assert await status(switch, "first", tls["cert"]) == 0, "not before it is told"
        os.kill(switch.pid, signal.SIGHUP)

        async def changed() -> bool:
            return await status(switch, "second", tls["cert"]) == 200

        await switch.wait_until(changed, "the new token and certificate", PATIENCE)
        assert await status(switch, "first", tls["cert"]) == 401
        tokens.chmod(0o644)
        os.kill(switch.pid, signal.SIGHUP)

        async def refused() -> bool:
            return "the old tokens and certificate stay" in switch.log()

        await switch.wait_until(refused, "the refusal in the log", PATIENCE)
        assert await status(switch, "second", tls["cert"]) == 200


async def test_a_tokens_file_of_no_use_ends_the_start(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    write_tokens(tokens, "first")
    tokens.chmod(0o644)
    switch = SwitchProcess({"api": {"listen": "127.0.0.1:0", "tokens_file": str(tokens)}})
    try:
        with pytest.raises(SwitchProcessError, match=r"chmod 640") as caught:
            await switch.start()
        assert switch.log().count("\n") == 1, caught.value
    finally:
        await switch.close()
