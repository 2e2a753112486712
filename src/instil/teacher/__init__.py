"""Who teaches: completions, scores and stored lessons."""
