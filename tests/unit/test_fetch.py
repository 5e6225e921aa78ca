"""`make tools`: what it fetches, and that no failure and no limit makes it fail."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.eventually import eventually
from tests.open_processes import runs
from tools import fetch
from tools.fetch import (
    Debian,
    Go,
    GoFolder,
    NodeFolder,
    Run,
    Tool,
    find,
    services_stay_stopped,
    table,
    version,
)

if TYPE_CHECKING:
    from pathlib import Path

GO = Tool("compiled", Go("example.com/compiled", "v1.2.3"))
PACKAGE = Tool("packaged", Debian("packaged-server"))
#: What the stand-ins for go and apt-get need of the system.
SYSTEM = os.pathsep.join(("/usr/bin", "/bin"))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is first on the PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{SYSTEM}")
    return folder


def write(path: Path, script: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_go_program_is_compiled_at_its_version_and_then_found(
    programs: Path, tmp_path: Path
) -> None:
    write(
        programs / "go",
        'mkdir -p "$GOBIN"; echo "echo $2" > "$GOBIN/compiled"; chmod +x "$GOBIN/compiled"',
    )
    run = Run(60, tmp_path / "cache")
    run.fetch([GO])
    assert run.missing == {}
    found = find(GO, run.folder)
    assert found == tmp_path / "cache" / "compiled-1.2.3" / "compiled"
    assert found.read_text().strip() == "echo example.com/compiled@v1.2.3"
    newer = Tool("compiled", Go("example.com/compiled", "v1.2.4"))
    assert find(newer, run.folder) is None


def test_a_folder_is_built_again_after_a_change(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client in Go, and the packages of one for Node."""
    monkeypatch.setattr(fetch, "ROOT", tmp_path)
    source = tmp_path / "client"
    source.mkdir()
    (source / "main.go").write_text("one")
    write(programs / "go", 'mkdir -p "$(dirname "$5")"; cp "$3/main.go" "$5"; chmod +x "$5"')
    write(programs / "npm", 'eval "place=\\$$#"; mkdir "$place/node_modules"')
    tools = [Tool("built", GoFolder("client")), Tool("node_modules", NodeFolder("client"))]
    run = Run(60, tmp_path / "cache")
    run.fetch(tools)
    assert run.missing == {}
    first, packages = (find(tool, run.folder) for tool in tools)
    assert first
    assert packages
    assert first.read_text() == "one"
    assert packages.is_dir()
    (source / "main.go").write_text("two")
    assert [find(tool, run.folder) for tool in tools] == [None, None]
    run.fetch(tools)
    again = find(tools[0], run.folder)
    assert again
    assert again.read_text() == "two"


def test_what_is_there_is_not_fetched(programs: Path, tmp_path: Path) -> None:
    write(programs / "go", f"touch {tmp_path}/called")
    program = write(programs / "compiled", "echo\necho compiled 9 >&2")
    run = Run(60, tmp_path / "cache")
    run.fetch([GO])
    assert not (tmp_path / "called").exists()
    assert find(GO, run.folder) == program
    assert version(GO, program) == "compiled 9"
    assert f"compiled  compiled 9  {program}" in table([GO], run.folder, run.missing)


def test_a_failure_is_one_line_and_the_others_go_on(
    programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(programs / "go", "echo downloading; echo no such module >&2; exit 3")
    write(
        programs / "apt-get",
        f'echo "$@" >> {tmp_path}/calls\n[ "$1" = update ] || cp /bin/true {programs}/packaged',
    )
    write(programs / "dpkg", "exit 0")
    run = Run(60, tmp_path / "cache", root=True)
    run.fetch([GO, PACKAGE])
    assert run.missing == {"compiled": "go install ended with 3: no such module"}
    assert "compiled: go install ended with 3: no such module\n" in capsys.readouterr().out
    assert find(PACKAGE, run.folder) == programs / "packaged"
    update, download, install = (tmp_path / "calls").read_text().splitlines()
    assert update.startswith("update ")
    assert download.endswith(" packaged-server --download-only")
    assert install.startswith("install ")
    assert install.endswith(" packaged-server")
    assert "compiled  -" in table([GO], run.folder, run.missing)
    assert "missing: go install ended with 3" in table([GO], run.folder, run.missing)


def test_only_root_installs_packages(programs: Path, tmp_path: Path) -> None:
    write(programs / "apt-get", f"touch {tmp_path}/called")
    run = Run(60, tmp_path / "cache", root=False)
    run.fetch([PACKAGE])
    assert run.missing == {"packaged": "only root can run apt-get install packaged-server"}
    assert not (tmp_path / "called").exists()


async def test_the_limit_ends_the_child_and_all_that_it_started(
    programs: Path, tmp_path: Path
) -> None:
    # Renamed when it is complete, so that the file is there whole or not at all.
    tell = f"echo $! $$ > {tmp_path}/told && mv {tmp_path}/told {tmp_path}/pids"
    write(programs / "go", f"sleep 600 & {tell}; wait")
    other = Tool("other", GO.source)
    # A limit that a busy machine reaches before the program has started its own child says nothing.
    for limit in (1, 5, 20):
        run = Run(limit, tmp_path / "cache")
        run.fetch([GO, other])
        reached = f"the limit of {limit} s was reached (TOOLS_SECONDS)"
        assert run.missing == {"compiled": f"{reached} in go install", "other": reached}
        if (tmp_path / "pids").exists():
            break
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    assert await eventually(lambda: not any(map(runs, pids)), timeout=30)


def test_without_a_compiler_and_without_apt_get_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run = Run(60, tmp_path / "cache", root=True)
    run.fetch([GO, PACKAGE])
    assert run.missing == {
        "compiled": "no go on the PATH",
        "packaged": "no apt-get here; install packaged-server yourself",
    }


def test_a_version_is_asked_of_the_program(programs: Path) -> None:
    program = write(programs / "packaged", "echo a warning >&2; echo packaged 7")
    assert version(PACKAGE, program) == "packaged 7"
    assert version(PACKAGE, write(program, "exit 0")) == "unknown"
    program.write_text("no program")
    assert version(PACKAGE, program) == "unknown (OSError)"


def test_services_of_installed_packages_are_not_started(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    with services_stay_stopped(policy):
        assert policy.read_text().endswith("exit 101\n")
        with services_stay_stopped(policy):
            pass
        assert policy.exists()
    assert not policy.exists()
