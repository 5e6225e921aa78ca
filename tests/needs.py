"""The programs that some tests need beyond Python, make and a C compiler."""

from __future__ import annotations

import pytest

from tools.fetch import TOOLS, find


def needs(name: str) -> str:
    """The path of a program of `tools/fetch`; skips the test if this machine does not have it.

    Raises KeyError for a program that `make tools` does not know: add it to the table there.
    """
    program = find(TOOLS[name])
    if program is None:
        pytest.skip(f"no {name} on this machine; `make tools` fetches it", allow_module_level=True)
    return str(program)
