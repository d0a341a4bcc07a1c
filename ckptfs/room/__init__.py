"""Room on the disk: what may go for it, and what is written back ahead of time."""
