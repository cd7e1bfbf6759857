"""The training loops, what they are made of, and how a run is put together."""
