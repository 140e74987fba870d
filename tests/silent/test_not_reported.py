"""What is not reported counts as absent: ranks, folders, damaged files, contradicting keys (kind A)."""

import pytest
from mlflow import MlflowClient

SMALL = ["data=synthetic", "data.synthetic_patients=20", "data.image_size=32", "trainer=smoke", "evaluation=quick"]


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"])
def test_a_rank_that_a_shell_left_over_changes_nothing(start, tmp_path, name):
    process = start("train", *SMALL, "tracking.system_metrics=false", **{name: "1"})
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"{name}=1" in err
    run_id = out.splitlines()[-1].split()[0].removeprefix("run_id=")
    metrics = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db").get_run(run_id).data.metrics
    assert "val/auroc" in metrics
