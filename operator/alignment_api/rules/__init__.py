"""What must hold of a job before it may start, beyond the bounds of its fields: one table, and what asks it."""
