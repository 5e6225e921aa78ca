"""What can be done with agent sessions: use cases, without a message in sight."""
