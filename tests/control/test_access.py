# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ASYNC240 (a look at a file between two awaits holds nobody up here; what is waited for is asked)
"""Who may use the API: tokens and roles on TCP, TLS, the audit line, and the limits."""

from __future__ import annotations

import hashlib
import os
import ssl
import subprocess
import warnings
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from pvswitch.api import tokens
from pvswitch.api.access import FAILURE_SECONDS, MAX_ADDRESSES, MAX_FAILURES, Failures
from pvswitch.api.tls import Tls
from pvswitch.errors import PvswitchError
from tests.control.served import Start

V1 = "/api/v1"
READER, WRITER = "r" * 64, "w" * 64


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# who may\nscraper read {digest(READER)}\n\nci write {digest(WRITER).upper()} # the pipeline\n")
    path.chmod(0o640)
    return path


# ---- tokens ----


async def test_a_token_says_who_asks_and_what_they_may(start: Start, tokens_file: Path) -> None:
    api = await start(tokens_file)
    status, body, headers = await api.ask("GET", f"{V1}/ports")
    assert (status, body["type"], headers["WWW-Authenticate"]) == (
        401,
        "/problems/unauthorized",
        'Bearer realm="pvswitch"',
    )
    status, _, headers = await api.ask("GET", f"{V1}/ports", headers=bearer("x" * 64))
    assert status == 401
    assert "invalid_token" in headers["WWW-Authenticate"]
    for scheme in ("Basic", "Bear"):
        assert (await api.ask("GET", f"{V1}/ports", headers={"Authorization": f"{scheme} {WRITER}"}))[0] == 401
    assert (await api.ask("GET", f"{V1}/ports", headers={"Authorization": f"bearer {READER}"}))[0] == 200
    status, body, _ = await api.ask("DELETE", f"{V1}/ports/vm1", headers=bearer(READER))
    assert status == 403
    assert "token scraper" in body["detail"]
    assert "vm1" in api.dataplane.config.ports
    assert (await api.ask("DELETE", f"{V1}/ports/vm1", headers=bearer(WRITER)))[0] == 204


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/openapi.json", "/version", "/nowhere", f"{V1}/events"])
async def test_everything_with_data_needs_a_token(start: Start, tokens_file: Path, path: str) -> None:
    api = await start(tokens_file)
    assert (await api.ask("GET", path))[0] == 401
    assert (await api.ask("POST", path))[0] == 401


@pytest.mark.parametrize("path", ["/", "/docs", "/static/docs.js", "/static/style.css"])
async def test_pages_without_data_need_none(start: Start, tokens_file: Path, path: str) -> None:
    api = await start(tokens_file)
    status, _, headers = await api.ask("GET", path)
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert (await api.ask("POST", path))[0] in (401, 403)


async def test_the_unix_socket_needs_none(start: Start, tokens_file: Path) -> None:
    api = await start(tokens_file)
    assert (await api.ask("DELETE", f"{V1}/ports/vm1", unix=True))[0] == 204


async def test_a_token_passes_under_any_name_of_the_host(start: Start, tokens_file: Path) -> None:
    """What guards a loopback port without tokens against pages of other sites would be in the way here."""
    api = await start(tokens_file)
    headers = {**bearer(READER), "Host": "switch.example.org", "Origin": "https://switch.example.org"}
    assert (await api.ask("GET", f"{V1}/ports", headers=headers))[0] == 200


async def test_tokens_are_read_again(start: Start, tokens_file: Path) -> None:
    api = await start(tokens_file)
    tokens_file.write_text(f"other read {digest('o' * 64)}\n")
    api.access.reload()
    assert (await api.ask("GET", f"{V1}/ports", headers=bearer(READER)))[0] == 401
    assert (await api.ask("GET", f"{V1}/ports", headers=bearer("o" * 64)))[0] == 200
    tokens_file.write_text("nonsense\n")
    with pytest.raises(PvswitchError, match=":1: must have three words"):
        api.access.reload()
    assert (await api.ask("GET", f"{V1}/ports", headers=bearer("o" * 64)))[0] == 200


async def test_wrong_tokens_in_a_row_are_too_many(start: Start, tokens_file: Path) -> None:
    api = await start(tokens_file)
    for _ in range(MAX_FAILURES):
        assert (await api.ask("GET", f"{V1}/ports", headers=bearer("x")))[0] == 401
    status, _, headers = await api.ask("GET", f"{V1}/ports", headers=bearer(WRITER))
    assert status == 429
    assert 1 <= int(headers["Retry-After"]) <= FAILURE_SECONDS + 1
    assert (await api.ask("GET", f"{V1}/ports", unix=True))[0] == 200


def test_failures_are_forgotten_with_time_and_bounded() -> None:
    failures = Failures()
    for _ in range(MAX_FAILURES):
        assert failures.wait("10.0.0.1", 0.0) == 0
        failures.note("10.0.0.1", 0.0)
    assert failures.wait("10.0.0.1", 0.0) == FAILURE_SECONDS
    assert failures.wait("10.0.0.2", 0.0) == 0
    assert failures.wait("10.0.0.1", FAILURE_SECONDS) == 0
    failures.note("10.0.0.1", FAILURE_SECONDS)
    assert failures.wait("10.0.0.1", FAILURE_SECONDS) > 0
    for host in range(MAX_FAILURES):
        failures.note(f"2001:db8::{host + 1}", 0.0)
    assert failures.wait("2001:db8::ffff:1", 0.0) > 0, "one client has a whole /64"
    assert failures.wait("2001:db8:0:1::1", 0.0) == 0
    for number in range(2 * MAX_ADDRESSES):
        failures.note(f"10.1.{number // 256}.{number % 256}", 0.0)
    assert len(failures._full_until) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ci write", r":1: must have three words"),
        ("ci write abc\n", r":1: the SHA-256 of 'ci' must have 64"),
        (f"\nci admin {'0' * 64}\n", r":2: the role of 'ci' must be read or write"),
        (f"-ci read {'0' * 64}\n", r":1: the name must be"),
        (f"ci read {'0' * 64}\nci read {'1' * 64}\n", r":2: 'ci' is there twice"),
        (f"a read {'0' * 64}\nb read {'0' * 64}\n", r":2: 'b' has the token of another"),
        ("x\n" * 9, "and 4 more lines are wrong"),
        ("\xff\x00\n", r":1: must have three words"),
        ("#" * (1 << 20) + "\n", "larger than 1 MiB"),
    ],
)
def test_wrong_lines(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    with pytest.raises(PvswitchError, match=message):
        tokens.read(path)


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604, 0o622, 0o666])
def test_a_file_open_to_others_is_refused(tokens_file: Path, mode: int) -> None:
    tokens_file.chmod(mode)
    with pytest.raises(PvswitchError, match="chmod 640"):
        tokens.read(tokens_file)


def test_files_that_are_none_or_of_somebody_else(tokens_file: Path, tmp_path: Path) -> None:
    with pytest.raises(PvswitchError, match="No such file"):
        tokens.read(tmp_path / "missing")
    with pytest.raises(PvswitchError, match="directory"):
        tokens.read(tmp_path)
    if os.geteuid() == 0:
        os.chown(tokens_file, 12345, -1)
        with pytest.raises(PvswitchError, match="belongs to user 12345"):
            tokens.read(tokens_file)


def test_the_documented_line_makes_a_token(tmp_path: Path) -> None:
    """The shell lines of docs/configuration.md, run as they stand there."""
    text = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
    lines = text.split("<!-- make a token -->\n```sh\n")[1].split("```")[0]
    script = lines.replace("/etc/pvswitch/tokens", str(tmp_path / "tokens"))
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True, timeout=20)
    token = done.stdout.strip()
    assert len(token) == 64
    found = tokens.read(tmp_path / "tokens").find(token)
    assert found is not None
    assert (found.name, found.role) == ("ci", "write")


# ---- TLS ----


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    days = ["-days", "30"]
    subprocess.run(
        [*words, "-keyout", str(key), "-out", str(cert), *subject, *days],
        check=True,
        capture_output=True,
        timeout=20,
    )
    return cert, key


def expired_certificate(folder: Path) -> tuple[Path, Path]:
    """One of long ago: only `openssl ca` takes dates of any age."""
    key, request, cert = folder / "expired.key", folder / "expired.csr", folder / "expired.crt"
    config = folder / "ca.cnf"
    (folder / "index").touch()
    config.write_text(
        f"[ca]\ndefault_ca = all\n[all]\ndatabase = {folder}/index\nrand_serial = yes\nnew_certs_dir = {folder}\n"
        "default_md = sha256\npolicy = any\n[any]\ncommonName = supplied\n"
    )
    make = [
        "openssl",
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=localhost",
    ]
    sign = ["openssl", "ca", "-selfsign", "-batch", "-config", str(config), "-keyfile", str(key), "-in", str(request)]
    dates = ["-startdate", "20200101000000Z", "-enddate", "20200201000000Z"]
    for words in ([*make, "-keyout", str(key), "-out", str(request)], [*sign, "-out", str(cert), *dates]):
        subprocess.run(words, check=True, capture_output=True, timeout=20)
    return cert, key


def trusting(cert: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(cert))


async def test_tls_and_its_reload(start: Start, tokens_file: Path, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "tls")
    tls = Tls(cert, key)
    api = await start(tokens_file, tls)
    old = trusting(cert)
    options: dict[str, Any] = {"scheme": "https", "headers": bearer(READER)}
    assert (await api.ask("GET", f"{V1}/ports", ssl=old, **options))[0] == 200
    with pytest.raises(aiohttp.ClientError):
        await api.ask("GET", f"{V1}/ports", headers=bearer(READER))
    certificate(tmp_path, "tls")
    tls.reload()
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await api.ask("GET", f"{V1}/ports", ssl=old, **options)
    new = trusting(cert)
    assert (await api.ask("GET", f"{V1}/ports", ssl=new, **options))[0] == 200
    cert.write_text("nonsense")
    with pytest.raises(PvswitchError, match="in PEM"):
        tls.reload()
    assert (await api.ask("GET", f"{V1}/ports", ssl=new, **options))[0] == 200


async def test_old_versions_of_tls_are_refused(start: Start, tokens_file: Path, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "tls")
    api = await start(tokens_file, Tls(cert, key))
    client = trusting(cert)
    client.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):
        client.minimum_version = ssl.TLSVersion.TLSv1
        client.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(aiohttp.ClientConnectorError):
        await api.ask("GET", "/healthz", scheme="https", ssl=client)


def test_certificates_of_no_use(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "one")
    _, other = certificate(tmp_path, "two")
    with pytest.raises(PvswitchError, match="is not the key of"):
        Tls(cert, other)
    with pytest.raises(PvswitchError, match=r"api\.tls\.key: .* can't be read: No such file"):
        Tls(cert, tmp_path / "missing")
    with pytest.raises(PvswitchError, match="in PEM"):
        Tls(key, key)
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", str(key), "-out", str(locked), "-passout", "pass:x"],
        check=True,
        capture_output=True,
        timeout=20,
    )
    with pytest.raises(PvswitchError, match="behind a password"):
        Tls(cert, locked)
    with cert.open("a") as file:  # a server doesn't look at it, a client would
        file.write("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")
    Tls(cert, key)


def test_an_expired_certificate_is_a_warning(tmp_path: Path) -> None:
    with capture_logs() as logs:
        Tls(*certificate(tmp_path, "good"))
        assert logs == []
        Tls(*expired_certificate(tmp_path))
    assert [(entry["log_level"], entry["event"]) for entry in logs] == [
        ("warning", "the certificate has expired: clients will refuse it")
    ]


# ---- the audit line ----


async def test_one_line_for_each_change_and_each_refusal(start: Start, tokens_file: Path) -> None:
    api = await start(tokens_file)
    with capture_logs() as logs:
        await api.ask("GET", f"{V1}/ports", unix=True)
        await api.ask("GET", f"{V1}/ports", headers=bearer(READER))
    assert logs == []
    with capture_logs() as logs:
        await api.ask("PUT", f"{V1}/ports/vm9", unix=True, json={})
        await api.ask("DELETE", f"{V1}/ports/vm9?x=%0a", headers=bearer(WRITER))
        await api.ask("DELETE", f"{V1}/ports/vm9%0aforged", headers=bearer(WRITER))
        await api.ask("DELETE", f"{V1}/ports/vm9", headers=bearer(READER))
        await api.ask("GET", f"{V1}/ports", headers=bearer("wrong"))
    lines = [entry for entry in logs if entry["event"] == "request"]
    assert len(lines) == 5
    own = {key: lines[0][key] for key in ("uid", "pid", "method", "path", "status")}
    assert own == {"uid": os.geteuid(), "pid": os.getpid(), "method": "PUT", "path": f"{V1}/ports/vm9", "status": 201}
    assert len(lines[0]["etag"]) == 32
    assert lines[0]["ms"] > 0
    assert [line["status"] for line in lines] == [201, 422, 404, 403, 401]
    assert [line.get("token") for line in lines] == [None, "ci", "ci", "scraper", None]
    assert {line["remote"] for line in lines[1:]} == {"127.0.0.1"}
    assert not any("\n" in str(value) for line in lines for value in line.values())
    assert not any(WRITER in str(line) or digest(WRITER) in str(line) for line in lines)


async def test_a_revision_says_who_made_it(start: Start, tokens_file: Path) -> None:
    api = await start(tokens_file)
    await api.ask("PUT", f"{V1}/ports/vm9", headers=bearer(WRITER), json={})
    await api.ask("DELETE", f"{V1}/ports/vm9", unix=True)
    _, body, _ = await api.ask("GET", f"{V1}/config/revisions", unix=True)
    actors = [item["actor"] for item in body["items"]]
    assert "token ci at 127.0.0.1" in actors
    assert any(actor.endswith(f"(uid {os.geteuid()}, pid {os.getpid()})") for actor in actors)
