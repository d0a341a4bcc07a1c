"""ckptfs: a transactional checkpoint filesystem for AI training."""

__version__ = "0.1.0"
