"""The roles, one file each: `run(instance) -> Outcome`."""
