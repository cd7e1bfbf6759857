"""Rows of files: one module a kind, each in bounded memory (docs/data.md)."""
