"""Readers for checkpoints written by older VisCoIN code."""
