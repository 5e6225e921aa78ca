"""Fetch the programs that some tests need beyond Python, make and a C compiler: `make tools`.

Go programs are compiled at a pinned version into `.tools/`. The clients of `tests/clients` pin
their modules and packages, which go there too. Debian packages are installed with apt-get, by root
only, at the version that the distribution has; their services are not started. No other code of
this project downloads or compiles a program.

The run has a limit, TOOLS_SECONDS (300 s). Nothing begins after it, and only an installation of
packages goes on a little. What is not there by then is reported as missing. No
failure makes the run fail: a test that needs a missing program is skipped (`tests/needs`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

ROOT = Path(__file__).resolve().parent.parent
#: Where the Go programs are. Ignored by git.
FOLDER = ROOT / ".tools"
#: The limit of one run, in s, unless TOOLS_SECONDS is set. Compiling takes two minutes of CPU.
SECONDS = 300.0
#: How long a program may take to say its version, in s.
VERSION_SECONDS = 20.0
#: How long an installation may go on after the limit, in s. Broken off, it would leave packages
#: that are half configured. What it installs is downloaded by then.
INSTALL_SECONDS = 120.0
#: How long a child that is asked to end may take before it is killed, in s. dpkg finishes a step.
END_SECONDS = 10.0
#: Debian keeps servers where the PATH of other users does not look.
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
#: Asked by Debian's packages before they start a service; 101 means no.
POLICY = Path("/usr/sbin/policy-rc.d")


class Missing(Exception):
    """A tool could not be fetched. The message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Go:
    """A program that the Go compiler builds from a module at a version."""

    package: str
    version: str


@dataclass(frozen=True, slots=True)
class GoFolder:
    """A program that the Go compiler builds from a folder of this project, with pinned modules."""

    folder: str


@dataclass(frozen=True, slots=True)
class NodeFolder:
    """The packages that a folder of this project pins for Node. The program is the folder of them
    all, for NODE_PATH.
    """

    folder: str


@dataclass(frozen=True, slots=True)
class Debian:
    """A package of Debian."""

    package: str


@dataclass(frozen=True, slots=True)
class OnPath:
    """A program that is used where it is and not fetched, because it needs a service beside it."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program, and where it is fetched from. `ask` are the arguments that print its version."""

    name: str
    source: Go | GoFolder | NodeFolder | Debian | OnPath
    ask: tuple[str, ...] = ("--version",)


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("grpcurl", Go("github.com/fullstorydev/grpcurl/cmd/grpcurl", "v1.9.4")),
        Tool("ghz", Go("github.com/bojand/ghz/cmd/ghz", "v0.93.0")),
        Tool("go-client", GoFolder("tests/clients/go")),
        Tool("unshare", Debian("util-linux")),
        Tool("node", Debian("nodejs")),
        Tool("node_modules", NodeFolder("tests/clients/node")),
        Tool("nginx", Debian("nginx"), ("-v",)),
        Tool("haproxy", Debian("haproxy"), ("-v",)),
        Tool("pgbouncer", Debian("pgbouncer")),
        Tool("docker", OnPath()),
        # Last: it is by far the largest.
        Tool("chromium", Debian("chromium")),
    )
}


def find(tool: Tool, folder: Path = FOLDER) -> Path | None:
    """The program: the one that this module compiled, else the one on the PATH. None without one.

    Another version than the pinned one is not found in the folder, so a new pin is compiled.
    """
    if not isinstance(tool.source, Debian | OnPath):
        built = _place(tool.name, tool.source, folder) / tool.name
        if os.access(built, os.X_OK):
            return built
        if not isinstance(tool.source, Go):
            return None
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SBIN))
    found = shutil.which(tool.name, path=path)
    return Path(found) if found else None


def _place(name: str, source: Go | GoFolder | NodeFolder, folder: Path) -> Path:
    """Where it is kept: another place for each version, or for each content of its folder."""
    if isinstance(source, Go):
        return folder / f"{name}-{source.version.removeprefix('v')}"
    files = sorted(path for path in (ROOT / source.folder).iterdir() if path.is_file())
    content = hashlib.sha256(b"\0".join(path.read_bytes() for path in files))
    return folder / f"{name}-{content.hexdigest()[:12]}"


@dataclass
class Run:
    """One run: fetches what is missing until the limit, in s, is reached."""

    seconds: float
    folder: Path = FOLDER
    root: bool = field(default_factory=lambda: os.geteuid() == 0)
    missing: dict[str, str] = field(default_factory=dict)
    """Why a tool is missing, by its name."""

    def __post_init__(self) -> None:
        self._until = monotonic() + self.seconds
        self._lists_are_fresh = False

    def fetch(self, tools: Iterable[Tool]) -> None:
        """Fetch the tools that are not found. Go and apt-get work at the same time."""
        wanted = [tool for tool in tools if find(tool, self.folder) is None]
        compiled = (Go, GoFolder, NodeFolder)
        kinds = [[t for t in wanted if isinstance(t.source, kind)] for kind in (compiled, Debian)]
        workers = [threading.Thread(target=self._fetch_in_order, args=(kind,)) for kind in kinds]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _fetch_in_order(self, tools: list[Tool]) -> None:
        for tool in tools:
            print(f"fetching {tool.name} ...", flush=True)
            try:
                if isinstance(tool.source, Go):
                    self._compile(tool.name, tool.source)
                elif isinstance(tool.source, GoFolder):
                    self._build(tool.name, tool.source)
                elif isinstance(tool.source, NodeFolder):
                    self._install_packages(tool.name, tool.source)
                elif isinstance(tool.source, Debian):
                    self._install(tool.source)
                if find(tool, self.folder) is None:
                    raise Missing(f"it was fetched, but there is no program {tool.name}")
            except (Missing, OSError) as error:
                self.missing[tool.name] = str(error)
                print(f"{tool.name}: {error}", flush=True)

    def _compile(self, name: str, source: Go) -> None:
        place = _place(name, source, self.folder)
        # Go moves the finished program to its place; a killed compiler leaves none.
        command = ("go", "install", f"{source.package}@{source.version}")
        self._execute(command, {"GOBIN": str(place)})

    def _build(self, name: str, source: GoFolder) -> None:
        program = _place(name, source, self.folder) / name
        command = ("go", "build", "-C", str(ROOT / source.folder), "-o", str(program), ".")
        self._execute(command, {"GOFLAGS": "-mod=readonly"})

    def _install_packages(self, name: str, source: NodeFolder) -> None:
        place = _place(name, source, self.folder)
        # Moved when it is whole: a run that is ended leaves no folder that looks like one.
        half = place.with_name(f"{place.name}.half")
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(ROOT / source.folder, half)
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(half))
        self._execute(("npm", "ci", *options), {})
        shutil.rmtree(place, ignore_errors=True)
        half.rename(place)

    def _install(self, source: Debian) -> None:
        if not shutil.which("apt-get"):
            raise Missing(f"no apt-get here; install {source.package} yourself")
        if not self.root:
            raise Missing(f"only root can run apt-get install {source.package}")
        with services_stay_stopped():
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            if not self._lists_are_fresh:
                # An earlier run may have been ended in the middle of an installation.
                self._execute(("dpkg", "--configure", "-a"), quiet)
                self._execute(("apt-get", "update", "-qq"), quiet)
                self._lists_are_fresh = True
            options = ("-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=60")
            install = ("apt-get", "install", *options, source.package)
            self._execute((*install, "--download-only"), quiet)
            self._execute(install, quiet, INSTALL_SECONDS)

    def _execute(
        self, command: Sequence[str], environment: dict[str, str], beyond: float = 0.0
    ) -> None:
        """Run a command that begins before the limit and ends at most `beyond` s after it. Raises
        Missing.
        """
        left = self._until - monotonic()
        if left <= 0:
            raise Missing(f"the limit of {self.seconds:g} s was reached (TOOLS_SECONDS)")
        if not shutil.which(command[0]):
            raise Missing(f"no {command[0]} on the PATH")
        # A group of its own, so that its children are ended with it.
        with subprocess.Popen(
            command, env=os.environ | environment, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as child:  # fmt: skip
            try:
                output, _ = child.communicate(timeout=left + beyond)
            except BaseException as error:
                _end(child)
                if isinstance(error, subprocess.TimeoutExpired):
                    limit = f"the limit of {self.seconds:g} s was reached (TOOLS_SECONDS)"
                    raise Missing(f"{limit} in {' '.join(command[:2])}") from None
                raise
        if child.returncode:
            said = output.strip().splitlines() or ["it printed nothing"]
            raise Missing(f"{' '.join(command[:2])} ended with {child.returncode}: {said[-1]}")


def _end(child: subprocess.Popen[str]) -> None:
    """End a child and its group: first by asking."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


@contextmanager
def services_stay_stopped(policy: Path = POLICY) -> Generator[None]:
    """Let packages be installed without starting their services, unless there is a policy already.

    Otherwise nginx would take port 80 of this machine.
    """
    try:
        with policy.open("x") as file:
            file.write("#!/bin/sh\nexit 101\n")
    except FileExistsError:
        yield
        return
    try:
        policy.chmod(0o755)
        yield
    finally:
        policy.unlink(missing_ok=True)


def version(tool: Tool, program: Path) -> str:
    """What the program says about its version, in one line."""
    if isinstance(tool.source, Go) and tool.source.version.removeprefix("v") in str(program.parent):
        return tool.source.version
    if isinstance(tool.source, GoFolder | NodeFolder):
        return f"as {tool.source.folder} pins"
    try:
        ran = subprocess.run(
            [program, *tool.ask], check=False, text=True, timeout=VERSION_SECONDS,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({type(error).__name__})"
    # Some write it to stderr; others write warnings there.
    lines = (line.strip() for line in (ran.stdout.strip() or ran.stderr).splitlines())
    return next((line for line in lines if line), "unknown")[:50]


def table(tools: Iterable[Tool], folder: Path, missing: dict[str, str]) -> str:
    """A line for each tool: its name, its version, where it is or why it is missing."""
    rows = [("tool", "version", "where")]
    for tool in tools:
        program = find(tool, folder)
        if program:
            rows.append((tool.name, version(tool, program), str(program)))
        else:
            rows.append((tool.name, "-", f"missing: {missing.get(tool.name, 'not fetched')}"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = (f"{name:<{widths[0]}}  {says:<{widths[1]}}  {where}" for name, says, where in rows)
    return "\n".join(line.rstrip() for line in lines)


def main() -> int:
    """Fetch every missing tool, and print the table. The status is always 0."""
    run = Run(float(os.environ.get("TOOLS_SECONDS") or SECONDS))
    run.fetch(TOOLS.values())
    print(table(TOOLS.values(), run.folder, run.missing))
    return 0


if __name__ == "__main__":
    sys.exit(main())
