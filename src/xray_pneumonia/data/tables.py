"""Read tables of text: any of the usual separators, every cell as it is written."""

import codecs
import gzip
import zlib
from io import StringIO
from pathlib import Path

import pandas as pd

from xray_pneumonia.errors import InputError
from xray_pneumonia.whole_files import read_regular


def read_table(csv: Path, *, key: str = "data.root") -> pd.DataFrame:
    """Read a table whose columns are separated by what its header has most of; their names become small letters.

    Returns:
        The rows, each under the number of its line.

    Raises:
        InputError: it is no table in UTF-8, a row has more cells than the header, or there are no rows.
    """
    raw = read_regular(csv)
    try:
        text = gzip.decompress(raw) if csv.suffix == ".gz" else raw
        if text[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE} or b"\0" in text[:2]:
            raise InputError(f"{key}={csv}: is written in UTF-16; save it as UTF-8")
        if b"\0" in text:  # some versions of pandas would cut a cell there
            raise InputError(f"{csv}, line {text[: text.index(0)].count(10) + 1}: holds the character NUL; remove it")
        lines = text.decode("utf-8-sig").lstrip("\r\n")
        separator = max(",;\t", key=lines.partition("\n")[0].count)
        # The header is read like a row: pandas would rename columns of one name, and shift those of too few names.
        table = pd.read_csv(
            StringIO(lines), sep=separator, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False
        )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{key}={csv}: is no whole gzip file ({error}); pack it again, or name it .csv") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(
            f"{key}={csv}: is neither a folder of images nor a CSV table in UTF-8 ({error}); unpack an archive and "
            "name its folder, or the CSV that lists the images"
        ) from error
    table.columns = pd.Index([name.strip().lower() for name in table.iloc[0]])
    table.index += 1
    table = table[(table != "").any(axis=1)].iloc[1:]
    if table.empty:
        raise InputError(f"{csv}: holds a header and no rows; write one line for each image")
    return table
