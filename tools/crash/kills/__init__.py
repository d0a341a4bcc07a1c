"""Process crashes: writers and daemons are killed in every phase and at every step."""
