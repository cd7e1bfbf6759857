"""The types of an AlignmentJob, of the platform, and of what passes between processes."""
