"""PPO and GRPO: what a step of the loop samples, asks others and learns from."""
