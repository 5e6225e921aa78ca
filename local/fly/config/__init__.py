"""The configuration of a machine, as sent by a client: checked, completed and read.

`configs` validates and completes a config, `type_check` compares it with Fly's schema, and the
other modules read one part of it: image, mounts, health checks. Nothing here changes a machine.
"""
