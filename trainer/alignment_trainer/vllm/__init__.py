"""vLLM inside the rollout role's process (docs/adr/0011-vllm-inside-the-role.md)."""
