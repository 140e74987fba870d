"""What a logged model takes and gives, as MLflow states it; `workflows.serve` keeps to it."""

from typing import Any


def signature() -> Any:
    """State it: the files' bytes or their pixels in, one row of answers for each out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    inputs = Schema(
        [
            ColSpec(DataType.binary, "image", required=False),  # of a PNG or JPEG file
            ColSpec(Array(Array(DataType.long)), "pixels", required=False),  # S x S gray values
        ]
    )
    texts = [ColSpec(DataType.string, name) for name in ("answer", "abstention")]
    numbers = [ColSpec(DataType.double, "probability"), ColSpec(DataType.string, "label")]
    outputs = Schema([*numbers, ColSpec(DataType.double, "operating_point"), *texts])
    return ModelSignature(inputs=inputs, outputs=outputs)
