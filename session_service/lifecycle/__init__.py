"""The use cases that change sessions: intent, provider, outcome; and waiting for one another."""
