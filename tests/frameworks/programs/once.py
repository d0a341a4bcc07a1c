"""Runs one order of a program in a process that ends as programs do. Run as a program by tests.

Usage: ``once.py MODULE ORDER``, the order in JSON: a function of the module and its arguments.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

import zygote


def main() -> None:
    zygote._answers = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints
    order = json.loads(sys.argv[2])
    getattr(importlib.import_module(sys.argv[1]), order.pop("do"))(**order)


if __name__ == "__main__":  # workers import it, too
    main()
