"""What people call a prompt, an answer and a better one: layouts of rows, found by looking."""
