"""Certificate authorities for tests, and the files of certificates that they have signed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import trustme

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """The files of a certificate and its key, and of the authority that signed it."""

    certificate: Path
    key: Path
    authority: Path

    def credentials(self) -> grpc.ChannelCredentials:
        """Of a client that shows this certificate, and trusts its authority."""
        return grpc.ssl_channel_credentials(
            self.authority.read_bytes(), self.key.read_bytes(), self.certificate.read_bytes()
        )


@dataclass(frozen=True)
class Authority:
    """A certificate authority with a folder for the files."""

    folder: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    def issue(self, name: str) -> Pair:
        """Issue a certificate for this machine; the files are written anew if there are any."""
        self.folder.mkdir(exist_ok=True)
        made = self.ca.issue_cert("127.0.0.1", "localhost", common_name=name)
        files = {
            "pem": b"".join(part.bytes() for part in made.cert_chain_pems),
            "key": made.private_key_pem.bytes(),
            "ca": self.ca.cert_pem.bytes(),
        }
        for kind, data in files.items():
            # As programs that renew certificates do: no reader sees half a file.
            written = self.folder / f"{name}.{kind}.new"
            written.write_bytes(data)
            written.rename(self.folder / f"{name}.{kind}")
        return Pair(*(self.folder / f"{name}.{kind}" for kind in files))
