"""Progress of long work: a live bar on a terminal, or a line every few seconds in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.progress as bars
from rich.console import Console

LOG_SECONDS = 15.0  # between two lines without a terminal
console = Console(stderr=True, highlight=False, emoji=False)  # paths may have :x: in them


def print_line(text: str) -> None:
    """Print a line to the console as it is, without markup and however long."""
    console.print(text, markup=False, soft_wrap=True)


@contextmanager
def progress(title: str, total: int, start: int = 0) -> Iterator[Callable[..., None]]:
    """Show the progress of some work; yield `advance(n=1, note="")`.

    Args:
        title: the name of the work, such as "train".
        total: the number of units (steps, images, bytes).
        start: units done before this process began; they do not count towards the rate.
    """
    if console.is_terminal:
        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[note]}"),
        )
        with bars.Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total, completed=start, note="")

            def advance(n: int = 1, note: str = "") -> None:
                bar.update(task, advance=n, note=note)

            yield advance
        return

    begin = last = time.monotonic()
    done = start

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        clock = time.monotonic()
        if clock - last >= LOG_SECONDS or done >= total:
            last, spent = clock, clock - begin
            rest = (total - done) * spent / max(done - start, 1)
            console.print(f"{title} {done}/{total}  {spent:.0f} s, {rest:.0f} s left  {note}")

    yield advance
