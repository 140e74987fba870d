"""Prints tables and sentences on the terminal; any package may import it."""

from collections.abc import Collection, Iterable, Sequence

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


def print_table(
    title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], *, width: int, below: Collection[str]
) -> None:
    """Print a table; on a terminal narrower than `width` the columns `below` follow it, a line for each row.

    The first of the other columns, which is short, says which row such a line belongs to.
    """
    out = console(width)
    kept = [place for place, name in enumerate(heads) if out.width >= width or name not in below]
    left = [place for place in range(len(heads)) if place not in kept]
    table, lines = make_table(title, [heads[place] for place in kept]), []
    for row in rows:
        table.add_row(*(row[place] for place in kept))
        lines.append(f"{row[kept[0]]}: {'; '.join(row[place] for place in left)}")
    out.print(table, *(lines if left else []), sep="\n")
