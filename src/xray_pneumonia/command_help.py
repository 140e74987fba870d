"""Print what a verb takes, and complete its command line in bash, zsh and fish; imports nothing heavy."""

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources

from xray_pneumonia.errors import InputError
from xray_pneumonia.keys import Verb

OPTIONS = ("--help", "--cfg", "--config-dir", "--multirun")
INSTALLED = {  # what installs each script
    "bash": "xray completion bash >> ~/.bashrc",
    "zsh": "xray completion zsh >> ~/.zshrc",
    "fish": "xray completion fish > ~/.config/fish/completions/xray.fish",
}
BASH = r"""
_xray() {
    local IFS=$'\n' line=${COMP_LINE:0:COMP_POINT} word prefix= each
    word=${line##* }
    [[ $COMP_WORDBREAKS == *=* && $word == *=* ]] && prefix=${word%"${word##*=}"}
    COMPREPLY=()
    for each in $("$1" completion words "$line" 2>/dev/null); do
        [[ $each == *[=.] ]] || each+=" "
        COMPREPLY+=("${each#"$prefix"}")
    done
}
complete -o nospace -o default -F _xray xray
"""
ZSH = r"""
_xray() {
    local -a found
    found=("${(@f)$("$words[1]" completion words "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    if [[ -z "$found" ]]; then
        compset -P '*='
        _files
    else
        compadd -S '' -- ${(M)found:#*[=.]}
        compadd -- ${found:#*[=.]}
    fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _xray xray
"""
FISH = r"""
complete -c xray -a '(xray completion words (commandline -cp) 2>/dev/null)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def print_completion(arguments: Sequence[str], verbs: Iterable[str]) -> None:
    """Print the script of a shell, or the words that may end a line (`words LINE`), which the scripts ask for."""
    if len(arguments) == 2 and arguments[0] == "words":
        print("\n".join(complete(arguments[1], verbs)))
    elif len(arguments) == 1 and arguments[0] in SCRIPTS:
        print(SCRIPTS[arguments[0]].strip())
    else:
        ways = "".join(f"\n  {command}" for command in INSTALLED.values())
        raise InputError(f"{' '.join(['completion', *arguments])}: name the shell; these install it:{ways}")


def complete(line: str, verbs: Iterable[str]) -> list[str]:
    """List what the last word of a command line may become: verbs, keys up to their next dot, choices of a group."""
    _, *words = [*line.split(), *[""] * line.endswith(" ")]
    if len(words) < 2:
        return _fitting("".join(words), [*verbs, "--help", "--version"])
    verb, *before, word = words
    if verb not in verbs:
        return []
    if verb == "completion":
        return _fitting(word, SCRIPTS)
    found, (key, equals, value) = Verb(verb, before), word.partition("=")
    if equals:
        start, comma, last = value.rpartition(",")
        return [f"{key}={start}{comma}{name}" for name in _fitting(last, _values(found, key))]
    names = [*(f"{name}=" for name in (*found.groups, *found.keys)), *OPTIONS]
    return sorted({word + _step(name[len(word) :]) for name in _fitting(word, names)})


def _fitting(start: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(start)]


def _step(rest: str) -> str:
    """Cut a dotted name after its first dot: `trainer.` stands for all below it."""
    return rest.partition(".")[0] + "." if "." in rest[:-1] and not rest.startswith("--") else rest


def _values(verb: Verb, key: str) -> list[str]:
    if key in verb.groups:
        return verb.groups[key].choices
    if key == "model":  # where it is no group
        return sorted(folder.name for folder in resources.files("xray_pneumonia").joinpath("weights").iterdir())
    return ["true", "false"] if key in verb.keys and verb.keys[key].value in ("true", "false") else []


def describe(verb: str, arguments: Sequence[str]) -> str:
    """Write the help of a verb: its groups with their choices, and all keys with the comments of the YAML files."""
    found = Verb(verb, arguments)
    groups = {
        f"{name}={group.chosen}": f"{group.comment}{': ' * bool(group.comment)}{', '.join(group.choices)}"
        for name, group in found.groups.items()
        if len(group.choices) > 1
    }
    keys = {f"{name}={key.value}": key.comment for name, key in found.keys.items()}
    below = f"\nKeys (those of another choice: xray {verb} --help {next(iter(groups))})" if groups else "\nKeys"
    options = {
        "--cfg job": "prints the composed config and ends",
        "--config-dir DIR": "adds your own groups: DIR/model/mine.yaml is model=mine",
        "-m": "sweeps over values: model=cnn,resnet",
    }
    options = options if verb == "train" else {"--cfg job": options["--cfg job"]}
    head = [*found.header, "", f"usage: xray {verb} [key=value ...]"]
    parts = [*(["\nGroups", *_columns(groups)] if groups else []), below, *_columns(keys)]
    return "\n".join([*head, *parts, "\nOptions", *_columns(options)])


def _columns(rows: dict[str, str]) -> Iterator[str]:
    """Lay out names and their comments for the terminal's width."""
    width, indent = max(60, shutil.get_terminal_size((120, 24)).columns), 36
    for name, comment in rows.items():
        lines = textwrap.wrap(comment, width - indent, break_long_words=False, break_on_hyphens=False) or [""]
        first = f"  {name}".ljust(indent - 1)
        yield f"{first} {lines[0]}".rstrip() if len(first) < indent else f"{first}\n{' ' * indent}{lines[0]}".rstrip()
        yield from (" " * indent + line for line in lines[1:])
