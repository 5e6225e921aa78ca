"""Compile protos/ into gen/, or with --check say which generated files are stale (exit 1).

`gen` is a source root, not a package: protoc writes `from roost.session.v1 import ...`, which is
what Python needs once `gen` is on the path, so nothing that was generated is rewritten.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import google.api
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GEN = ROOT / "gen"


def compile_protos(out: Path) -> None:
    """Write the code of every proto under protos/roost into `out`. Raises SystemExit on a fault."""
    files = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "roost").rglob("*.proto"))
    # The annotations come from the installed googleapis-common-protos, as at run time.
    annotations = Path(google.api.__path__[0]).parent.parent
    bundled = Path(protoc.__file__).parent / "_proto"
    plugin = Path(sys.executable).parent
    code = subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            *("-I", str(PROTOS), "-I", str(bundled), "-I", str(annotations)),
            f"--plugin=protoc-gen-mypy={plugin / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={plugin / 'protoc-gen-mypy_grpc'}",
            *(f"--python_out={out}", f"--grpc_python_out={out}"),
            *(f"--mypy_out=readable_stubs,quiet:{out}", f"--mypy_grpc_out=only_async,quiet:{out}"),
            *files,
        ],
        cwd=PROTOS,
        check=False,
    ).returncode
    if code:
        raise SystemExit(code)


def tree(root: Path) -> dict[str, bytes]:
    """Every generated file below `root`, by its relative path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted((root / "roost").rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def stale() -> list[str]:
    """Files of gen/ that differ from what protos/ compile to, are missing, or are left over."""
    with tempfile.TemporaryDirectory() as scratch:
        compile_protos(Path(scratch))
        fresh, committed = tree(Path(scratch)), tree(GEN)
    return sorted(name for name in fresh | committed if fresh.get(name) != committed.get(name))


def main() -> int:
    """Compile, or check; the exit status is 1 when --check finds something stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say what is stale")
    if parser.parse_args().check:
        names = stale()
        for name in names:
            print(f"stale: gen/{name} (run `make gen`)")
        return 1 if names else 0
    shutil.rmtree(GEN / "roost", ignore_errors=True)
    GEN.mkdir(exist_ok=True)
    compile_protos(GEN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
