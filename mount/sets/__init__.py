"""Sets of files that appear as one: directories on their way, who writes them, and when they are
complete."""
