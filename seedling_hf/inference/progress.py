"""How far a run has come: a bar on a terminal, otherwise a line every 30 seconds."""

import sys
import time
from typing import Self

from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 30


class Progress:
    """Counts images on stderr, from the `done` images of an earlier run on."""

    def __init__(self, total: int, *, done: int = 0, quiet: bool = False) -> None:
        self.done, self.total = done, total
        self.with_lines = not quiet and not sys.stderr.isatty()
        self.bar = tqdm(initial=done, total=total, unit="image", leave=False, disable=quiet or self.with_lines)
        self.line_due = time.monotonic() + SECONDS_BETWEEN_LINES

    def update(self, count: int) -> None:
        self.done += count
        self.bar.update(count)
        if self.with_lines and time.monotonic() > self.line_due:
            self.line_due = time.monotonic() + SECONDS_BETWEEN_LINES
            print(f"{self.done:,} of {self.total:,} images", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
