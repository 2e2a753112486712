"""What a teacher's prediction is, which part of it is stored, and where it lies on disk."""
