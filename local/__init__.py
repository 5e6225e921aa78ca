"""The local stack: what a person runs with no Docker, no Fly account and no database."""
