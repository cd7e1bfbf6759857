"""What lies in storage: claims, checkpoints, the exported model."""
