"""Measures a model's answers, its fidelity to the teacher, and its drift from the base model."""
