"""Sets: the files of one checkpoint, which are complete together or not at all."""
