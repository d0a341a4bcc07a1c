"""What tools and tests share: mounts to work on, filesystems that fail, studies, numbers."""
