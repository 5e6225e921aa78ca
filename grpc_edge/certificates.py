"""Certificates from PEM files, read again when the files change.

Whoever renews certificates (cert-manager, a cron job) writes the files anew; nothing has to be
restarted. Files that do not belong together, as in the middle of a renewal, change nothing: the
certificates that were loaded before stay in use, and the log says so.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

_log = logging.getLogger(__name__)

#: How often the files are looked at, in s.
LOOK = 1.0
#: How often the log says that new files cannot be used, in s.
TELL_EVERY = 3600.0


class CertificateError(Exception):
    """A file cannot be used; the message is one line that names its variable and the file, and
    contains nothing of a key.
    """


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of PEM files, each with the variable that named it. Empty: there is none."""

    certificate: str = ""
    """A certificate, followed by its intermediate ones."""
    key: str = ""
    """The certificate's private key, without a passphrase."""
    authorities: str = ""
    """The certificates of those who may have signed the peer's certificate."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Field name → the environment variable that set it, for messages."""

    def path(self, name: str) -> str:
        """The path of a field. Raises KeyError for another name."""
        return {"certificate": self.certificate, "key": self.key, "authorities": self.authorities}[
            name
        ]

    def lacking(self) -> str:
        """Why these files are not enough to begin with: one line, or an empty text."""
        for name, other in (("certificate", "key"), ("key", "certificate")):
            if self.path(name) and not self.path(other):
                return (
                    f"{self.variables[other]} is not set: {self.variables[name]} needs it, as a "
                    "certificate and its key belong together"
                )
        return ""

    def unused(self, name: str, other: str) -> str:
        """Why a file has no use without another one: one line, or an empty text if it has one."""
        if not self.path(name) or self.path(other):
            return ""
        return (
            f"{self.variables[other]} is not set: without it {self.variables[name]} has no use, "
            "and everything goes in plain text"
        )

    def wrong(self, name: str, problem: str) -> CertificateError:
        """The error about the file of a field."""
        return CertificateError(f"{self.variables.get(name, name)}: {self.path(name)}: {problem}")


#: The variable of each file of a service's own certificate.
SERVER_VARIABLES = {
    "certificate": "ROOST_TLS_CERT",
    "key": "ROOST_TLS_KEY",
    "authorities": "ROOST_TLS_CLIENT_CA",
}


def server_files(certificate: str, key: str, authorities: str) -> Files:
    """The files of a service's own certificate, and of the authorities of its clients'."""
    return Files(certificate, key, authorities, SERVER_VARIABLES)


@dataclass(frozen=True, slots=True)
class Certificates:
    """What the files hold, in PEM. None: there is no such file."""

    chain: bytes | None
    key: bytes | None = field(repr=False)
    authorities: bytes | None
    ends: datetime | None
    """When the certificate ends."""


def load(files: Files) -> Certificates:
    """Read the files and check that the key is the certificate's. Raises CertificateError."""
    # Imported here: a service without TLS does not need it, and it takes 5 MB.
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    read = {name: _read(files, name) for name in ("certificate", "key", "authorities")}

    def certificates(name: str) -> list[x509.Certificate]:
        data = read[name]
        if data is None:
            return []
        try:
            return x509.load_pem_x509_certificates(data)
        except ValueError:
            raise files.wrong(name, "holds no certificate in PEM form") from None

    own, _ = certificates("certificate"), certificates("authorities")
    if own and read["key"]:
        try:
            key = serialization.load_pem_private_key(read["key"], password=None)
        except TypeError:
            raise files.wrong("key", "is encrypted; a key without a passphrase is needed") from None
        except (ValueError, UnsupportedAlgorithm):
            raise files.wrong("key", "holds no private key in PEM form") from None
        if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
            raise files.wrong("key", "is of a kind that gRPC cannot use: RSA or ECDSA is needed")
        form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        try:
            certified = own[0].public_key().public_bytes(*form)
        except (ValueError, UnsupportedAlgorithm):
            raise files.wrong("certificate", "is for a kind of key that is not known") from None
        if certified != key.public_key().public_bytes(*form):
            raise files.wrong("key", f"is not the key of the certificate in {files.certificate}")
    return Certificates(
        chain=read["certificate"],
        key=read["key"],
        authorities=read["authorities"],
        ends=own[0].not_valid_after_utc if own else None,
    )


class WatchedCertificates:
    """The certificates of some files, as they are now."""

    def __init__(self, files: Files) -> None:
        """Load the files. Raises CertificateError."""
        self._files = files
        self._seen = _state(files)
        self.current = load(files)
        self._failure, self._tell_at = "", 0.0
        self._tell()

    async def run(self, changed: Callable[[], None]) -> None:
        """Look at the files for ever; call `changed` after `current` has become another one."""
        while True:
            await asyncio.sleep(LOOK)
            try:
                if await self.look():
                    changed()
            except Exception:  # noqa: BLE001  # without this task a certificate would run out unnoticed
                _log.exception("looking for new certificates", extra={"action": "certificates"})

    async def look(self) -> bool:
        """Read the files again if they have changed. Whether `current` is another one now."""
        state = await asyncio.to_thread(_state, self._files)
        if state == self._seen:
            return False
        try:
            loaded = await asyncio.to_thread(load, self._files)
        except CertificateError as error:
            # Not noted as seen: a file may become readable without being written again.
            self._tell_failure(str(error))
            return False
        # A file that changed while it was read has another state at the next look.
        self._seen, self._failure = state, ""
        if loaded == self.current:
            return False
        self.current = loaded
        self._tell()
        return True

    def _tell_failure(self, failure: str) -> None:
        """Say why new files are not used: at once, and again while that lasts."""
        if failure == self._failure and monotonic() < self._tell_at:
            return
        self._failure, self._tell_at = failure, monotonic() + TELL_EVERY
        _log.warning(
            "the certificates that were loaded before stay in use: %s",
            failure,
            extra={"action": "certificates"},
        )

    def _tell(self) -> None:
        """Say which certificate is in use now, and until when peers will take it."""
        if self.current.ends is not None:
            _log.info(
                "the certificate in %s is in use; it ends at %s",
                self._files.certificate,
                self.current.ends.isoformat(),
                extra={"action": "certificates"},
            )


def _read(files: Files, name: str) -> bytes | None:
    path = files.path(name)
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise files.wrong(name, error.strerror or "cannot be read") from None


def _state(files: Files) -> tuple[tuple[int, int, int] | None, ...]:
    """Changes when one of the files does. A renamed folder of links, as Kubernetes' volumes have,
    changes the file that a path leads to.
    """
    states = []
    for path in (files.certificate, files.key, files.authorities):
        try:
            found = Path(path).stat() if path else None
        except OSError:
            found = None
        states.append(found and (found.st_ino, found.st_mtime_ns, found.st_size))
    return tuple(states)
