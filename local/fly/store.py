"""The emulator's folder: what is true after the process is gone."""

import fcntl
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import IO

from local.fly.disk import Disk
from local.fly.records import App, MachineRecord
from local.fly.settings import SettingError
from local.fly.volume_records import VolumeRecord


class Store:
    """Apps and machines as JSON files, each written whole or not at all.

    Writes are handed to the disk and done in order. They are durable against the end of this
    process, not of the host: there is no fsync.
    """

    def __init__(self, data: Path, disk: Disk) -> None:
        # Absolute, since guests run elsewhere and are told of paths in here.
        self.data = data.absolute()
        self._disk = disk
        self._apps = self.data / "apps"
        self._machines = self.data / "machines"
        self._volumes = self.data / "volumes"
        self._lock: IO[str] | None = None

    def open(self) -> None:
        """Make the folders and keep other emulators out; a `SettingError` says why it cannot.

        The lock ends with the process, however that ends.
        """
        try:
            self._apps.mkdir(parents=True, exist_ok=True)
            self._machines.mkdir(exist_ok=True)
            self._volumes.mkdir(exist_ok=True)
            self._lock = (self.data / "lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise SettingError("data", f"{self.data} is in use by another emulator") from None
        except OSError as error:
            raise SettingError("data", f"{self.data}: {error.strerror}") from error

    def close(self) -> None:
        """Let another emulator have the folder."""
        if self._lock is not None:
            self._lock.close()

    def machine_folder(self, machine_id: str) -> Path:
        """Where a machine's record, log and root file system are."""
        return self._machines / machine_id

    def save_app(self, app: App) -> None:
        """Write an app."""
        text = json.dumps(asdict(app))
        self._disk.later(lambda: write_atomically(self._apps / f"{app.name}.json", text))

    def forget_app(self, name: str) -> None:
        """Remove an app."""
        self._disk.later(lambda: (self._apps / f"{name}.json").unlink(missing_ok=True))

    def save_machine(self, record: MachineRecord) -> None:
        """Write a machine as it is now."""
        path, text = self.machine_folder(record.id) / "machine.json", json.dumps(record.to_json())
        self._disk.later(lambda: _write_in_folder(path, text))

    def forget_machine(self, machine_id: str) -> None:
        """Remove a machine and all its files."""
        self.forget_folder(self.machine_folder(machine_id))

    def volume_folder(self, volume_id: str) -> Path:
        """Where a volume's record, files and snapshots are."""
        return self._volumes / volume_id

    def save_volume(self, record: VolumeRecord) -> None:
        """Write a volume as it is now."""
        path, text = self.volume_folder(record.id) / "volume.json", json.dumps(record.to_json())
        self._disk.later(lambda: _write_in_folder(path, text))

    def forget_volume(self, volume_id: str) -> None:
        """Remove a volume with its files and snapshots."""
        self.forget_folder(self.volume_folder(volume_id))

    def forget_folder(self, folder: Path) -> None:
        """Remove a folder with all that is in it."""
        self._disk.later(lambda: shutil.rmtree(folder, ignore_errors=True))

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it."""
        self._disk.later(lambda: folder.mkdir(parents=True, exist_ok=True))

    def apps(self) -> list[App]:
        """Read every app."""
        return [App(**json.loads(path.read_text())) for path in sorted(self._apps.glob("*.json"))]

    def volumes(self) -> list[VolumeRecord]:
        """Read every volume as it was last written, oldest first."""
        paths = self._volumes.glob("*/volume.json")
        records = [VolumeRecord.from_json(json.loads(path.read_text())) for path in paths]
        return sorted(records, key=lambda record: record.created_ms)

    def machines(self) -> list[MachineRecord]:
        """Read every machine as it was last written, oldest first."""
        paths = self._machines.glob("*/machine.json")
        records = [MachineRecord.from_json(json.loads(path.read_text())) for path in paths]
        # A machine's first version is a ULID of the time it was created at.
        return sorted(records, key=lambda record: record.versions[0].id)


def write_atomically(path: Path, text: str) -> None:
    """Replace the file in one step: a reader sees the old text or the new."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    os.replace(temporary, path)


def _write_in_folder(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, text)
