"""Checkpoints: writes the saved state of sessions, reads it back, restores it, and deletes it.
A checkpoint is READY only after its bytes are durable and were read back. Starts and stops use this
folder, and it does not depend on them.
"""
