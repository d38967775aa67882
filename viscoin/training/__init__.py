"""Training of f, of G, and of Psi, Theta and Omega: losses, steps, and the one loop."""
