"""A teacher's predictions: their form, which part of them is stored, and the store on disk."""
