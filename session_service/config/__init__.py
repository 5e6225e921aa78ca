"""Configuration: read from the environment once, at start, into one frozen value.

`variables` has the table of environment variables, `settings` the value with its defaults, and
`forms` the parsers. A new setting is a field of `settings.Config` and a line of
`variables.VARIABLES`.
"""

from session_service.config.settings import Config, describe
from session_service.config.variables import ConfigError, check_names

__all__ = ["Config", "ConfigError", "check_names", "describe"]
