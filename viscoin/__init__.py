"""Concept-based interpretable networks that show their concepts."""
