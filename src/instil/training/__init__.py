"""How a student learns: the trainer, its batches and its callbacks."""
