"""Imports of session_service run in one direction, those for types included, and not too deep. A
service that serves imports no library that it does not need for that.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

from bench.startup import LIBRARIES, SERVING
from tools.import_depth import graph, longest

#: The number of modules in the longest chain of imports.
DEEPEST = 20


def test_imports_have_no_cycle() -> None:
    """A cycle raises CycleError, which shows it."""
    chain = longest(graph("session_service"))
    assert len(chain) <= DEEPEST, chain


def test_a_cycle_is_detected() -> None:
    from graphlib import CycleError

    with pytest.raises(CycleError):
        longest({"a": {"b"}, "b": {"a"}})


#: Modules that a serving process must not have, with the modules below them: each costs every
#: replica CPU at its start, and memory for as long as it runs.
UNUSED = {
    "session_service": (
        "alembic",
        "mako",
        "obstore",
        "prometheus_client",
        "sqlalchemy.dialects.mssql",
        "sqlalchemy.dialects.mysql",
        "sqlalchemy.dialects.oracle",
        "sqlalchemy.dialects.sqlite",
        "sqlalchemy.ext.asyncio",
        "sqlalchemy.orm",
        "session_service.adoption",
        "session_service.cli.agent",
        "session_service.cli.claim_installation",
        "session_service.cli.stats",
        "session_service.cli.sweep",
        "session_service.cli.tier",
        "session_service.metrics.prometheus",
        "session_service.stats.table",
        "session_service.storage.migrate",
        "container_service",
        "local",
    ),
    "container_service": (
        "obstore",
        "psycopg",
        "session_service",
        "sqlalchemy",
        "uuid_utils",
        "local",
    ),
}
#: Packages whose modules are not libraries: ours, and what the compiler made of the contract.
OURS = ("container_service", "grpc_edge", "roost", "session_service")


#: Interpreters that import a whole service: many seconds on a busy machine.
PROCESSES = pytest.mark.timeout(240)


@cache
def imported(code: str) -> frozenset[str]:
    """The modules of a new process that has run the code."""
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return frozenset(told.stdout.split())


@PROCESSES
@pytest.mark.parametrize("service", sorted(UNUSED))
def test_serving_imports_nothing_that_it_does_not_use(service: str) -> None:
    unused = UNUSED[service]
    assert not {
        module
        for module in imported(SERVING[service])
        if any(module == name or module.startswith(f"{name}.") for name in unused)
    }


@PROCESSES
@pytest.mark.parametrize("service", sorted(LIBRARIES))
def test_the_measured_libraries_are_those_that_serving_imports(service: str) -> None:
    """Else the ratio that the benchmark prints would be one to something else."""
    serving, libraries = imported(SERVING[service]), imported(LIBRARIES[service])
    top = {module.partition(".")[0] for module in serving} - sys.stdlib_module_names
    assert top - set(OURS) <= {module.partition(".")[0] for module in libraries}
