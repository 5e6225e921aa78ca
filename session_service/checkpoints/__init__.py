"""The use cases of CheckpointService: save, list, pin, delete, roll back, fork."""
