"""What may be shown of a text that somebody else wrote, on a terminal or in a log; changes nothing that is kept.

A frame's name may hold control characters that move the cursor, hide text or fake a line of a log; an address may
hold a password. Both are made harmless where they are shown, because every place that makes texts may forget it.
"""

from __future__ import annotations

import logging
import re

USER = re.compile(r"(:/{1,2})(?:([^\s:@/?#'\"]*):)?[^\s'\"]*@")  # one /: as a path; up to the last @ of a password
OPTION = re.compile(r"(password=)[^&\s'\"]*", re.IGNORECASE)


def printable(text: str) -> str:
    """The text with control, direction and other invisible characters written as escapes; one line."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def redacted(text: str) -> str:
    """The text with every password in an address replaced: `redis://user:***@host`, `?password=***`."""
    return OPTION.sub(r"\1***", USER.sub(lambda found: f"{found[1]}{f'{found[2]}:' if found[2] else ''}***@", text))


def safe(text: object) -> str:
    """As it may be shown: printable and redacted."""
    return printable(redacted(str(text)))


class PlainFormatter(logging.Formatter):
    """A record is one line, and the lines of its traceback are indented: no text can look like a record of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return safe(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        lines = super().formatException(ei).splitlines()  # type: ignore[arg-type]
        return "\n".join(f"  {safe(line)}" for line in lines)


def counted(number: int, thing: str) -> str:
    """
    >>> counted(1, "worker"), counted(2, "worker")
    ('1 worker', '2 workers')
    """
    return f"{number} {thing}{'' if number == 1 else 's'}"
