"""container_service as it is, but for its pace: the provider of these runs limits nothing.

At Fly's own pace of one create a second half a minute would see but thirty sessions.
"""

from __future__ import annotations

import sys

from container_service import main
from container_service.fly import pacing

pacing.DEFAULT_RATE = pacing.GET_RATE = pacing.Rate(per_second=1000, burst=1000)

if __name__ == "__main__":
    sys.exit(main.main())
