"""One running replica of session_service: `replica` opens its parts in order, and closes them.
`composition` builds the use cases, and `background` runs the loops that every replica has.
`agent_service` adds agent sessions, and `health` is the standard health service.
"""
