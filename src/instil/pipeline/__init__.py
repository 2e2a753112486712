"""The way from a recipe to a finished folder: one cell, or all cells of a study."""
