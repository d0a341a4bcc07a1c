"""``python -m ckptfs``."""

from ckptfs.cli import main

main()
