"""Run the `xray` command: one verb, one workflow; nothing heavy is imported before a verb needs it."""

import difflib
import errno
import gc
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from xray_pneumonia import __version__
from xray_pneumonia.errors import InputError, SomeFailed, Stopped, signals
from xray_pneumonia.masking import masked

VERBS = {
    "explore": "describe the data: counts, images, audit, as figures and one HTML page",
    "index": "list the films of a published data set (layout=nih source=DIR) in a CSV",
    "train": "train one classifier; -m sweeps: a grid or a search that can resume",
    "sweeps": "list the sweeps and how many of their trials are done",
    "compare": "compare runs in one table: seeds grouped, paired tests",
    "review": "rank training films by how doubtful their labels are; a page to look at them",
    "runs": "list runs: state, result, what each changes of its experiment",
    "ui": "serve MLflow's pages of the store; print the address of the last runs",
    "predict": "read new X-rays with a trained model, as a second opinion",
    "serve": "answer films in the browser and over HTTP, on this machine",
    "evaluate": "evaluate a run on validation, a test split or other images",
    "adapt": "adapt a model to a hospital's own labelled films; prove what it gains",
    "doctor": "check machine, packages, store, runs; `doctor sync` sends what is unsent",
    "register": "give the model of a run a name and an alias",
    "export": "export a model as one ONNX file, checked against its weights, or a bundle",
    "reproduce": "train a stored model again from its config and compare the results",
    "download": "fetch the public X-rays (Kermany et al., 2018) to data/chest_xray",
    "completion": "print what completes `xray` in bash, zsh or fish",
}
ALIASES = {("doctor", "sync"): "sync=true"}
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RANKS = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "WORLD_SIZE",
    "LOCAL_WORLD_SIZE", "SLURM_NTASKS",
)  # fmt: skip
USAGE = """\
usage: xray VERB [key=value ...]      e.g. xray train experiment=notebook_final seed=1

{verbs}

`xray VERB --help` lists its keys (Hydra syntax) with what they mean.
"""


def main() -> int:
    """Run `xray`; returns the exit code.

    0 done; 1 failed; 2 the user's input is wrong; 3 done, but some files could not be read;
    129 the terminal was closed; 130 interrupted; 141 standard output was closed (`| head`); 143 terminated.
    """
    try:
        code = _run()
        if sys.stdout is not None:  # it may have been closed from the start
            sys.stdout.flush()
    except OSError as error:  # of standard output; the workflows' own have been handled
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        if isinstance(error, BrokenPipeError):
            return 128 + signal.SIGPIPE
        return _complain(f"standard output: {error.strerror}; the rest of the output is lost", error, code=1)
    return code


def _run() -> int:
    verb, *rest = sys.argv[1:] or [""]
    usage = USAGE.format(verbs="\n".join(f"  {name:<10} {what}" for name, what in VERBS.items()))
    if verb in {"-h", "--help", "help", "--version"}:
        print(f"xray {__version__}" if verb == "--version" else usage.rstrip())
        return 0
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        print(usage, file=sys.stderr)
        return _complain(f"unknown verb {verb!r}" + (f"; did you mean {close[0]}?" if close else "")) if verb else 2
    if verb != "completion" and {"-h", "--help"} & {*rest}:
        from xray_pneumonia.command_help import describe

        print(describe(verb, rest))
        return 0
    if sys.version_info >= (3, 14):  # its argparse rejects the help texts of Hydra 1.3.8
        return _complain("Python {}.{} is not supported yet; use 3.11, 3.12 or 3.13".format(*sys.version_info))
    return _guarded(verb, [ALIASES.get((verb, argument), argument) for argument in rest])


def _guarded(verb: str, arguments: list[str]) -> int:
    """Turn what can go wrong into one line and an exit code."""
    if not sys.warnoptions and not _debugging():
        warnings.simplefilter("ignore")  # of the libraries: what a user must know is logged
    if sys.stderr is None:  # `2>&-`: libraries write there without asking, and print would write to standard output
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    _ignore_ranks()
    try:
        os.getcwd()
    except FileNotFoundError:
        return _complain("the working folder does not exist any more; change to another one")
    gc.set_threshold(700, 10, 100)  # imports make a million objects that stay; scanning all of them often costs seconds
    with _stopped_once():
        try:
            _launch(verb, arguments)
        except InputError as error:
            return _complain(str(error), error)
        except SomeFailed as error:
            return _complain(str(error), code=3)
        except Stopped as stop:
            return _complain(str(stop), code=stop.exit_code)
        except Exception as error:
            number = error.errno if isinstance(error, OSError) else None
            if number in {errno.EPIPE, errno.ENOSPC} and getattr(error, "filename", None) is None:
                print(flush=True)  # raises again if it was standard output
            if number in {errno.ENOSPC, errno.EDQUOT}:
                from xray_pneumonia.compose import full_disk

                return _complain(full_disk(arguments), error, code=1)
            message = f"failed: {type(error).__name__}: {error}"
            return _complain(f"{message} (XRAY_DEBUG=1 shows where)", error, code=1)
    return 0


def _launch(verb: str, arguments: list[str]) -> None:
    if verb == "completion":
        from xray_pneumonia.command_help import print_completion

        return print_completion(arguments, VERBS)
    from xray_pneumonia.compose import launch

    launch(verb, arguments)


def _ignore_ranks() -> None:
    """Take from the environment what would make this process a silent part of another program's distributed training.

    Lightning reads these variables when it is imported, and lets none but rank 0 log. `xray` spawns its processes
    itself, so whatever stands there was left over by a launcher or a cluster's shell.
    """
    for name in RANKS:
        value = os.environ.pop(name, None)
        if value not in {None, "", "0"} and not (name.endswith(("SIZE", "NTASKS")) and value == "1"):
            print(f"xray: {name}={value} of the environment is ignored: xray starts its own processes", file=sys.stderr)


@contextmanager
def _stopped_once() -> Iterator[None]:
    """Raise Stopped at the first SIGTERM, SIGHUP or Ctrl-C; later ones are ignored while the run is being closed.

    A signal that the parent had ignored stays ignored: `nohup xray train`, `xray train &` in a script.
    """

    def stop(number: int, _: FrameType | None) -> None:
        signals.append(number)
        if len(signals) > 1:
            print("xray: already closing the run", file=sys.stderr)
            return
        raise Stopped(number)

    heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():  # once stopped, nothing may change the exit code that says so
            signal.signal(number, signal.SIG_IGN if signals else handler)
        signals.clear()  # what this process does next was not asked to stop


def _debugging() -> bool:
    return os.environ.get("XRAY_DEBUG") == "1"


def _complain(message: str, error: BaseException | None = None, *, code: int = 2) -> int:
    if error is not None and _debugging():
        import traceback

        print(masked("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    place = getattr(error, "__notes__", [])[-1:]  # the line of the user's own code, where it came up there
    print(f"xray: {_printable(masked(', '.join([message, *place])))}", file=sys.stderr)
    return code


def _printable(message: str) -> str:
    """Escape control characters: messages quote files that anybody may have written."""
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in message)


if __name__ == "__main__":
    sys.exit(main())
