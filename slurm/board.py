"""Live progress of a graph: a table that redraws itself on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from slurm.watching import duration

LINE_EVERY_SECONDS = 10.0
COLOURS = {"complete": "green", "running": "cyan", "failed": "red", "blocked": "red", "cancelled": "yellow"}


@dataclass
class Row:
    """One job on the board."""

    word: str = "waiting"
    detail: str = ""
    began: float | None = None
    seconds: float = 0.0


class Board:
    """Rows by job name. `show` changes one; what is drawn follows."""

    def __init__(self, names: Iterable[str], *, title: str) -> None:
        """`names` in the order of the graph."""
        self.rows = {name: Row() for name in names}
        self._title = title
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4) if sys.stderr.isatty() else None
        self._said: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> "Board":
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
            self._live.__exit__(kind, error, trace)

    def show(self, name: str, word: str, detail: str = "") -> None:
        """The state of a job and what there is to say about it."""
        row, now = self.rows[name], time.monotonic()
        changed = word != row.word
        if word == "running" and row.began is None:
            row.began = now
        if row.began is not None and (word == "running" or changed):
            row.seconds = now - row.began
        row.word, row.detail = word, detail
        if self._live is not None:
            self._live.update(self.table())
        else:
            self._line(name, row, changed=changed)

    def _line(self, name: str, row: Row, *, changed: bool) -> None:
        detail, said_at = self._said.get(name, ("", 0.0))
        due = row.detail != detail and time.monotonic() - said_at > LINE_EVERY_SECONDS
        if changed or due:
            took = f" ({duration(row.seconds)})" if row.began is not None and row.word != "running" else ""
            print(f"{name}: {row.word}{took}{': ' if row.detail else ''}{row.detail}", file=sys.stderr, flush=True)
            self._said[name] = (row.detail, time.monotonic())

    def table(self) -> Group:
        """All rows, for a terminal or the end of a log."""
        table = Table()
        for column in ("job", "state", "time", ""):
            table.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
        for name, row in self.rows.items():
            took = duration(row.seconds) if row.began is not None else ""
            # Text, so that brackets in a log's line are not taken for markup.
            table.add_row(name, Text(row.word, COLOURS.get(row.word, "")), took, Text(row.detail))
        return Group(Text(self._title), table)  # a title of the table would be as narrow as its columns
