"""What an online step samples, asks of other roles and learns from."""
