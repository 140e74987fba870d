"""Compose, check, build: configs in, objects out; the only door to Hydra's instantiate.

The signatures of the constructors are the schema: their keyword-only parameters are the keys that a
config may set, with their types and ranges; positional parameters are handed in by the workflows.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module, resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xray_pneumonia import schema
from xray_pneumonia.errors import InputError

# What a config may build. A config is input, so the list stands in code, and names are exact.
TARGETS = frozenset(
    {
        "xray_pneumonia.data.augment.Augmentation",
        "xray_pneumonia.data.datamodule.XRayDataModule",
        "xray_pneumonia.data.decoding.Limits",
        "xray_pneumonia.evaluation.settings.EvaluationSettings",
        "xray_pneumonia.models.cnn.CNN",
        "xray_pneumonia.models.mlp.MLP",
        "xray_pneumonia.models.resnet.ResNet",
        "xray_pneumonia.models.torchvision.TorchvisionNet",
        "xray_pneumonia.sweeps.settings.SweepSettings",
        "xray_pneumonia.tracking.store.TrackingSettings",
        "xray_pneumonia.training.losses.BinaryCrossEntropy",
        "xray_pneumonia.training.losses.FocalLoss",
        "xray_pneumonia.training.optimizers.adamw",
        "xray_pneumonia.training.optimizers.constant",
        "xray_pneumonia.training.optimizers.cosine",
        "xray_pneumonia.training.optimizers.onecycle",
        "xray_pneumonia.training.optimizers.plateau",
        "xray_pneumonia.training.optimizers.rmsprop",
        "xray_pneumonia.training.optimizers.sgd",
        "xray_pneumonia.training.trainer.TrainerSettings",
    }
)

Node = Mapping[str, Any]
PACKAGE = "xray_pneumonia.conf"
# Keys that hold a path or a name, as they are: Hydra would take `film (1).png` for a call, and `model` for the group.
LITERAL = {
    "evaluate": ("model",),
    "export": ("model", "run_id", "input", "output"),
    "predict": ("model", "input", "output"),
    "register": ("run_id", "name", "alias"),
    "reproduce": ("model", "run_id"),
}


def launch(verb: str, arguments: list[str]) -> None:
    """Compose the config of a verb with Hydra and run its workflow on it, once or as a sweep.

    Raises:
        InputError: Hydra cannot compose what was asked for.
    """
    import hydra
    from hydra.errors import HydraException

    if any(argument.startswith("--experimental-rerun") for argument in arguments):
        raise InputError("--experimental-rerun unpickles a file, which could run anything; use `xray reproduce`")
    failures: list[BaseException] = []

    arguments, literal = _literally(verb, arguments)

    def task(cfg: DictConfig) -> Any:
        cfg.update(literal)
        return _run(verb, cfg, failures)

    before = sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise to us instead of printing and leaving
    try:
        with _experiment_files(arguments) as arguments:
            sys.argv = ["xray " + verb, *arguments]
            hydra.main(version_base="1.3", config_path=f"pkg://{PACKAGE}", config_name=verb)(task)()
    except HydraException as error:
        raise InputError(_explained(error, verb, arguments)) from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise InputError(
            f"{' '.join(arguments)}: a config file cannot be read: {' '.join(str(error).split())}"
        ) from error
    finally:
        sys.argv = before
    if failures:
        raise failures[0]


def _literally(verb: str, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take aside what Hydra's grammar must not read."""
    parts = [(argument, *argument.partition("=")) for argument in arguments]
    literal = {key: value for _, key, equals, value in parts if equals and key in LITERAL.get(verb, ())}
    return [argument for argument, key, _, _ in parts if key not in literal], literal


def _run(verb: str, cfg: DictConfig, failures: list[BaseException]) -> Any:
    """Run the workflow; outside of a sweep its error is kept from Hydra, which would print about it."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    workflow = import_module(f"xray_pneumonia.workflows.{verb}")
    try:
        return workflow.main(cfg)
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        failures.append(error)


def _explained(error: Exception, verb: str, arguments: list[str]) -> str:
    """Say in one line what Hydra says in several, with the nearest valid name."""
    text = " ".join(str(error).split())
    group = re.search(
        r"Could not find '([\w/]+)/([^/']+)' Available options in '[\w/]+': (.*?) Config search path", text
    )
    if group:
        name, value, options = group.groups()
        near = schema.nearest(value, options.split())
        return f"{name}={value}: there is no such choice{near} There are {', '.join(options.split())}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown.group(1)
        value = next((a.partition("=")[2] for a in arguments if a.lstrip("+").startswith(f"{key}=")), "")
        return f"{key}={value}: unknown key{schema.nearest(key, _known_keys(verb, arguments))}"
    return f"{' '.join(arguments)}: {text}"


def _known_keys(verb: str, arguments: list[str]) -> list[str]:
    """List the keys of a verb's config with the chosen groups, and the groups themselves."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_module(PACKAGE, version_base="1.3"):
        cfg = compose(verb, [argument for argument in arguments if argument.partition("=")[0] in groups()])
    return [*groups(), *(key for key, _ in leaves(plain(cfg, resolve=False)))]


def groups() -> list[str]:
    """List the config groups."""
    return [entry.name for entry in resources.files(PACKAGE).iterdir() if entry.is_dir()]


@contextmanager
def _experiment_files(arguments: list[str]) -> Iterator[list[str]]:
    """Let `experiment=FILE.yaml` name a file anywhere: Hydra takes configs from folders of its search path alone."""
    with TemporaryDirectory() as folder:
        changed, options = [], []
        for argument in arguments:
            key, _, value = argument.partition("=")
            path = Path(value).expanduser()
            if key == "experiment" and path.suffix == ".yaml" and path.is_file():
                text = path.read_bytes()
                name = f"file_{hashlib.sha256(text).hexdigest()[:8]}"  # no name of the package
                (Path(folder) / "experiment").mkdir(exist_ok=True)
                (Path(folder) / "experiment" / f"{name}.yaml").write_bytes(text)
                changed.append(f"experiment={name}")
                options = [f"--config-dir={folder}"]
            else:
                changed.append(argument)
        yield [*changed, *options]


def asked() -> list[str]:
    """List the keys and groups that the running command sets."""
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides]


def anchor(cfg: DictConfig) -> None:
    """Make the paths of a composed config absolute, so that it means the same from any folder."""
    cfg.home = str(Path(cfg.home).expanduser().resolve())
    if "data" in cfg and not OmegaConf.is_missing(cfg.data, "root") and cfg.data.root is not None:
        cfg.data.root = str(Path(cfg.data.root).expanduser().resolve())


def check(cfg: DictConfig, root: type) -> dict[str, Any]:
    """Check a composed config against the signatures of all it names, before anything is built or read.

    Args:
        cfg: the composed config.
        root: the class whose keyword-only parameters are the config's top-level keys.

    Returns:
        The config as plain, resolved values.

    Raises:
        InputError: with every problem found, each with its dotted key, its value and the nearest valid name.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        values = plain(cfg)
    except (OmegaConfBaseException, RecursionError) as error:
        raise InputError(f"the config does not resolve: {' '.join(str(error).split())}") from error
    problems = [f"{key}=???: needs a value" for key in missing]
    problems += schema.problems(values, root, prefix="")
    for key, node in _targets(values):
        name = node["_target_"]
        if isinstance(name, str) and name in TARGETS:
            problems += schema.problems(_settings(node), locate(name), prefix=key)
        else:
            hint = schema.nearest(str(name), TARGETS)
            problems.append(f"{key}_target_={name!r}: not on the list of what a config may build{hint}")
    if problems:
        raise InputError("\n  ".join(["the config is wrong:", *problems]) if len(problems) > 1 else problems[0])
    return values


def build(node: Node, *handed_in: Any) -> Any:
    """Build what a config group names; `handed_in` are the positional arguments that no config holds.

    Raises:
        InputError: anything in the node names a target that is not on the list, or is left to be looked up.
    """
    from hydra.utils import instantiate

    values = plain(node) if isinstance(node, DictConfig) else dict(node)
    for key, inner in _targets(values):
        if not isinstance(inner["_target_"], str) or inner["_target_"] not in TARGETS:
            raise InputError(f"{key}_target_={inner['_target_']!r}: not on the list of what a config may build")
    if "${" in repr(values):
        raise InputError(f"{values['_target_']}: its values are built as they are; nothing is looked up: {values}")
    return instantiate(values, _partial_=True, _convert_="all")(*handed_in)


def plain(cfg: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """Turn a config into dicts, lists and values."""
    return OmegaConf.to_container(cfg, resolve=resolve)  # type: ignore[return-value]


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of every leaf; lists are leaves."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _targets(tree: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Find every node with a `_target_`, in mappings and lists, however deep."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield prefix, tree
        for key, value in tree.items():
            yield from _targets(value, f"{prefix}{key}.")
    elif isinstance(tree, list):
        for position, value in enumerate(tree):
            yield from _targets(value, f"{prefix}{position}.")


def _settings(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "_target_"}


def locate(name: str) -> Callable[..., Any]:
    """Import what a target on the list names."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
