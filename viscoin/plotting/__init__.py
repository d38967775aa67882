"""From plain results to matplotlib figures; nothing is computed here."""
