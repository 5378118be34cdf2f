"""Progress bars: on a terminal a line that changes, elsewhere a new line every few seconds."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TextIO

from tqdm import tqdm

#: Seconds between two lines where there is no terminal.
_SECONDS = 5.0


@dataclass(frozen=True)
class _Lines:
    """A file for tqdm, which in ``stream`` begins a new line where tqdm would change the last."""

    stream: TextIO

    def write(self, text: str) -> None:
        if text := text.strip():
            self.stream.write(f"{text}\n")

    def flush(self) -> None:
        self.stream.flush()


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> "tqdm[Any]":
    """Return a bar of tqdm with these options, on standard error."""
    if not sys.stderr.isatty():
        options |= {"file": _Lines(sys.stderr), "mininterval": _SECONDS}
    return tqdm(iterable, **options)
