"""The contract: spec, status and platform types of an AlignmentJob. No I/O."""
