"""Fixed cases to look at: the most certain right and wrong ones of both kinds, and the least certain."""

import pandas as pd

KINDS = {
    "found": "ill, called PNEUMONIA",
    "cleared": "well, called NORMAL",
    "missed": "ill, called NORMAL",
    "alarmed": "well, called PNEUMONIA",
    "unsure": "closest to the operating point",
}


def cases(table: pd.DataFrame, *, threshold: float, each: int) -> pd.DataFrame:
    """Choose up to so many cases of each of `KINDS`, one a patient, ties broken by id.

    Args:
        table: calibrated predictions; its index is kept.
        threshold: the operating point.
        each: cases of each kind.

    Returns:
        The chosen rows with a column `case`; no row twice.
    """
    called = table["probability"] >= threshold
    ill = table["label"] == 1
    distance = (table["probability"] - threshold).abs()
    groups = {"found": ill & called, "cleared": ~ill & ~called, "missed": ill & ~called, "alarmed": ~ill & called}
    ranked = table.assign(distance=distance).sort_values(["distance", "id"], ascending=[False, True])
    chosen = [
        ranked[mask.loc[ranked.index]].drop_duplicates("patient").head(each).assign(case=name)
        for name, mask in groups.items()
    ]
    taken = pd.concat(chosen).index
    unsure = ranked.drop(taken).sort_values(["distance", "id"]).drop_duplicates("patient").head(each)
    return pd.concat([*chosen, unsure.assign(case="unsure")]).drop(columns="distance")
