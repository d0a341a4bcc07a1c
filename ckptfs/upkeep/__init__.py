"""What is done beside saves and loads: fsck, scrub, usage, adoption."""
