"""`python -m container_service` runs the service."""

from __future__ import annotations

import gc
import os
import sys

# gRPC's core logs to standard error, also for errors that the service reports itself.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

try:
    from container_service.main import main
except KeyboardInterrupt:
    # Ctrl-C while the modules are being imported: exit without a traceback.
    sys.exit(130)

# Modules and what they define stay. Each time the collector of cyclic garbage looks at all of it,
# the event loop stands still for tens of milliseconds, and a long listing makes it look often.
gc.freeze()
sys.exit(main())
