"""What every process of the trainer is made of: its instance, launch, outcome, signals, status."""
