"""A free StyleGAN2-ADA in plain PyTorch, written from the papers (arXiv 1912.04958 and 2006.06676)."""
