"""The corruption study: checkpoints are damaged below a mount, and opened through it again."""
