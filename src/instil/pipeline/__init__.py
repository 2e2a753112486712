"""Runs a recipe and writes its folder: one cell, or all cells of a study."""
