"""Prints tables and sentences on the terminal; any package may import it."""

from collections.abc import Collection, Iterable

from rich.console import Console
from rich.table import Table


def console(width: int) -> Console:
    """Make a console that prints texts as they are; it is so wide where standard output is no terminal."""
    return Console(width=None if Console().is_terminal else width, markup=False, highlight=False)


def make_table(title: str, columns: Iterable[str], *, right: Collection[str] = ()) -> Table:
    """Make a table that breaks long cells and cuts none; numbers stand on the right."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made
