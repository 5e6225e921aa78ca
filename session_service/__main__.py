"""`python -m session_service`: serve, or migrate, as the environment says."""

from __future__ import annotations

import os
import sys

# gRPC's core writes its own lines to standard error, some before an error that we report ourselves.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from session_service.main import main

sys.exit(main())
