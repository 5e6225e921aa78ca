"""container_service without its rate limit, for chaos runs.

The emulator of these runs limits nothing. At Fly's rate of one create per second a run of half a
minute would see only thirty sessions. ROOST_FLY_RATE_SHARE cannot exceed 1, so this program sets
the value in the configuration.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

from container_service import logs
from container_service.config import Config
from container_service.main import fast_loop, run

RATE_SHARE = 1000.0

if __name__ == "__main__":
    config = replace(Config.from_env(os.environ), fly_rate_share=RATE_SHARE)
    logs.configure(config.log_level)
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(run(config))
