"""Classifiers that others have trained: their checkpoints read as data, and fitted to backbones of timm."""
