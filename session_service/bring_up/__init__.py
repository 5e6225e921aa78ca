"""Bringing a session's container up: the worker of a start.
It tries the rungs of the ladder one after the other, each by its strategy, and returns the outcome
as a commit. Results before the outcome, such as a new container's id, are written as notes.
"""
