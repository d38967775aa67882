"""Concept statistics, amplification and heatmaps."""
