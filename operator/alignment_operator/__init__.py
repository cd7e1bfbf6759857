"""Turns AlignmentJobs into pods: observe, plan, record, apply."""
