"""Train through a mount, kill, corrupt, recover: what ``ckptfs demo`` shows."""
