"""What answers prompts for a run: models in this process, or on a server."""
