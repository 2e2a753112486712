"""From text to token ids: contexts, prompt formats, aligned pairs, labels."""
