"""Configuration: read once from the environment, as one frozen value.

A new setting is a field of `settings.Config` and a line of `variables.VARIABLES`.
"""

from session_service.config.reading import ConfigError
from session_service.config.settings import Config
from session_service.config.telling import describe

__all__ = ["Config", "ConfigError", "describe"]
