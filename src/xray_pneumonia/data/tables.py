"""Read tables of text: any of the usual separators, every cell as it is written."""

import codecs
import gzip
import zlib
from io import BytesIO
from pathlib import Path

import pandas as pd

from xray_pneumonia.errors import InputError


def read_table(csv: Path, *, key: str = "data.root") -> pd.DataFrame:
    """Read a table whose columns are separated by what its header has most of; their names become small letters.

    Raises:
        InputError: it is no table in UTF-8, or has no rows.
    """
    raw = csv.read_bytes()
    try:
        text = gzip.decompress(raw) if csv.suffix == ".gz" else raw
        if text[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
            raise InputError(f"{key}={csv}: is written in UTF-16; save it as UTF-8")
        header = text.partition(b"\n")[0].decode("utf-8-sig")
        separator = max(",;\t", key=header.count)
        table = pd.read_csv(BytesIO(text), sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{key}={csv}: is no whole gzip file ({error}); pack it again, or name it .csv") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(
            f"{key}={csv}: is neither a folder of images nor a CSV table in UTF-8 ({error}); unpack an archive and "
            "name its folder, or the CSV that lists the images"
        ) from error
    table.columns = pd.Index([str(name).strip().lower() for name in table.columns])
    if table.empty:
        raise InputError(f"{csv}: holds a header and no rows; write one line for each image")
    return table
