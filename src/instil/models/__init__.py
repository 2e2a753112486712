"""Language models, their adapters, and forward passes over several sequences."""
