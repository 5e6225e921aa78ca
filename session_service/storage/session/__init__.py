"""Sessions, their containers, decisions and events in PostgreSQL. Reads return values of the
domain; writes are a compare-and-set on the session's epoch. Nothing here calls the provider.
"""
