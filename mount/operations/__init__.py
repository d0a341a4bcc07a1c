"""What is asked of the mount. No FUSE types."""
