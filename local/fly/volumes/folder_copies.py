"""Copies of folders, for snapshots, restores and forks of volumes."""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path


def copy_folder(source: Path, target: Path) -> None:
    """Copy all files below `source`; `target` appears complete or not at all.

    A guest may write to the folder meanwhile: files that disappear during the copy are left out.
    So are sockets, pipes and devices, because to read them could block.
    """
    partial = target.with_name(target.name + ".new")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for folder, folders, files in os.walk(source):
        here = partial / Path(folder).relative_to(source)
        for name in (*folders, *files):
            _copy(Path(folder, name), here / name)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)


def size_of(folder: Path) -> int:
    """The total size in bytes of all files below the folder."""
    return sum(_size(Path(where, name)) for where, _, files in os.walk(folder) for name in files)


def digest_of(folder: Path) -> str:
    """A SHA-256 over names and contents: equal for equal folders."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)}\0".encode(errors="surrogateescape"))
        if path.is_file() and not path.is_symlink():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _copy(source: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.is_dir():
            target.mkdir()
            shutil.copystat(source, target)
        elif source.is_file():
            shutil.copy2(source, target)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
