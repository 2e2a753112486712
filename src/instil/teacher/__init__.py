"""The teacher: its completions, its targets, and what students learn from them."""
