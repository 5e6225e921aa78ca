"""The records of apps, machines and volumes: what the emulator stores on disk.

They are plain data with their JSON form, and know no behaviour. The store writes them, and every
other folder reads them.
"""
