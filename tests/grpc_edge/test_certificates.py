"""Certificates from files: what cannot be used, and what happens when the files change."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from grpc_edge import certificates
from grpc_edge.certificates import CertificateError, Files, WatchedCertificates, load
from tests.authorities import Authority

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {"certificate": "A_CERT", "key": "A_KEY", "authorities": "A_CA"}


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority, whose keys take a moment to make."""
    return Authority(tmp_path_factory.mktemp("authority"))


def encrypted(key: Path) -> bytes:
    """The key, with a passphrase."""
    loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"a passphrase"),
    )


def test_what_cannot_be_used_is_one_line_that_names_the_variable(
    signed: Authority, tmp_path: Path
) -> None:
    """And shows nothing of a key."""
    one, other = signed.issue("one"), signed.issue("other")
    text, locked, odd = tmp_path / "text", tmp_path / "locked", tmp_path / "odd"
    text.write_text("a text")
    locked.write_bytes(encrypted(one.key))
    odd.write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    absent = tmp_path / "absent"
    for files, variable, problem in (
        (Files(str(absent), str(one.key), "", NAMES), "A_CERT", "No such file"),
        (Files(str(tmp_path), str(one.key), "", NAMES), "A_CERT", "directory"),
        (Files(str(text), str(one.key), "", NAMES), "A_CERT", "holds no certificate"),
        (Files(str(one.certificate), str(text), "", NAMES), "A_KEY", "holds no private key"),
        (Files(str(one.certificate), str(locked), "", NAMES), "A_KEY", "is encrypted"),
        (Files(str(one.certificate), str(other.key), "", NAMES), "A_KEY", "is not the key of"),
        (Files(str(one.certificate), str(odd), "", NAMES), "A_KEY", "of a kind that gRPC cannot"),
        (Files("", "", str(text), NAMES), "A_CA", "holds no certificate"),
    ):
        with pytest.raises(CertificateError) as raised:
            load(files)
        message = str(raised.value)
        assert message.startswith(f"{variable}: ")
        assert problem in message
        assert "\n" not in message
        assert "PRIVATE" not in message


def test_a_certificate_and_its_key_belong_together() -> None:
    """One without the other is told by the name of the variable that is missing."""
    assert Files("one.pem", "", "", NAMES).lacking().startswith("A_KEY is not set")
    assert Files("", "one.key", "", NAMES).lacking().startswith("A_CERT is not set")
    assert not Files("one.pem", "one.key", "", NAMES).lacking()
    alone = Files("", "", "ca.pem", NAMES)
    assert not alone.lacking()
    assert alone.unused("authorities", "certificate").startswith("A_CERT is not set")


def test_a_key_is_in_no_repr(signed: Authority) -> None:
    """Also not that of a loaded certificate."""
    one = signed.issue("one")
    loaded = load(Files(str(one.certificate), str(one.key), str(one.authority)))
    assert loaded.key is not None
    assert loaded.key.decode().splitlines()[1] not in repr(loaded)


async def test_files_that_do_not_belong_together_change_nothing(
    signed: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """As in the middle of a renewal; the log says so once, and the renewal's end is seen."""
    caplog.set_level(logging.INFO)
    one = signed.issue("one")
    files = Files(str(one.certificate), str(one.key), "", NAMES)
    watched = await asyncio.to_thread(WatchedCertificates, files)
    before = watched.current
    assert not await watched.look()

    other = signed.issue("other")
    other.certificate.rename(one.certificate)
    assert [await watched.look() for _ in range(3)] == [False, False, False]
    assert watched.current is before
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert "A_KEY" in told[0].getMessage()

    other.key.rename(one.key)
    assert await watched.look()
    assert watched.current.chain == one.certificate.read_bytes()
    assert watched.current.key == one.key.read_bytes()


async def test_a_file_that_cannot_be_read_for_a_moment_is_read_again(
    signed: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may write the key as root, and give it away later: that does not change it."""
    one = signed.issue("one")
    watched = await asyncio.to_thread(
        WatchedCertificates, Files(str(one.certificate), str(one.key), "", NAMES)
    )
    signed.issue("one")
    read = certificates._read

    def refused(files: Files, name: str) -> bytes | None:
        raise files.wrong(name, "Permission denied")

    monkeypatch.setattr(certificates, "_read", refused)
    assert not await watched.look()
    monkeypatch.setattr(certificates, "_read", read)
    assert await watched.look()
    assert watched.current.key == one.key.read_bytes()


async def test_a_file_that_is_away_for_a_moment_changes_nothing(signed: Authority) -> None:
    """Some programs delete and write."""
    one = signed.issue("one")
    files = Files(str(one.certificate), str(one.key))
    watched = await asyncio.to_thread(WatchedCertificates, files)
    before = watched.current
    data = one.certificate.read_bytes()
    one.certificate.unlink()
    assert not await watched.look()
    one.certificate.write_bytes(data)
    assert not await watched.look()
    assert watched.current is before
