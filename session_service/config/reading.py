"""How one environment variable's text becomes the value of a setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class ConfigError(Exception):
    """A variable is missing or wrong; the message is one line that names it."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a text must look like. Any: it is read into a value of whichever type."""

    parse: Callable[[str], Any]
    """Raises ValueError for a text that is not of the form."""

    rule: str
    """The form in words, to go after "is not"."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable, and the setting that it sets."""

    name: str
    field: str
    form: Form
    sentence: str
    required: bool = False
    secret: bool = False

    def read(self, text: str) -> Any:
        """The value that the text means. Raises ConfigError, without the text if it is a secret."""
        try:
            return self.form.parse(text)
        except ValueError:
            shown = "its value" if self.secret else repr(text)
            raise ConfigError(f"{self.name}: {shown} is not {self.form.rule}") from None
