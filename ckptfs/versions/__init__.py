"""One version from its first byte to its name: staged, sealed, published, settled."""
