"""Shows that what a call costs follows what it returns, and not what the database holds.

`python -m bench.million` seeds a small and a large database (`seed`), runs every statement of
session_service on the large one and judges what it reads (`judge`), and measures each documented
call on both in turn (`latency`). `listed` has the list of all statements.
"""
