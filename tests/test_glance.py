"""What a user sees first: MLflow's charts, and the checks that run on GitHub and before a commit."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import PROJECT, use_store
from medtransfer.tracking import mlflow_store

TARGETS = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)


def test_make_ui_prints_the_address_of_the_charts(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_store(tmp_path, empty_store, monkeypatch)
    client = mlflow_store.connect()
    mlflow_store.set_experiment("chest_xray")
    number = client.get_experiment_by_name("chest_xray").experiment_id
    printed = subprocess.run(
        [sys.executable, PROJECT / "tools" / "charts.py", "5001"], capture_output=True, text=True, check=True
    ).stdout
    address = f"http://127.0.0.1:5001/#/experiments/{number}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    assert f"chest_xray: {address}\n" in printed
    assert "tools/charts.py" in (PROJECT / "Makefile").read_text()


def test_the_workflow_runs_targets_of_make_and_posts_what_changed() -> None:
    workflow = YAML(typ="safe").load((PROJECT / ".github" / "workflows" / "study.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["study"]["steps"] if "run" in step]
    made = [line.split()[1] for line in commands if line.startswith("make ")]
    assert made == ["test", "study"]
    assert set(made) <= set(TARGETS)
    assert "dvc metrics diff --md" in commands[-1]
    assert "cml comment" in commands[-1]


def test_a_commit_is_checked_by_make_lint() -> None:
    hooks = YAML(typ="safe").load((PROJECT / ".pre-commit-config.yaml").read_text())
    [hook] = hooks["repos"][0]["hooks"]
    assert hook["entry"] == "make lint"
    assert "lint" in TARGETS
