"""Runs `xray index`: lists the films of a published data set in a CSV that `data.root` reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from xray_pneumonia.config import check
from xray_pneumonia.data.classes import counted
from xray_pneumonia.data.layouts import LAYOUTS, index
from xray_pneumonia.data.patients import rule_of
from xray_pneumonia.errors import InputError
from xray_pneumonia.types import Text
from xray_pneumonia.whole_files import write_whole

if TYPE_CHECKING:
    LayoutName = str
else:
    from typing import Literal

    LayoutName = Literal[tuple(LAYOUTS)]


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """The top-level keys of index.yaml."""

    home: Text
    layout: LayoutName
    source: Text
    output: Text
    patient: Text | None


def main(cfg: DictConfig) -> None:
    """Index, write and say what was counted."""
    check(cfg, IndexConfig)
    source = Path(cfg.source).expanduser().resolve()
    if not source.is_dir():
        raise InputError(f"source={cfg.source}: no such folder; name that of the unpacked data set")
    target = source / cfg.output
    if target.parent != source or target.exists():
        raise InputError(f"output={cfg.output}: needs the name of a new file, which is written into {source}")
    table = index(cfg.layout, source)
    if cfg.patient is not None:
        rule = rule_of(cfg.patient)
        used = table["reason"].eq("")
        table.loc[used, "patient"] = [rule(str(source / path), path) for path in table.loc[used, "path"]]
    kept = table[table["reason"].eq("")].drop(columns="reason")
    write_whole(target, [kept.to_csv(index=False).encode()])
    left_out = table.loc[table["reason"].ne(""), "reason"].value_counts().to_dict()
    patients = f"of {kept['patient'].nunique()} patients" if "patient" in kept else "whose patients are unknown"
    print(f"Rule: {LAYOUTS[cfg.layout].rule}.")
    print(f"{len(kept)} films {patients}: {counted(kept['label'].value_counts().to_dict())}")
    print(f"Left out: {counted(left_out) or 'none'}")
    print(f"Next: xray explore data.root={target}")
    print(f"csv={target} images={len(kept)} left_out={sum(left_out.values())}", flush=True)
