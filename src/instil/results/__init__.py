"""Result files, their schemas, and statistics. Needs no torch."""
