"""gRPC at the edge: parse, call, render; errors into statuses at one place."""
