"""Power cuts: the writes of a block device are recorded, crash states made of them, looked at."""
