"""Where in an image a score comes from: activations of concepts, logits of f and of g, all by the same methods."""
