"""Child processes that never outlive their parent, and the tools around them.

`child` starts and stops them, `parent_death` is the program between fork and exec that ties a
child's life to its parent's, `folder_lock` keeps a second instance out of a folder, and
`stop_signals` turns Ctrl-C and SIGTERM into an event.
"""
