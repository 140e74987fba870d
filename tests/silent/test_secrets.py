"""Secrets in addresses: none is stored, logged or printed, and what was kept can still be sent (kind D)."""

import logging

import pytest

from xray_pneumonia.masking import MaskingFormatter, masked
from xray_pneumonia.stored_config import load_stored
from xray_pneumonia.tracking.store import resolve_uri
from xray_pneumonia.tracking.sync import sync

SECRETS = [
    "http://CANARY@127.0.0.1:9",
    "http://user:CANARY@127.0.0.1:9",
    "http://CANARY:x-oauth-basic@127.0.0.1:9",
    "http://127.0.0.1:9?user=u&password=CANARY",
    "http://127.0.0.1:9/?anything=CANARY&user=u",
    "http://user:a/CANARY@127.0.0.1:9",
    "http://user:a@CANARY@127.0.0.1:9",
    "postgresql://u:CANARY@h/d?sslmode=require",
    "postgresql+psycopg2://u@h/d?password=CANARY",
    "s3://CANARY:x@bucket/a",
]


@pytest.mark.parametrize("address", SECRETS)
@pytest.mark.parametrize("text", ["{}", "tracking.uri={}: no answer", "x ('{}') y", "{}/api/2.0/mlflow"])
def test_no_secret_of_an_address_is_left_in_a_text(address, text):
    assert "CANARY" not in masked(text.format(address))
    assert masked(masked(text.format(address))) == masked(text.format(address))


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/a:b@c/mlruns/mlflow.db",
        "postgresql://u@h/d?sslmode=require",
        "https://mlflow.hospital/x",
        "mlruns/a@b.png: is no image; did you mean x?",
        "file:///a@b",
    ],
)
def test_what_is_no_secret_is_shown(text):
    assert masked(text) == text


def test_logs_are_masked_with_their_tracebacks():
    try:
        raise OSError(SECRETS[1])
    except OSError as error:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, "%s", (SECRETS[0],), (OSError, error, None))
    assert "CANARY" not in MaskingFormatter("%(message)s").format(record)


def files_of(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("given", ["address", "reference", "variable"])
def test_a_run_keeps_no_secret_and_can_still_be_sent(xray, tiny, tmp_path, monkeypatch, given):
    address = "http://127.0.0.1:9/CANARY" if given == "reference" else SECRETS[0]
    reference = "${oc.env:STORE_ADDRESS}"
    monkeypatch.setenv({"reference": "STORE_ADDRESS"}.get(given, "MLFLOW_TRACKING_URI"), address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    asked = [] if given == "variable" else [f"tracking.uri={address if given == 'address' else reference}"]
    plain = [each for each in tiny if not each.startswith("home=")]
    home = tmp_path / "mlruns"
    outcome = xray("train", *plain, f"home={home}", "trainer.max_epochs=1", *asked)
    assert outcome.code == 0, outcome.err
    told = outcome.out + outcome.err
    doctor = xray("doctor", "sync", f"home={home}", *asked)
    told += doctor.out + doctor.err
    assert "CANARY" not in told
    assert not [file for file, content in files_of(tmp_path).items() if b"CANARY" in content]
    config = next((home / "staged").rglob("config.yaml"))
    stored = load_stored(config.read_bytes(), origin="it").tracking.uri
    assert stored == {"address": "http://***@127.0.0.1:9"}.get(given)
    assert (reference in config.read_text()) == (given == "reference")
    [sent] = sync(resolve_uri(address, home), home)
    assert "belongs to" not in sent.problem
    [kept] = sync("http://other", home)
    assert "belongs to" in kept.problem
