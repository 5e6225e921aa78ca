"""`python -m bench [starts agents keeper soak]`: run the benchmarks, all but soak, or by name."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys

#: Name → the module whose `run()` measures and prints.
BENCHMARKS = {
    "starts": "bench.starts",
    "agents": "bench.agents",
    "stats": "bench.stats",
    "keeper": "bench.keeper",
    "checkpoints": "bench.checkpoints",
    "leases": "bench.leases",
}
#: Those that take long: by name only.
LONG = {"soak": "bench.soak"}


def main() -> int:
    """Run what was asked for, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS | LONG))
    names = parser.parse_args().names or list(BENCHMARKS)
    known = BENCHMARKS | LONG
    for name in names:
        if name not in known:
            parser.error(f"no benchmark {name}; there are {', '.join(known)}")
    for name in names:
        asyncio.run(importlib.import_module(known[name]).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
