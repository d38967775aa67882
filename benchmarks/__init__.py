"""Programs that time what is slow here: python benchmarks/NAME.py --help."""
