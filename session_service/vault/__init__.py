"""How state is saved, proved and read back: durable before anybody relies on it."""
