"""``python -m ckptfs.tools.crash``: one command a study."""

from __future__ import annotations

import click

from ckptfs.tools.crash.power import power
from ckptfs.tools.crash.faults_study import faults


@click.group(help=__doc__)
def main() -> None:
    pass


main.add_command(power)
main.add_command(faults)


if __name__ == "__main__":
    main()
