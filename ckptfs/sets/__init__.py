"""The checkpoint as a set: which files belong together, when it is complete, and what is kept."""
