"""Names of files are data, and whoever may make a file chooses them. What steers a terminal, begins
a line or is no character is escaped wherever people read it, as ls(1) does."""

from __future__ import annotations

import logging


def shown(line: str) -> str:
    """``line`` as one line of printable characters. Bytes that are not UTF-8 become ``\\xff``."""
    if line.isprintable():
        return line
    return "".join(each if each.isprintable() else _escaped(each) for each in line)


def _escaped(character: str) -> str:
    byte = ord(character) - 0xDC00  # see PEP 383
    if 0x80 <= byte <= 0xFF:
        return f"\\x{byte:02x}"
    return character.encode("unicode_escape").decode("ascii")


class OneLine(logging.Formatter):
    """One line for each record; a traceback follows as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return shown(super().formatMessage(record))
