"""Earlier versions: which are kept, whose they are, and blocks that they share."""
