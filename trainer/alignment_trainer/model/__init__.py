"""A model as the trainer sees it: loading, heads, attention, log-probs, inspection."""
