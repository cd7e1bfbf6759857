"""Weights on their way from the trainee to the rollout servers (docs/adr/0011-vllm-inside-the-role.md)."""
