"""The session through libfuse 2, by fusepy or refuse."""
