"""One driver for every call that changes a session: replay, wait, commit, answer.
The dispatcher starts the work of a commit, or takes it over from a replica that is gone, and
commits its outcome. It calls the workers; the workers do not import it.
"""
