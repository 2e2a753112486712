"""What is wanted: a recipe's sections, its grid, and what is wrong with it; without torch."""
