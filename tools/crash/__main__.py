"""``python -m ckptfs.tools.crash``: one command a study."""

from __future__ import annotations

import click


@click.group(help=__doc__)
def main() -> None:
    pass


if __name__ == "__main__":
    main()
