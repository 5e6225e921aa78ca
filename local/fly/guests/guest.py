"""A guest: the root file system, environment and processes of one boot of a machine."""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from local.fly.config import configs, images
from local.fly.config.mounts import Mount
from local.fly.go_json import texts
from local.fly.guests.guest_processes import ChildProcess, Spawner
from local.fly.guests.procfs import TCP_TABLE, write_tcp_tables
from local.fly.records.machine_records import MachineRecord

BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"
"""Linux's boot id. An exec that reads this file gets the guest's own id."""

_HOST_ENV = ("PATH", "LANG", "LC_ALL", "TZ")


class ExecTimedOut(Exception):
    """A command in the guest was killed at its timeout."""


@dataclass(frozen=True)
class ExecResult:
    """The exit code or signal of a command, and its output."""

    exit_code: int
    exit_signal: int
    stdout: bytes
    stderr: bytes


class Guest:
    """One boot of one machine, from its cold start until its processes have ended.

    Suspend and resume are SIGSTOP and SIGCONT to every process group of the guest. The processes
    stay, with their memory, their open files and the boot id; connections stay open but no byte is
    read. From outside, Fly's suspend looks the same, except that memory is not written to disk
    here: when the emulator ends, suspended guests are lost. A new boot is a new Guest.

    SIGSTOP cannot be caught or blocked, so a suspend always succeeds at once. A stopped process
    handles no SIGINT or SIGTERM, so a suspended guest is only ever ended by SIGKILL.
    """

    def __init__(
        self,
        main: ChildProcess,
        boot_id: str,
        folder: Path,
        env: Mapping[str, str],
        spawner: Spawner,
        rewrite: Callable[[str], str],
        internal_port: int,
    ) -> None:
        self._rewrite = rewrite
        self._internal_port = internal_port
        self._spawner = spawner
        self.boot_id = boot_id
        self.main = main
        self.env = env
        self.port = int(env["PORT"])
        self.accepting = False
        self.stop_requested = False
        self._folder = folder
        self._execs: set[ChildProcess] = set()

    @classmethod
    def boot(
        cls,
        record: MachineRecord,
        folder: Path,
        boot_id: str,
        port: int,
        extra_images: Mapping[str, tuple[str, ...]],
        spawner: Spawner,
        mount: Mount | None = None,
    ) -> "Guest":
        """Start the machine's command in its root file system, which `prepare_rootfs` has made.

        Raises UnknownImage when there is no command. Its output goes to `guest.log`.
        """
        rewrite = mount.rewrite if mount else _unchanged
        argv = [rewrite(part) for part in images.command(record.config, extra_images)]
        rootfs = folder / "rootfs"
        env = environment(record, rootfs, port, rewrite)
        with (folder / "guest.log").open("ab") as log:
            main = spawner.spawn(argv, cwd=rootfs, env=env, stdout=log, stderr=log)
        internal_port = configs.internal_port(record.config)
        return cls(main, boot_id, folder, env, spawner, rewrite, internal_port)

    def suspend(self) -> None:
        """Suspend every process of the guest by SIGSTOP; memory is kept."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume a suspended guest by SIGCONT."""
        self._signal_all(signal.SIGCONT)

    def kill(self) -> None:
        """Kill every process, and mark the end of the boot as requested."""
        self.stop_requested = True
        self._signal_all(signal.SIGKILL)

    async def stop(self, signal_number: int, timeout_s: float) -> int:
        """Signal the main process, kill it after `timeout_s` seconds, and return its exit code."""
        self.stop_requested = True
        self.main.signal(signal_number)
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self.main.wait(), timeout_s)
        self.kill()
        return await self.main.wait()

    async def end(self) -> None:
        """Kill every process and wait for the end of the main one."""
        self.kill()
        await self.main.wait()

    async def exec(self, argv: list[str], stdin: bytes, timeout_s: float) -> ExecResult:
        """Run a command in the main process's folder and environment. Raises ExecTimedOut."""
        if _asks_boot_id(argv):
            return ExecResult(0, 0, self.boot_id.encode() + b"\n", b"")
        # Guests share the host's /proc, so a command that names the file gets this boot's own copy.
        argv = [part.replace(BOOT_ID_PATH, str(self._folder / "boot_id")) for part in argv]
        if any(TCP_TABLE in part for part in argv):
            tables = str(write_tcp_tables(self._folder, self.port, self._internal_port))
            argv = [part.replace(TCP_TABLE, tables) for part in argv]
        argv = [self._rewrite(part) for part in argv]
        # Files in memory, not pipes: a background process that kept a pipe open would block us.
        with _memory_file(stdin) as given, _memory_file() as out, _memory_file() as err:
            process = self._spawner.spawn(
                argv,
                cwd=self._folder / "rootfs",
                env=self.env,
                stdin=given,
                stdout=out,
                stderr=err,
            )
            code = await self._finish(process, timeout_s)
            out.seek(0)
            err.seek(0)
            return ExecResult(max(code, 0), max(-code, 0), out.read(), err.read())

    async def _finish(self, process: ChildProcess, timeout_s: float) -> int:
        self._execs.add(process)
        try:
            return await asyncio.wait_for(process.wait(), timeout_s)
        except TimeoutError:
            raise ExecTimedOut from None
        finally:
            process.signal_group(signal.SIGKILL)
            await process.wait()
            self._execs.discard(process)

    def _signal_all(self, number: int) -> None:
        for process in (self.main, *self._execs):
            process.signal_group(number)


def environment(
    record: MachineRecord, rootfs: Path, port: int, rewrite: Callable[[str], str]
) -> dict[str, str]:
    """The environment of a guest (Fly docs: the runtime environment).

    `PORT` replaces the service's `internal_port`: guests share the host's network, so two of them
    could not listen on the same port.
    """
    image = record.image
    return {
        **{name: os.environ[name] for name in _HOST_ENV if name in os.environ},
        "HOME": str(rootfs),
        "PRIMARY_REGION": record.region,
        **{name: rewrite(value) for name, value in texts(record.config, "env").items()},
        "PORT": str(port),
        "FLY_APP_NAME": record.app,
        "FLY_MACHINE_ID": record.id,
        "FLY_ALLOC_ID": record.id,
        "FLY_REGION": record.region,
        "FLY_PUBLIC_IP": "127.0.0.1",
        "FLY_IMAGE_REF": f"{image.registry}/{image.repository}:{image.tag}",
        "FLY_MACHINE_VERSION": record.instance_id,
        "FLY_PRIVATE_IP": record.private_ip,
        "FLY_PROCESS_GROUP": record.metadata.get("fly_process_group", "app"),
        "FLY_VM_MEMORY_MB": str(record.memory_mb),
    }


def prepare_rootfs(
    folder: Path, boot_id: str, *, keep_rootfs: bool, mount: Mount | None = None
) -> None:
    """Create the boot's root file system, or keep the previous one, and write its boot id."""
    if not keep_rootfs:
        clear(folder)
    (folder / "rootfs").mkdir(parents=True, exist_ok=True)
    if mount is not None:
        mount.place(folder / "rootfs")
    (folder / "boot_id").write_text(boot_id + "\n")


def clear(folder: Path) -> None:
    """Remove a machine's root file system."""
    shutil.rmtree(folder / "rootfs", ignore_errors=True)


def _unchanged(words: str) -> str:
    return words


def _memory_file(content: bytes = b"") -> IO[bytes]:
    """An anonymous file in memory with this content, positioned at its start."""
    file = os.fdopen(os.memfd_create("exec"), "r+b", buffering=0)
    file.write(content)
    file.seek(0)
    return file


def _asks_boot_id(argv: list[str]) -> bool:
    if len(argv) == 3 and argv[0].rpartition("/")[2] in ("sh", "bash") and argv[1] == "-c":
        with contextlib.suppress(ValueError):
            argv = shlex.split(argv[2])
    return len(argv) == 2 and argv[0].rpartition("/")[2] == "cat" and argv[1] == BOOT_ID_PATH
