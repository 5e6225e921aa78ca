"""Conversations of LLM agents: create, append, read, fork, rewind, watch, search, expire.

They share nothing with the sessions that own containers but the pool of database connections.
A use case checks, runs statements of `storage.agent`, and raises errors; it knows no message.
"""
