"""Checkpoints in PostgreSQL: their rows, their bytes in chunks, and the volumes that restores
created. Every change of a checkpoint's state is a compare-and-set. Nothing here calls the provider
or the bucket.
"""
