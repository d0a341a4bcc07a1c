"""Whether bytes are as recorded, and what is done where they are not."""
