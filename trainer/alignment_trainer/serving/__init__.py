"""Servers of frozen models, and the pool of servers that a client asks."""
