"""The environment speaks for the user: a store that cannot be used says which setting is to blame (kind F)."""

import http.server
import sys
import threading

import pytest
from mlflow.exceptions import MlflowException

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking.store import TrackingSettings, open_store
from xray_pneumonia.tracking.store_errors import StoreUnavailable, classified

URI = "http://mlflow.house:5000"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_is_named_unless_it_is_passed_by(monkeypatch, name):
    monkeypatch.setenv(name, "http://me:CANARY@proxy:3128")
    message = str(classified(OSError("no route"), uri=URI))
    assert f"{name}=http://***@proxy:3128" in message
    assert "NO_PROXY=mlflow.house" in message
    monkeypatch.setenv("NO_PROXY", "mlflow.house")
    assert "proxy" not in str(classified(OSError("no route"), uri=URI))


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (ModuleNotFoundError("No module named 'boto3'", name="boto3"), "pip install xray-pneumonia[s3]"),
        (ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2"), "pip install xray-pneumonia[postgresql]"),
        (ModuleNotFoundError("No module named 'adlfs'", name="adlfs"), "pip install adlfs"),
        (MlflowException("403: Invalid Host header - possible attack"), "--allowed-hosts"),
        (OSError("Unable to locate credentials"), "AWS_ACCESS_KEY_ID"),
    ],
)
def test_what_the_user_can_mend_is_refused_with_its_cure(error, cure):
    refusal = classified(error, uri=URI)
    assert cure in str(refusal)
    assert not isinstance(refusal, StoreUnavailable)


def settings(uri):
    return TrackingSettings(uri=uri, experiment_name="x", run_name=None, system_metrics=False, required=False)


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b"Invalid Host header - possible DNS rebinding attack detected")

    def log_message(self, *_):
        pass


def test_a_server_that_refuses_its_name_is_named_with_the_option(tmp_path):
    server = http.server.HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with pytest.raises(InputError, match="--allowed-hosts") as caught:
            open_store(settings(uri), home=tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert not isinstance(caught.value, StoreUnavailable)


def test_a_place_for_files_that_takes_none_is_found_before_the_first_epoch(xray, tiny, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)  # not installed
    open_store(settings(uri=None), home=home).client.create_experiment("on s3", artifact_location="s3://bucket/x")
    outcome = xray("train", *tiny, "tracking.experiment_name=on s3")
    assert outcome.code == 2
    assert "pip install xray-pneumonia[s3]" in outcome.err
    assert "epoch 1/" not in outcome.err
