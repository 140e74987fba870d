"""Where a run's files lie: inside the store, whatever the store itself says; a store that was moved is followed."""

import logging
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking.store import Store, masked

ARTIFACTS = "artifacts"  # of a local store, beside its database
ASKED = ("http", "https", "mlflow-artifacts")  # of whom MLflow asks for files, with the store's own password
log = logging.getLogger(__name__)


def local_folder(store: Store, uri: str, *, within: str, origin: str) -> Path | None:
    """Find the folder on this machine behind an artifact URI, which the store's writers could have set to anything.

    Args:
        store: that names the URI.
        uri: of a run's or a model's artifacts.
        within: the experiment's location, which must hold it.
        origin: what to call it in messages: `run_id=...`.

    Returns:
        The folder, free of links; None for an object store or a server, which MLflow asks.

    Raises:
        InputError: it lies outside of the experiment, or of the store.
    """
    path, parent = _path(uri), _path(within)
    if path is None or parent is None:
        _require_same_server(store, uri, origin=origin)
        if _plain(uri).startswith(_plain(within).rstrip("/") + "/") and ".." not in _plain(uri):
            return None
        raise _outside(origin, uri, "its experiment's")
    if not path.is_relative_to(parent) or path == parent:
        raise _outside(origin, uri, "its experiment's")
    roots = _roots(store)
    if roots is None or any(path.is_relative_to(root) for root in roots):
        return path
    for root in roots:
        moved = (root / ARTIFACTS / parent.name / path.relative_to(parent)).resolve()
        if moved.is_relative_to(root) and moved.is_dir():
            log.info("%s: the store was moved; its files are in %s", origin, moved)
            return moved
    raise _outside(origin, uri, f"the store ({roots[0]}); home=DIR names the folder that holds `{ARTIFACTS}`")


def inside(folder: Path, name: str, *, origin: str) -> Path:
    """Name a file of a folder; neither `..` nor a link may lead out of it.

    Raises:
        InputError: it leads out, or is not there.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise _outside(origin, str(path), "its run's")
    if not path.exists():
        raise InputError(f"{origin}: has no artifact {name} in {folder}")
    return path


def _roots(store: Store) -> list[Path] | None:
    """List the folders in which a store keeps files here; None where a team chose a place by itself."""
    scheme = urlsplit(store.uri).scheme
    if scheme == "sqlite":
        return [store.home.resolve(), Path(store.uri.removeprefix("sqlite:///")).resolve().parent]
    return [store.home.resolve()] if scheme in {"http", "https"} else None


def _require_same_server(store: Store, uri: str, *, origin: str) -> None:
    """Refuse a place on a server that is not the store's: asking it would hand it the store's password."""
    place = urlsplit(_plain(uri))
    host, known = (parts.netloc.rpartition("@")[2] for parts in (place, urlsplit(store.uri)))
    if place.scheme in ASKED and host != known and (host or place.scheme != "mlflow-artifacts"):
        raise _outside(origin, uri, "the store's server")


def _path(uri: str) -> Path | None:
    parts = urlsplit(uri)
    if parts.scheme not in {"", "file"}:
        return None
    if parts.netloc not in {"", "localhost"}:
        raise InputError(f"{masked(uri)}: lies on another machine; nothing is read from there")
    return Path(url2pathname(parts.path)).resolve()


def _plain(uri: str) -> str:
    """Undo percent signs, however often they were applied."""
    while unquote(uri) != uri:
        uri = unquote(uri)
    return uri


def _outside(origin: str, uri: str, what: str) -> InputError:
    return InputError(f"{origin}: its artifacts ({masked(uri)}) lie outside of {what}; nothing is read from there")
