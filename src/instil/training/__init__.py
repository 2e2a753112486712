"""Training the student: the trainer, its batches and its callbacks."""
