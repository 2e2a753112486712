"""What is remembered: the schemas of result files, and statistics; without torch."""
