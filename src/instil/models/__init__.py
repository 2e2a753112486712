"""What computes: language models, their adapters, and how sequences share a forward pass."""
