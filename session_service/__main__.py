"""`python -m session_service`: serve, or migrate, as the environment says."""

from __future__ import annotations

import os
import sys

# gRPC's core writes its own lines to standard error, some before an error that we report ourselves.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

try:
    from session_service.main import main
except KeyboardInterrupt:
    # Ctrl-C while modules are read: they have nothing to say of it.
    sys.exit(130)

sys.exit(main())
