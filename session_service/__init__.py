"""session_service: persistence, and the decision to reuse, resume, restart, restore or create."""
