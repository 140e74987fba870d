"""What MLflow reads from the environment, lent to it for a moment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def tracking_uri(uri: str) -> Iterator[None]:
    """Lend MLflow's fluent functions our store; they know no client.

    MLflow writes the URI into the environment too, where the next run of this process would find it.
    """
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri("")
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextmanager
def patience(seconds: int) -> Iterator[None]:
    """Give the store longer for an answer."""
    before = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT")
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(seconds, int(before or 0)))
    try:
        yield
    finally:
        os.environ.pop("MLFLOW_HTTP_REQUEST_TIMEOUT")
        if before is not None:
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = before
