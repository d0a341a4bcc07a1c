"""ckptfs: a transactional checkpoint filesystem for AI training."""

import logging

__version__ = "0.1.0"
logging.getLogger(__name__).addHandler(logging.NullHandler())  # the daemon adds one that writes
