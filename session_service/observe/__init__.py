"""Observing containers at the provider, and destroying containers that no session wants.
An observation is a value (`domain.evidence`). The folder records proofs in the session's row, and
decides nothing about the session.
"""
