"""HTTP servers of a role's process."""
