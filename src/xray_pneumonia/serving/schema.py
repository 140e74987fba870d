"""Describes requests and answers for OpenAPI, with examples, and checks what a reader sends."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

OPINIONS = ("agree", "disagree", "unsure")
LONGEST_NOTE = 500
SHA256 = re.compile("[0-9a-f]{64}")
BINARY = {"schema": {"type": "string", "format": "binary"}}
UPLOAD = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "one PNG, JPEG or DICOM file"},
                    "prevalence": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                },
            }
        },
        "application/octet-stream": BINARY,
        "application/dicom": BINARY,
        "image/png": BINARY,
        "image/jpeg": BINARY,
    },
}
EXAMPLE = {
    "decision": "look closer",
    "label": "PNEUMONIA",
    "probability": 0.54,
    "prevalence": 0.4,
    "operating_point": 0.5,
    "reason": "uncertain",
    "kind": "uncertain",
    "flags": [],
    "words": "Too near the operating point. 54 %: among patients of whom 40 in 100 have "
    "pneumonia, 54 of 100 films like this one show it. From 50 % on it is called pneumonia.",
    "rests_on": "Trained on 4136 films of 2040 patients. On 1096 films of 510 patients ...",
    "sha256": "0" * 64,
    "width": 1024,
    "height": 1024,
    "model": "final",
    "version": "0" * 12,
}
ANSWER = {"description": "The answer", "content": {"application/json": {"example": EXAMPLE}}}
MODELS = {
    "description": "The models",
    "content": {"application/json": {"example": {"models": [{"name": "final", "version": "0" * 12}]}}},
}
_PROBLEM = {"type": "about:blank", "title": "Unprocessable Content", "status": 422, "detail": "is cut or damaged"}
ERROR: dict[int | str, dict[str, Any]] = {
    code: {"description": text, "content": {"application/problem+json": {"example": {**_PROBLEM, "status": code}}}}
    for code, text in {
        400: "The request is malformed",
        401: "The token is missing or wrong",
        413: "The upload is too large",
        422: "The file cannot be read; `code` says why",
        429: "Too many requests are under way; see Retry-After",
    }.items()
}
OPINION = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["sha256", "opinion"],
                "properties": {
                    "sha256": {"type": "string", "pattern": f"^{SHA256.pattern}$"},
                    "opinion": {"enum": list(OPINIONS)},
                    "label": {"type": "string", "description": "the class that the reader sees; empty when unsure"},
                    "note": {"type": "string", "maxLength": LONGEST_NOTE, "description": "no names, please"},
                    "answer": {"type": "string"},
                    "probability": {"type": "number"},
                },
            },
            "example": {"sha256": "0" * 64, "opinion": "disagree", "label": "NORMAL", "note": "rotated film"},
        }
    },
}


def require_opinion(values: Any, classes: Sequence[str]) -> Mapping[str, Any]:
    """Check a reader's opinion.

    Raises:
        ValueError: a field is missing or has a value that it cannot have.
    """
    if not isinstance(values, dict):
        raise ValueError("give a JSON object")
    if not SHA256.fullmatch(str(values.get("sha256"))):
        raise ValueError("sha256: give the 64 hex digits of the answer")
    if values.get("opinion") not in OPINIONS:
        raise ValueError(f"opinion: one of {', '.join(OPINIONS)}")
    if values.get("label", "") not in ("", *classes):
        raise ValueError(f"label: one of {', '.join(classes)}, or empty")
    for name in ("note", "answer"):
        text = values.get(name, "")
        if not isinstance(text, str) or len(text) > LONGEST_NOTE or _torn(text):
            raise ValueError(f"{name}: a text of at most {LONGEST_NOTE} letters")
    if not _is_share(values.get("probability", 0.0)):
        raise ValueError("probability: a number between 0 and 1")
    return {name: values.get(name, "") for name in ("sha256", "opinion", "label", "note", "answer", "probability")}


def _torn(text: str) -> bool:
    """Tell whether a text has half a character, which no file can hold."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
