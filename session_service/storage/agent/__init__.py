"""The SQL of agent sessions: conversations of LLM agents, their turns and branches.

Each function runs one statement, or a few in the caller's transaction, and returns values.
Nothing here knows the sessions that own containers, and nothing there knows this folder.
"""
