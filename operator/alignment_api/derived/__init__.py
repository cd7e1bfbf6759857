"""What follows from a spec: its stages, their sizes, precision and sources."""
