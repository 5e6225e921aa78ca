"""Faults from a file: a scenario that is there from the first request on."""

import json
from pathlib import Path

from local.fly.errors import ApiError
from local.fly.faults import Faults
from local.fly.settings import SettingError


def load(path: Path, faults: Faults) -> None:
    """Set the file's faults in their order; a `SettingError` says what is wrong with it."""
    try:
        rows: object = json.loads(path.read_text())
    except OSError as error:
        raise SettingError("scenario", f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingError("scenario", f"{path} is no JSON: {error}") from error
    if not isinstance(rows, list):
        raise SettingError("scenario", f"{path} must hold a list of faults")
    for number, row in enumerate(rows):
        try:
            faults.add(row if isinstance(row, dict) else {})
        except ApiError as error:
            raise SettingError("scenario", f"{path}: fault {number}: {error.text}") from error
