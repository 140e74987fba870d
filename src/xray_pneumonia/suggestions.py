"""Suggest the key for what users of Lightning, Hydra templates and other tools type out of habit."""

from collections.abc import Iterable

from xray_pneumonia.errors import nearest

# What is typed, or the last part of it -> what `xray train` calls it.
KEYS = {
    "accumulate_grad_batches": "trainer.accumulate_batches", "batch": "data.batch_size",
    "batch_size": "data.batch_size", "bs": "data.batch_size", "backbone": "model=torchvision model.backbone=NAME",
    "checkpoint": "resume=RUN_ID", "ckpt": "resume=RUN_ID", "ckpt_path": "resume=RUN_ID", "config": "experiment=FILE",
    "data_dir": "data.root", "data_path": "data.root", "dataset": "data.root", "datamodule": "data",
    "debug": "trainer=smoke", "device": "trainer.accelerator", "accelerator": "trainer.accelerator",
    "devices": "trainer.devices", "dropout": "model.dropout", "early_stopping": "trainer.patience",
    "epochs": "trainer.max_epochs", "max_epochs": "trainer.max_epochs", "n_epochs": "trainer.max_epochs",
    "fast_dev_run": "trainer=smoke", "overfit_batches": "data.max_images", "gpu": "trainer=gpu",
    "gpus": "trainer=gpu trainer.devices=N", "gradient_clip_val": "trainer.gradient_clip",
    "hparams_search": "-m sweep=NAME", "image_size": "data.image_size", "img_size": "data.image_size",
    "learning_rate": "optimizer.lr", "lr": "optimizer.lr", "limit_train_batches": "trainer.limit_train_batches",
    "limit_val_batches": "trainer.limit_val_batches",
    "logger": "loggers=[{_target_: pytorch_lightning.loggers.CSVLogger}]",
    "lr_scheduler": "scheduler", "momentum": "optimizer.momentum", "name": "tracking.run_name",
    "num_workers": "data.num_workers", "num_nodes": "trainer=ddp", "strategy": "trainer=ddp",
    "optim": "optimizer", "criterion": "loss", "net": "model", "arch": "model", "transforms": "augmentation.transforms",
    "augment": "augmentation", "output_dir": "home", "log_dir": "home", "default_root_dir": "home",
    "patience": "trainer.patience", "precision": "trainer.precision", "resume_from_checkpoint": "resume=RUN_ID",
    "random_state": "seed", "random_seed": "seed", "run_name": "tracking.run_name", "tags": "tracking.run_name",
    "task_name": "tracking.run_name", "tracking_uri": "tracking.uri", "experiment_name": "tracking.experiment_name",
    **dict.fromkeys(("classes", "class_names", "labels", "num_classes"), "data.positive=[...] data.negative=[...]"),
    **dict.fromkeys(("metric", "metrics"), "callbacks=[...]: one logs a metric of your own (docs/extending.md)"),
    "n_trials": "sweep.n_trials", "val_split": "data.val_fraction", "wd": "optimizer.weight_decay",
    "weight_decay": "optimizer.weight_decay", "weights": "loss.class_weights", "pos_weight": "loss.class_weights",
}  # fmt: skip
# What other verbs call it: the first of these that they have.
ELSEWHERE = {
    **dict.fromkeys(("checkpoint", "ckpt", "ckpt_path", "weights", "model_path", "run"), ("run_id", "model")),
    **dict.fromkeys(("data_dir", "data_path", "dataset", "data", "root"), ("data.root", "input")),
    **dict.fromkeys(("images", "path", "source"), ("input", "data.root")),
    **dict.fromkeys(("output_dir", "out", "log_dir"), ("output", "home")),
    **dict.fromkeys(("num_workers",), ("workers",)),
}
# Of torchvision, by the name or the family that is typed.
BACKBONES = {
    "convnext": "convnext_tiny", "densenet": "densenet121", "efficientnet": "efficientnet_b0",
    "mobilenet": "mobilenet_v3_small", "swin": "swin_t", "vgg": "vgg16",
}  # fmt: skip
BACKBONES |= {name: name for name in (*BACKBONES.values(), "resnet18", "resnet34", "resnet50")}
# Choices of groups that go by other names here.
CHOICES = {
    "model": {name: f"model=torchvision model.backbone={backbone}" for name, backbone in BACKBONES.items()}
    | {"vit": "model=timm model.backbone=NAME"},
    "optimizer": {"adam": "optimizer=adamw optimizer.weight_decay=0", "rms": "optimizer=rmsprop"},
    "loss": dict.fromkeys(("cross_entropy", "ce", "bce_with_logits", "crossentropy"), "loss=bce"),
    "scheduler": {"none": "scheduler=constant", "reduce_on_plateau": "scheduler=plateau"},
    "trainer": {"mps": "trainer=cpu", "cuda": "trainer=gpu", "ddp_sim": "trainer=ddp", "debug": "trainer=smoke"},
    "data": dict.fromkeys(("mnist", "custom", "folder"), "data.root=DIR"),
}
POSITIONAL = {
    "predict": "input", "evaluate": "run_id", "export": "run_id", "register": "run_id", "reproduce": "run_id",
    "explore": "data.root", "index": "source", "serve": "model", "compare": "sweep_name",
}  # fmt: skip


def suggest(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """Word the cure for an unknown key as the end of a message: what it is called here, else the nearest name.

    Args:
        name: as it was typed, or its last part below `prefix`.
        valid: the keys there are.
        prefix: of these.
    """
    known, last = [*valid], name.rpartition(".")[2]
    if prefix + name == KEYS.get(last) or last in known:
        return nearest(name, known, prefix)
    if "monitor" in known or prefix:  # the keys of a training
        return f"; say {KEYS[last]}" if last in KEYS else nearest(name, known, prefix)
    if here := [key for key in ELSEWHERE.get(last, ()) if key in known]:
        return f"; say {here[0]}"
    near = nearest(name, known, prefix)
    return near or (f"; `xray train` takes it, as {KEYS[last]}" if last in KEYS else "")


def suggest_choice(group: str, value: str, options: Iterable[str]) -> str:
    """Word the cure for an unknown choice of a group."""
    known = CHOICES.get(group, {}).get(value.lower())
    return f"; say {known}." if known else nearest(value, options) or "."


def suggest_positional(verb: str, word: str, *, is_path: bool) -> str:
    """Word the cure for a word without `=`."""
    if "-" in word[:1] or verb not in {*POSITIONAL, "train"}:
        return "say key=value"
    key = POSITIONAL.get(verb) or ("data.root" if is_path else "")
    return f"say {key}={word}" if key else "say key=value"


def undashed(verb: str, option: str) -> str:
    """Word the cure for an option that there is not, such as `--lr=1e-3`: keys have no dashes."""
    name, _, value = option.lstrip("-").partition("=")
    name = name.replace("-", "_")
    key = KEYS.get(name, name) if verb == "train" else name
    return f"keys are set without dashes: {key if '=' in key else key + '=' + (value or 'VALUE')}"
