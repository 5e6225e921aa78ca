"""The variables as text, for people."""

from __future__ import annotations

from datetime import timedelta

from session_service.config.settings import Config
from session_service.config.variables import VARIABLES


def describe() -> str:
    """The variables, their defaults and what they mean, for `--help`."""
    defaults = Config(database_url="")
    rows = []
    for variable in VARIABLES:
        default = getattr(defaults, variable.field)
        if isinstance(default, timedelta):
            default = default.total_seconds()
        if isinstance(default, bool):
            default = str(default).lower()
        elif isinstance(default, float):
            default = f"{default:.10g}"
        shown = default not in ("", None)
        told = "required" if variable.required else f"default {default}" if shown else ""
        rows.append(f"  {variable.name:<33}{variable.sentence}{f' ({told})' if told else ''}")
    return "environment variables:\n" + "\n".join(rows)
