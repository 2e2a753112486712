"""What all stands on: files, processes, costs, progress."""
