# SPDX-License-Identifier: Apache-2.0
"""TLS for the API's TCP port: a certificate and its key, looked at before anybody connects, and read again at SIGHUP.

`Tls` holds the SSLContext of the next connection; `reload` puts another in its place once that has proved good. A
pair is tried out in memory, client against server, before it is used: that shows in one step whether the two belong
together, are readable without a password, and are within their dates. `api.server` serves with it, the daemon reloads.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from pvswitch.errors import PvswitchError

_log = structlog.get_logger(__name__)

_DATES = {9: "is not valid yet", 10: "has expired"}  # X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED of OpenSSL


class Tls:
    """A certificate and its key."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Read both files; PvswitchError when they are of no use."""
        self._cert, self._key = cert, key
        self.context = self._load()

    def reload(self) -> None:
        """Read the files again; PvswitchError, and the old pair stays, when they are of no use."""
        self.context = self._load()

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for name, path in (("cert", self._cert), ("key", self._key)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise PvswitchError(f"api.tls.{name}: {path} can't be read: {error.strerror}") from error
        try:
            context.load_cert_chain(self._cert, self._key, password=self._refuse_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                message = f"api.tls: {self._key} is not the key of {self._cert}: name the two that belong together"
            else:
                reason = str(error.reason or error).lower().replace("_", " ")
                message = f"api.tls: {self._cert} and {self._key} are not a certificate and its key in PEM ({reason})"
            raise PvswitchError(message) from error
        if (fault := _date_fault(context, self._cert)) is not None:
            _log.warning(f"the certificate {fault}: clients will refuse it", file=str(self._cert))
        return context

    def _refuse_password(self) -> str:
        raise PvswitchError(f"api.tls.key: {self._key} is behind a password: store it without one")


def _date_fault(server: ssl.SSLContext, cert: Path) -> str | None:
    """Return what is wrong with the certificate's dates, by a handshake in memory with a client that trusts it."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        client.load_verify_locations(cert)
    except ssl.SSLError:  # what stands beside the certificate is not for a client to trust
        return None
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for turn in range(8):
        try:
            ends[turn % 2].do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return _DATES.get(error.verify_code)
        except ssl.SSLError:
            return None
    return None
