"""The emulator's folder: the records that survive the process."""

import fcntl
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import IO

from local.fly.disk import Disk
from local.fly.records.machine_records import App, MachineRecord
from local.fly.records.volume_records import VolumeRecord
from local.fly.settings import SettingError


class Store:
    """Apps, machines and volumes as JSON files, each replaced atomically.

    Writes are enqueued on the disk and done in order. They survive the end of this process but not
    of the host: there is no fsync.
    """

    def __init__(self, data: Path, disk: Disk) -> None:
        # Absolute, because guests have another working directory and get paths below this one.
        self.data = data.absolute()
        self._disk = disk
        self._apps = self.data / "apps"
        self._machines = self.data / "machines"
        self._volumes = self.data / "volumes"
        self._lock: IO[str] | None = None

    def open(self) -> None:
        """Create the folders and lock them against other emulators. Raises SettingError.

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
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()

    def machine_folder(self, machine_id: str) -> Path:
        """The folder of a machine's record, log and root file system."""
        return self._machines / machine_id

    def save_app(self, app: App) -> None:
        """Write an app."""
        text = json.dumps(asdict(app))
        self._disk.enqueue(lambda: write_atomically(self._apps / f"{app.name}.json", text))

    def remove_app(self, name: str) -> None:
        """Remove an app."""
        self._disk.enqueue(lambda: (self._apps / f"{name}.json").unlink(missing_ok=True))

    def save_machine(self, record: MachineRecord) -> None:
        """Write a machine as it is now."""
        path, text = self.machine_folder(record.id) / "machine.json", json.dumps(record.to_json())
        self._disk.enqueue(lambda: _write_in_folder(path, text))

    def remove_machine(self, machine_id: str) -> None:
        """Remove a machine and all its files."""
        self.remove_folder(self.machine_folder(machine_id))

    def volume_folder(self, volume_id: str) -> Path:
        """The folder of a volume's record, files and snapshots."""
        return self._volumes / volume_id

    def save_volume(self, record: VolumeRecord) -> None:
        """Write a volume as it is now."""
        path, text = self.volume_folder(record.id) / "volume.json", json.dumps(record.to_json())
        self._disk.enqueue(lambda: _write_in_folder(path, text))

    def remove_volume(self, volume_id: str) -> None:
        """Remove a volume with its files and snapshots."""
        self.remove_folder(self.volume_folder(volume_id))

    def remove_folder(self, folder: Path) -> None:
        """Remove a folder and its contents."""
        self._disk.enqueue(lambda: shutil.rmtree(folder, ignore_errors=True))

    def make_folder(self, folder: Path) -> None:
        """Create a folder and its parents."""
        self._disk.enqueue(lambda: folder.mkdir(parents=True, exist_ok=True))

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
        # The id of a machine's first version is a ULID, which sorts by creation time.
        return sorted(records, key=lambda record: record.versions[0].id)


def write_atomically(path: Path, text: str) -> None:
    """Replace the file atomically: a reader sees the old text or the new one."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    os.replace(temporary, path)


def _write_in_folder(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, text)
