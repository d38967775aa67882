"""The classifier f, the concept extractor Psi, the explainer Theta, the concept translator Omega with G, and files."""
