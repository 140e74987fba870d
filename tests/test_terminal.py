"""Tables on terminals of any width."""

import pytest
from rich.console import Console

from xray_pneumonia import terminal


@pytest.mark.parametrize("width", [80, 140])
def test_what_is_copied_from_a_table_is_never_broken(monkeypatch, capsys, width):
    monkeypatch.setattr(terminal, "Console", lambda **given: Console(**{**given, "width": width}))
    heads = ("run", "id", "verb", "state", "AUROC", "sensitivity", "specificity", "changes")
    row = [
        "torchvision-light-s0",
        "9e85d65c",
        "evaluate",
        "complete",
        "0.5619",
        "0.4286",
        "0.8000",
        "model.width=8 " * 8,
    ]
    terminal.print_table("runs", heads, [row], width=140, below=("run", "changes"))
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= width
    for cell in (*row[:-1], "sensitivity", "specificity", "model.width=8"):
        assert cell in said
    assert ("9e85d65c: torchvision-light-s0; model.width=8" in said) == (width == 80)
