"""The view Leaderboard is written as MLflow's page reads it; addresses name the server that runs."""

import base64
import json
import os
import urllib.request
import zlib

import pytest

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking import leaderboard, server
from xray_pneumonia.tracking.process import identity
from xray_pneumonia.tracking.store import TrackingSettings, ensure_leaderboard, open_store, show_searched


@pytest.fixture
def store(home):
    settings = TrackingSettings(uri=None, experiment_name="view", run_name=None, system_metrics=False, required=False)
    return open_store(settings, home=home)


def view(store):
    tag = json.loads(store.client.get_experiment(store.experiment_id).tags["mlflow.sharedViewState.leaderboard"])
    assert tag["name"] == "Leaderboard"
    assert isinstance(tag["createdAt"], int)
    kind, _, state = tag["state"].partition(";")
    assert kind == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(state)))


def test_an_experiment_has_a_leaderboard(store):
    made = view(store)
    assert (made["orderByKey"], made["orderByAsc"]) == ("metrics.`best/auroc`", False)
    shown = ("metrics.`operating/sensitivity`", "params.`augmentation`", "params.`optimizer.lr`", "tags.`state`")
    assert set(shown) <= set(made["selectedColumns"])
    charts = made["compareRunCharts"]
    assert [chart["type"] for chart in charts] == ["LINE", "LINE", "LINE", "PARALLEL"]
    sections = [section["uuid"] for section in made["compareRunSections"]]
    assert [sections.index(chart["metricSectionId"]) for chart in charts] == [0, 0, 0, 1]

    show_searched(store, ["model", "optimizer.lr"])
    assert view(store)["compareRunCharts"][-1]["selectedParams"] == ["model", "optimizer.lr"]
    store.client.delete_experiment_tag(store.experiment_id, leaderboard.TAG)
    ensure_leaderboard(store)
    assert view(store) == made


def test_the_address_is_that_of_the_server_that_runs(store, home, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert server.see_it(store, ["a"]) == f"xray ui home={home}"
    assert server.see_it(store, ["a", "b"], last=False) == f"xray ui home={home} 'run_ids=[a,b]'"
    record = {**identity(), "port": 1234, "uri": store.uri}
    (home / server.RECORD).write_text(json.dumps(record))
    base = f"http://127.0.0.1:1234/#/experiments/{store.experiment_id}/runs/a?"
    assert server.see_it(store, ["a"]).startswith(base)
    assert "/#/compare-runs?runs=%5B%22a%22%2C%22b%22%5D&" in server.see_it(store, ["a", "b"])
    (home / server.RECORD).write_text(json.dumps(record | {"born": 0, "since_boot": -1}))  # its process is gone
    assert server.see_it(store, ["a"]) == f"xray ui home={home}"


@pytest.mark.slow
def test_a_server_answers_on_this_machine_alone_and_ends_with_the_block(store, home):
    with server.serve(store, None) as (base, process):
        names = urllib.request.urlopen(f"{base}/ajax-api/2.0/mlflow/experiments/search?max_results=100").read()
        assert b'"view"' in names
        assert base.startswith("http://127.0.0.1:")
        assert server.address(store) == base
        with pytest.raises(InputError, match="is in use"), server.serve(store, int(base.rpartition(":")[2])):
            pass
    assert process.poll() is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert server.address(store) is None
