"""Contexts, prompt formats, aligned pairs and labels: from text to token ids."""
