"""`python -m bench [starts agents]`: run the benchmarks, all or by name."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys

#: Name → the module whose `run()` measures and prints.
BENCHMARKS = {"starts": "bench.starts", "agents": "bench.agents"}


def main() -> int:
    """Run what was asked for, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name}; there are {', '.join(BENCHMARKS)}")
    for name in names:
        asyncio.run(importlib.import_module(BENCHMARKS[name]).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
