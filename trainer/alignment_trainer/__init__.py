"""The trainer: one loop, engines, algorithms, servers."""
