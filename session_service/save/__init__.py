"""The calls of CheckpointService that save or change checkpoints.
They decide and commit like the other calls. checkpoints writes the bytes.
"""
