"""How far a command has come, on stderr: bars on a terminal, elsewhere a line whenever nothing was said for a while.

Code says what it is at, by `Progress` and `follow`, and never prints that itself. Within `heartbeat`, which every
command has, a thread shows it, so that one slow image, an import or a library's long call is not silent either.
Without it, as in other people's programs, nothing is shown. TQDM_DISABLE=1 shows nothing, as in other libraries.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Self, TextIO, TypeVar

from seedling_hf.escaping import VisibleStream, format_count, one_line

FIRST_SECONDS = 1.5  # of silence, after which a command says that it has begun
LATER_SECONDS = 6.0  # of silence, after which it says how far it is; ten are promised, and machines may be busy
TICK_SECONDS = 0.25
BAR_SECONDS = 0.5  # after which something gets a bar; what is shorter would only flicker
WIDTH = 80  # columns of a terminal that does not know
TRUE = ("1", "true", "yes", "on")

T = TypeVar("T")

_current: "list[Progress]" = []  # outermost first
_heartbeat: "Heartbeat | None" = None


class Progress:
    """What is going on within its block, and how far it is.

    Args:
        title: What is done, such as "checking images".
        total: How many there are; None if nobody knows, or if nothing is counted.
        unit: What is counted, in the singular.
        done: How many an earlier run has done.
    """

    def __init__(self, title: str, total: int | None = None, *, unit: str = "image", done: int = 0) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self.note, self.is_idle = "", False
        self.began_with, self.started, self.bar = done, time.monotonic(), None

    def update(self, count: int = 1, note: str | None = None) -> None:
        """Counts; `note` is shown behind the number until the next one."""
        self.done += count
        if note is not None:
            self.note = note

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        _current.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(ValueError):
            _current.remove(self)
        if _heartbeat is not None:
            _heartbeat.end(self)

    def describe(self) -> str:
        """One line without an end, such as "checking images: 1,024 of 4,027 images, 12 s"."""
        parts = []
        if self.total is not None:
            parts.append(f"{self.done:,} of {format_count(self.total, self.unit)}")
        elif self.done:
            parts.append(format_count(self.done, self.unit))
        parts += [self.note] if self.note else []
        seconds = math.ceil(time.monotonic() - self.started)
        parts.append(f"{seconds:,} s" if seconds < 600 else f"{seconds // 60:,} min")
        return one_line(f"{self.title}: {', '.join(parts)}")


@contextmanager
def idling() -> Iterator[None]:
    """Meanwhile the command waits for somebody, and has no progress to show."""
    idle = Progress("")
    idle.is_idle = True
    with idle:
        try:
            yield
        finally:
            if _heartbeat is not None:
                _heartbeat.heard = time.monotonic()  # nobody missed anything


def follow(items: Iterable[T], title: str, total: int | None = None, *, unit: str = "image") -> Iterator[T]:
    """The items, counted under a title as they are taken; `total` is the length of what has one."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with Progress(title, total, unit=unit) as progress:
        for item in items:
            yield item
            progress.update()


@contextmanager
def heartbeat() -> Iterator[None]:
    """Shows the current `Progress` on stderr meanwhile; of several processes the first one does."""
    global _heartbeat
    stream = sys.stderr
    wanted = stream is not None and os.environ.get("TQDM_DISABLE", "").lower() not in TRUE
    if not wanted or _heartbeat is not None or os.environ.get("RANK", "0") != "0":
        yield
        return
    _guard_forks()
    _heartbeat = beating = Heartbeat(stream)
    try:
        with beating.listening(), beating.whole:
            beating.thread.start()
            yield
    finally:
        beating.stop()
        _heartbeat = None


class Heartbeat:
    """The thread that shows the current `Progress`, and what it must know: when something was last heard, and where."""

    def __init__(self, stream: TextIO) -> None:
        # Bars return to the start of their line, which is nobody else's business.
        self.stream = stream.stream if isinstance(stream, VisibleStream) else stream
        self.on_terminal = self.stream.isatty()
        self.heard, self.patience = time.monotonic(), FIRST_SECONDS
        self.at_line_start, self.has_bars = True, False
        self.whole = Progress("starting")
        self.lock, self.ended = threading.RLock(), threading.Event()
        self.thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hears meanwhile what is printed by others."""
        streams = [each for each in (sys.stdout, sys.stderr) if isinstance(each, VisibleStream)]
        for each in streams:
            each.listener = self
        try:
            yield
        finally:
            for each in streams:
                each.listener = None

    def before_write(self, stream: TextIO) -> None:
        """Makes room for what somebody else is about to write."""
        if self._shares(stream):
            with self.lock:
                self.at_line_start = False
                if self.has_bars:
                    self._clear()

    def after_write(self, stream: TextIO, text: str) -> None:
        """Remembers that something was heard; standard output in a pipe is data, which may wait in a buffer."""
        if self._shares(stream):
            self.at_line_start = text.endswith("\n")
            self.heard, self.patience = time.monotonic(), LATER_SECONDS

    def _shares(self, stream: TextIO) -> bool:
        return stream is self.stream or (self.on_terminal and stream.isatty())

    def end(self, progress: Progress) -> None:
        """Removes the bar of what is done."""
        self.whole.title = "working"
        if self.on_terminal:
            with self.lock, suppress(OSError, ValueError):
                _remove_bar(progress)

    def stop(self) -> None:
        self.ended.set()
        if self.thread.ident is not None:
            self.thread.join(1)  # a reader of the pipe may sleep

    def _run(self) -> None:
        while not self.ended.wait(TICK_SECONDS):
            try:
                with self.lock:
                    self._show_bars() if self.on_terminal else self._show_line()
            except (OSError, ValueError):  # nobody reads it any more
                return

    def _show_line(self) -> None:
        now, current = time.monotonic(), _current[-1:]
        if current and not current[0].is_idle and self.at_line_start and now - self.heard >= self.patience:
            self.heard, self.patience = now, LATER_SECONDS
            self.stream.write(current[0].describe() + "\n")
            self.stream.flush()

    def _show_bars(self) -> None:
        if not self.at_line_start:
            return
        now, shown = time.monotonic(), list(_current)
        if len(shown) > 1:  # the whole is said only where nothing else is
            _remove_bar(self.whole)
            shown.remove(self.whole)
        for progress in shown:
            if progress.bar is None and not progress.is_idle and now - progress.started >= BAR_SECONDS:
                progress.bar = _make_bar(progress, self.stream)
            if progress.bar is not None:
                progress.bar.bar_format = None if progress.total or progress.done else "{desc}: {elapsed}"
                progress.bar.set_postfix_str(progress.note, refresh=False)
                progress.bar.update(progress.done - progress.bar.n)
                self.has_bars = True

    def _clear(self) -> None:
        self.has_bars = False
        for progress in _current:
            if progress.bar is not None:
                progress.bar.clear(nolock=True)


def _make_bar(progress: Progress, stream: TextIO) -> Any:
    bar = _bar_class()(
        desc=one_line(progress.title), total=progress.total, initial=progress.began_with, unit=progress.unit,
        file=stream, leave=False, disable=False, mininterval=0, miniters=0,
        delay=1e-9,  # not before the number of the moment is known
        **({"dynamic_ncols": True} if _has_width(stream) else {"ncols": WIDTH}),
    )  # fmt: skip
    bar.start_t -= time.monotonic() - progress.started
    bar.last_print_t = bar.start_t
    return bar


def _has_width(stream: TextIO) -> bool:
    """Whether a terminal knows its width; those of containers may say 0, which is no room for a bar."""
    with suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns > 0
    return False


def _remove_bar(progress: Progress) -> None:
    bar, progress.bar = progress.bar, None
    if bar is not None:
        bar.close()


@cache
def _bar_class() -> type:
    from tqdm import tqdm

    # Its own thread would only change how often a bar is drawn.
    return type("Bar", (tqdm,), {"monitor_interval": 0})


@cache
def _guard_forks() -> None:
    """A process must not be forked while the thread holds a lock, which nobody would release in the child."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_end_in_child)


def _before_fork() -> None:
    if _heartbeat is not None:
        _heartbeat.lock.acquire()


def _after_fork() -> None:
    if _heartbeat is not None:
        _heartbeat.lock.release()


def _end_in_child() -> None:
    global _heartbeat
    if _heartbeat is not None:
        _heartbeat.lock.release()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, VisibleStream):
                stream.listener = None
    _heartbeat = None
    _current.clear()
