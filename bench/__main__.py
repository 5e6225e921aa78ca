"""`python -m bench [NAME ...]`: run the named benchmarks, or all but soak."""

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
    "reconcile": "bench.reconcile",
    "checkpoints": "bench.checkpoints",
    "leases": "bench.leases",
    "startup": "bench.startup",
    "poolers": "bench.poolers",
}
#: Long benchmarks, which run only by name.
LONG = {
    "soak": "bench.soak",
    "large-sweep": "bench.large_sweep",
    "upgrade": "bench.upgrade",
    "against": "bench.against",
    "passes": "bench.passes",
}


def main() -> int:
    """Run the named benchmarks, or all but the long ones, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS | LONG))
    names = parser.parse_args().names or list(BENCHMARKS)
    known = BENCHMARKS | LONG
    for name in names:
        if name not in known:
            parser.error(f"no benchmark {name}; the benchmarks are {', '.join(known)}")
    for name in names:
        asyncio.run(importlib.import_module(known[name]).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
