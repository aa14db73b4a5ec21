"""What can go wrong, drawn once, with the exit code each error leaves behind.

    AoiError
     ├─ RecipeError     recipe.toml      unknown key, value out of range, model folder not found
     ├─ SourceError     camera → frame   folder missing, camera does not open
     ├─ WireError       frame ↔ bytes    not ours, newer schema, size and shape disagree
     ├─ StreamError     frame ↔ Redis    URL not understood, refused, wrong version
     │   └─ StreamDown  …                not reachable now; trying again may help
     ├─ BrokerError     our own Redis    no server binary, does not start, folder not writable
     ├─ ShiftError      a recorded shift  no MCAP, of something else, newer schema
     ├─ DiskError       → files          no space or no right to write results
     ├─ LedgerError     the promise      offered is not settled + outstanding
     ├─ MissedError     bench            a run did not reach its target
     └─ ReportError     bench            a file that is no report, or reports with nothing in common
         ├─ TooShortError   …            a run from which no rate can be computed
         └─ MismatchError   …            reports of different machines
    engines.base.EngineError             model file missing, wrong inputs, device failure

Every message is one line that says what to do. Only `cli.py` turns an error into an exit code.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `aoi` and `bench`; part of the interface, never renumbered."""

    OK = 0
    BUG = 1
    USAGE = 2
    RECIPE = 3
    SOURCE = 4
    STREAM = 5
    ENGINE = 6
    DISK = 7
    LEDGER = 8
    UNREADY = 9
    MISMATCH = 10
    MISSED = 11
    REFUSED = 12
    INTERRUPTED = 130


class AoiError(Exception):
    """Anything a user can put right; its text is one line that says how."""

    exit_code = Exit.BUG


class RecipeError(AoiError):
    """A recipe that cannot be used as written."""

    exit_code = Exit.RECIPE


class SourceError(AoiError):
    """A source that cannot be opened or has ended by accident."""

    exit_code = Exit.SOURCE


class WireError(AoiError):
    """Bytes that are not a frame or a verdict of a schema this software reads."""

    exit_code = Exit.STREAM


class StreamError(AoiError):
    """The stream refused; trying again will not help."""

    exit_code = Exit.STREAM


class StreamDown(StreamError):
    """The stream cannot be reached at the moment; trying again may help."""


class BrokerError(StreamError):
    """The embedded Redis could not be started or kept running."""


class ShiftError(AoiError):
    """A recorded shift that cannot be read."""

    exit_code = Exit.SOURCE


class DiskError(AoiError):
    """A file could not be written."""

    exit_code = Exit.DISK


class LedgerError(AoiError):
    """The conservation identity does not hold: a frame was lost or counted twice."""

    exit_code = Exit.LEDGER


class MissedError(AoiError):
    """A run that lost nothing did not reach its target: too slow, ended by itself, or growing."""

    exit_code = Exit.MISSED


class ReportError(AoiError):
    """A file that is not a bench report this software reads, or reports with nothing in common."""

    exit_code = Exit.USAGE


class TooShortError(ReportError):
    """A run from which no rate can be computed."""


class MismatchError(ReportError):
    """Reports of different machines."""

    exit_code = Exit.MISMATCH
