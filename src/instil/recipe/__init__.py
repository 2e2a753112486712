"""Recipes: the settings of a run, the grid of a study, and their checks. Needs no torch."""
