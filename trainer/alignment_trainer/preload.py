"""Imports what most roles need, for a process that forks them. It starts no thread: a fork copies none."""

import importlib

from alignment_trainer.main import ROLES
from alignment_trainer.process.logs import quiet_libraries

quiet_libraries()
for role in ("prepare", "reference", "policy", "actor", "critic", "reward", "evaluator"):
    importlib.import_module(ROLES[role])
