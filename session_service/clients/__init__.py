"""What session_service calls: containers over gRPC, and a session's preview over HTTP."""
