"""The contract between engineer, platform, operator and trainer. No I/O but for YAML text.

contract/   the types of an AlignmentJob, of the platform and of what passes between processes; reading what is stored
derived/    what follows from a spec: stages, sizes, precision, sources
rules/      what must hold before a job may start, and what may change afterwards
yaml/       a manifest's text, and every mistake in it
crd/        the CustomResourceDefinition
"""
