"""Telling the user on stderr where the driver is."""

import sys
import time


class Progress:
    """One line, overwritten, on a terminal; elsewhere a line now and then."""

    _QUIET = 15         # seconds between two lines that are not overwritten

    def __init__(self, stream=None, program="bench_driver.py"):
        self._program = program
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._total = self._done = 0
        self._started = time.monotonic()
        self._last_shown = float("-inf")

    def start(self, total):
        """total steps are to come; from now on say how many are left."""
        self._total = total
        self._done = 0
        self._started = time.monotonic()

    def step(self, text):
        """A step begins."""
        now = time.monotonic()
        if self._total:
            text = f"[{self._done + 1}/{self._total}] {text}{self._left(now)}"
            self._done += 1
        if self._is_terminal:
            self._stream.write(f"\r\033[K{text}")
        elif now - self._last_shown >= self._QUIET:
            self._stream.write(f"{text}\n")
        else:
            return
        self._last_shown = now
        self._stream.flush()

    def _left(self, now):
        if not self._done:
            return ""
        seconds = (now - self._started) / self._done
        minutes = seconds * (self._total - self._done) / 60
        return f", about {minutes:.1f} min left"

    def problem(self, text):
        """Show a line that stays."""
        self.clear()
        print(f"{self._program}: {text}", file=self._stream, flush=True)

    def clear(self):
        """Remove the line that would be overwritten."""
        if self._is_terminal:
            self._stream.write("\r\033[K")
            self._stream.flush()
