"""Self-contained HTML pages: tables and figures in one file that needs no network."""

import base64
from io import BytesIO
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

PAGES = Environment(
    loader=PackageLoader("xray_pneumonia.evaluation.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def render(page: str, *, figures: dict[str, Figure], **values: Any) -> str:
    """Fill a page; every value is escaped.

    Args:
        page: the name of a template in this folder.
        figures: by title; embedded as PNG.
        values: what else the page shows.
    """
    return PAGES.get_template(page).render(
        figures={title: _inline(figure) for title, figure in figures.items()}, **values
    )


def _inline(figure: Figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", dpi=90)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
