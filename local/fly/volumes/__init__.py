"""Volumes: folders of files that outlive machines, and their snapshots.

`volumes` has the operations of clients, and `snapshots` the copies. `volume_store` owns the
records, the files, and the background work of filling and copying.
"""
