"""Read tables of text: any of the usual separators, every cell as it is written."""

import codecs
from pathlib import Path

import pandas as pd

from xray_pneumonia.errors import InputError


def read_table(csv: Path, *, key: str = "data.root") -> pd.DataFrame:
    """Read a table whose columns are separated by what its header has most of; their names become small letters.

    Raises:
        InputError: it is no table in UTF-8, or has no rows.
    """
    packed = csv.suffix == ".gz"
    with csv.open("rb") as raw:
        if raw.read(2) in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
            raise InputError(f"{key}={csv}: is written in UTF-16; save it as UTF-8")
    try:
        separator = ","
        if not packed:
            with csv.open(encoding="utf-8-sig") as file:
                separator = max(",;\t", key=file.readline().count)
        table = pd.read_csv(
            csv,
            sep=separator,
            dtype=str,
            keep_default_na=False,
            compression="gzip" if packed else None,
            encoding="utf-8-sig",
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(
            f"{key}={csv}: is neither a folder of images nor a CSV table in UTF-8 ({error}); unpack an archive and "
            "name its folder, or the CSV that lists the images"
        ) from error
    table.columns = pd.Index([str(name).strip().lower() for name in table.columns])
    if table.empty:
        raise InputError(f"{csv}: holds a header and no rows; write one line for each image")
    return table
