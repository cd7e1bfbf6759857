"""Rows, tokens, packing and order."""
