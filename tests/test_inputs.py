"""A stage reads only what DVC recorded: a damaged object in DVC's cache stops every stage that reads it."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import keras
import pytest
from ruamel.yaml import YAML
from zc.lockfile import LockFile

from clones import dvc, run
from conftest import PROJECT, dvc_init
from medtransfer.analysis.runs import read_run
from medtransfer.audit import audit
from medtransfer.core.dvc import (
    DVC_LOCK,
    LOCK,
    RWLOCK,
    check_unchanged,
    read_lock,
    recorded_digest,
    same_data,
)
from medtransfer.core.errors import UserError
from medtransfer.core.params import Params, read_params
from medtransfer.core.prepared import read_dataset
from medtransfer.pipeline.baseline import baseline
from medtransfer.pipeline.evaluate import evaluate
from medtransfer.pipeline.explain import explain
from medtransfer.pipeline.prepare import prepare
from medtransfer.pipeline.train import train
from medtransfer.serving.register import best_fit, register
from medtransfer.study.check import check_dvc_files
from medtransfer.study.collect import collect
from medtransfer.study.finished import analyse_layers, check_source, explain_predictions
from medtransfer.training.experiment import load_initial_weights

PREDICTIONS = "id,group,split,label,p_nv,p_mel\na,g,test,nv,0.7,0.3\n"
VALIDATED = PREDICTIONS.replace("test", "validation")
RUN = json.dumps(
    {"kind": "baseline", "dataset": "ham10000", "model": "decision_tree", "seed": 0, "fit": "f",
     "hyperparameters": {"decision_tree": {}}, "data_version": "d", "git_commit": "c"}
)  # fmt: skip
FILES = {
    "data/ham10000/HAM10000_metadata.csv": "lesion_id,image_id,dx\n",
    "artifacts/prepared/ham10000/dataset.json": "{}",
    "artifacts/prepared/ham10000/images.npy": "pixels",
    "artifacts/runs/ham10000/imagenet_all-seed0/model.keras": "weights",
    "artifacts/runs/ham10000/imagenet_all-seed0/predictions.csv": VALIDATED.replace("0.7,0.3", "0.3,0.7"),
    "artifacts/runs/ham10000/imagenet_head-seed0/model.keras": "better weights",
    "artifacts/runs/ham10000/imagenet_head-seed0/predictions.csv": VALIDATED,
    "artifacts/runs/ham10000/decision_tree-seed0/run.json": RUN,
    "artifacts/runs/ham10000/decision_tree-seed0/predictions.csv": PREDICTIONS,
    "artifacts/activations/ham10000/activations.npz": "activations",
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose outputs DVC has recorded and links into its cache."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n[cache]\n    type = symlink\n")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    outs = sorted({str(Path(name).parent) for name in FILES if name.startswith("artifacts/")})
    stage = {"cmd": "true", "outs": outs, "params": ["trees.decision_tree"]}
    shutil.copy(PROJECT / "params.yaml", folder)
    (folder / "dvc.yaml").write_text(json.dumps({"stages": {"all": stage}}))
    dvc(folder, "add", "--quiet", "data")
    dvc(folder, "commit", "--quiet", "--force")
    assert all((folder / name).is_symlink() for name in FILES)
    return folder


def tree_alone(params: Params) -> Params:
    """The study with one fit: the recorded one."""
    study = params.study["ham10000"].model_copy(update={"train": [], "transfer": []})
    return params.model_copy(update={"study": {"ham10000": study}, "baselines": ["decision_tree"], "seeds": [0]})


def start(params: Params) -> None:
    load_initial_weights(keras.Model(), params.configurations["ham10000_all"], 0, None)


READERS: dict[str, tuple[str, Callable[[Params], object]]] = {
    "prepare": ("data/ham10000/HAM10000_metadata.csv", lambda params: prepare(params, "ham10000")),
    "read_dataset": (
        "artifacts/prepared/ham10000/images.npy", lambda params: read_dataset(params, "ham10000")),
    "baseline": (
        "artifacts/prepared/ham10000/images.npy", lambda params: baseline(params, "ham10000", "decision_tree", 0)),
    "train": (
        "artifacts/prepared/ham10000/images.npy", lambda params: train(params, "ham10000", "imagenet_all", 0)),
    "explain": ("artifacts/prepared/ham10000/images.npy", lambda params: explain(params, "ham10000")),
    "a network to begin from": ("artifacts/runs/ham10000/imagenet_all-seed0/model.keras", start),
    "evaluate, a fit": (
        "artifacts/runs/ham10000/decision_tree-seed0/predictions.csv", lambda params: evaluate(tree_alone(params))),
    "evaluate, activations": (
        "artifacts/activations/ham10000/activations.npz", lambda params: evaluate(tree_alone(params))),
    "collect": ("artifacts/runs/ham10000/decision_tree-seed0/predictions.csv", lambda params: collect("mine")),
    "collect's split": ("artifacts/prepared/ham10000/dataset.json", lambda params: collect("mine")),
    "register, not the best": (
        "artifacts/runs/ham10000/imagenet_all-seed0/model.keras", lambda params: register(params, "ham10000")),
    "register, the best": (
        "artifacts/runs/ham10000/imagenet_head-seed0/predictions.csv", lambda params: register(params, "ham10000")),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_object_in_the_cache_stops_the_stage_that_reads_it(
    recorded: Path, params: Params, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    name, read = READERS[reader]
    monkeypatch.chdir(recorded)
    cached = Path(name).resolve()
    whole = cached.read_bytes()
    cached.chmod(0o644)
    cached.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    before = sorted(recorded.rglob("*"))
    try:
        with pytest.raises(UserError) as caught:
            read(params)
    finally:
        cached.write_bytes(whole)
    assert str(caught.value).startswith(f"{'data' if name.startswith('data') else Path(name).parent}: differs from ")
    assert Path(name).name in str(caught.value)
    assert str(cached.relative_to(recorded)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(recorded.rglob("*")) == before


def test_an_audit_reads_the_data(
    recorded: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC itself would not notice: the files' times and sizes stay the same."""
    monkeypatch.chdir(recorded)
    shutil.copy(empty_store, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/{empty_store.name}")
    names = {
        "data": "ham10000/HAM10000_metadata.csv",
        "artifacts/prepared/ham10000": "images.npy",
        "artifacts/activations/ham10000": "activations.npz",
    }

    def damaged() -> list[str]:
        return [line.partition(": differs from ")[0] for line in audit.audit() if ": differs from " in line]

    assert damaged() == []
    whole = {}
    for folder, name in names.items():
        cached = (recorded / folder / name).resolve()
        whole[cached], found = cached.read_bytes(), cached.stat()
        cached.chmod(0o644)
        cached.write_bytes(bytes([whole[cached][0] ^ 1]) + whole[cached][1:])
        os.utime(cached, ns=(found.st_atime_ns, found.st_mtime_ns))  # as on a disk that loses a bit
    try:
        assert damaged() == list(names)
    finally:
        for cached, content in whole.items():
            cached.write_bytes(content)


@pytest.mark.parametrize(
    ("lost", "read"),
    [
        ("decision_tree-seed0/run.json", lambda: collect("mine")),
        ("imagenet_head-seed0/model.keras", lambda: best_fit(read_params(PROJECT / "params.yaml"), "ham10000")),
    ],
)
def test_a_fit_that_lost_a_file_is_not_silently_left_out(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, lost: str, read: Callable[[], object]
) -> None:
    monkeypatch.chdir(recorded)
    assert best_fit(read_params(PROJECT / "params.yaml"), "ham10000").name == "imagenet_head-seed0"
    path = Path("artifacts/runs/ham10000", lost)
    cached = path.readlink()
    path.unlink()
    try:
        with pytest.raises(UserError, match=rf"{path.parent}: differs from dvc\.lock .*: {path.name}; "):
            read()
    finally:
        path.symlink_to(cached)


def test_a_fit_that_is_not_here_is_said_to_be_missing(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(recorded)
    fit = Path("artifacts/runs/ham10000/decision_tree-seed0")
    away = fit.rename(fit.parent.parent / "away")
    try:
        for read in (
            lambda: read_run(fit),
            lambda: best_fit(read_params(PROJECT / "params.yaml"), "ham10000"),
            lambda: collect("mine"),
        ):
            with pytest.raises(UserError, match=rf"{fit}: not found, but dvc\.lock names it; run `dvc repro`"):
                read()
        with monkeypatch.context() as clone:
            clone.setattr("medtransfer.core.dvc.DATA", Path("nowhere"))
            with pytest.raises(UserError, match=r"run `dvc pull` if a remote has it, or else `dvc pull data\.dvc` and"):
                read_run(fit)
    finally:
        away.rename(fit)


def test_the_search_for_the_best_names_fits_that_the_study_no_longer_lists(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(recorded)
    params = read_params(PROJECT / "params.yaml")
    best_fit(params, "ham10000")
    assert not caplog.text
    best_fit(params.model_copy(update={"baselines": []}), "ham10000")
    assert "artifacts/runs/ham10000: contains fits of decision_tree" in caplog.text
    assert "not candidates" in caplog.text


# --- DVC's own files, cut


@pytest.fixture
def small_lock(recorded: Path) -> str:
    """A dvc.lock of three stages as DVC writes them."""
    yaml = YAML(typ="safe")
    entry = yaml.load((recorded / "dvc.lock").read_text())["stages"]["all"]["outs"][0]
    file = {"path": "src/a.py", "hash": "md5", "md5": "0123456789abcdef0123456789abcdef", "size": 120}
    stages = {
        f"prepare@{name}": {
            "cmd": f"medtransfer stage prepare {name}",
            "deps": [file, {**entry, "path": f"data/{name}"}],
            "params": {"params.yaml": {f"datasets.{name}": {"image_size": 32}}},
            "outs": [{**entry, "path": f"artifacts/prepared/{name}"}],
        }
        for name in ("ham10000", "chest_xray", "scans")
    }
    text = io.StringIO()
    block = YAML()
    block.dump({"schema": "2.0", "stages": stages}, text)
    return text.getvalue()


def put_into_git(name: str) -> None:
    run(Path(), "git", "init", "--quiet")
    run(Path(), "git", "add", name)


def test_a_cut_lock_is_refused_unless_the_rest_is_complete(
    small_lock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_text(small_lock)
    put_into_git("dvc.lock")
    whole = read_lock()
    refused: list[str] = []
    left: list[int] = []
    assert len(whole) == 3
    for end in range(len(small_lock)):
        Path("dvc.lock").write_text(small_lock[:end])
        try:
            stages = read_lock()
        except UserError as error:
            refused.append(str(error))
        else:
            assert stages == {name: whole[name] for name in stages}
            left.append(len(stages))
    assert left == [0, 1, 2]  # cut between stages
    assert all("git checkout dvc.lock" in line for line in refused)


def test_a_cut_pointer_is_refused_at_every_place(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointer = (recorded / "data.dvc").read_text()
    monkeypatch.chdir(tmp_path)
    Path("data.dvc").write_text(pointer)
    put_into_git("data.dvc")
    for end in range(len(pointer)):
        Path("data.dvc").write_text(pointer[:end])
        with pytest.raises(UserError, match=r"git checkout data\.dvc"):
            check_unchanged(Path("data"))
    Path("data.dvc").write_text(pointer)
    with pytest.raises(UserError, match=r"data: not found, but data\.dvc names it; run `dvc pull data\.dvc`"):
        check_unchanged(Path("data"))


@pytest.mark.parametrize("name", ["dvc.lock", "data.dvc"])
def test_a_merge_conflict_is_named_and_a_zip_is_not_sent_to_git(
    dvc_project: Path, recorded: Path, small_lock: str, name: str
) -> None:
    whole = small_lock if name == "dvc.lock" else (recorded / name).read_text()
    lines = whole.splitlines(keepends=True)
    conflict = [*lines[:1], "<<<<<<< HEAD\n", *lines[1:], "=======\n", *lines[1:], ">>>>>>> theirs\n"]
    for content, command in (("".join(conflict), f"`git checkout --ours {name}`"), ("", "copy it again")):
        Path(name).write_text(content)
        with pytest.raises(UserError) as refused:
            check_dvc_files()
        assert command in str(refused.value)
    Path(".dvc/config").write_text("")
    with pytest.raises(UserError, match=r"run `git init && git add [.] && git commit"):
        check_dvc_files()


def test_a_source_that_was_trained_again_is_not_the_start_of_its_transfer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = "{path: artifacts/runs/a/%s-seed0, md5: %s.dir, size: 1, nfiles: 1}"
    start, fit = Path("artifacts/runs/a/first-seed0"), Path("artifacts/runs/a/second-seed0")
    record = {
        "hyperparameters": {"configuration": {"weights": "a/first", "trainable": "head"}},
        "seed": 0,
        "kind": "network",
    }
    for again in ("0", "1"):
        first, before = entry % ("first", again * 32), entry % ("first", "0" * 32)
        Path("dvc.lock").write_text(
            "schema: '2.0'\nstages:\n"
            f"  train@first: {{cmd: a, outs: [{first}]}}\n"
            f"  transfer@second: {{cmd: b, deps: [{before}], outs: [{entry % ('second', '2' * 32)}]}}\n"
        )
        with (
            nullcontext() if again == "0" else pytest.raises(UserError, match=f"{start}: was trained again after {fit}")
        ):
            check_source(fit, record)


def test_results_on_another_disk_are_refused_before_anything_runs(
    dvc_project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """DVC would refuse them after the first fit."""
    check_dvc_files()
    Path("artifacts").symlink_to(tmp_path_factory.mktemp("scratch"))
    with pytest.raises(UserError, match=r"artifacts: a link to .*scratch.*, outside the project"):
        check_dvc_files()


def test_links_to_a_cache_that_was_moved_are_named(dvc_project: Path) -> None:
    """With `cache.type symlink`, DVC's links contain the project's old path."""
    Path("data").mkdir()
    Path("data/a.txt").write_text("whole")
    for command in (["config", "cache.type", "symlink"], ["add", "--quiet", "data"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True)
    check_dvc_files()
    Path(".dvc/cache").rename(".dvc/moved")
    with pytest.raises(UserError, match=r"data/a\.txt: a link to .*, which is missing; `dvc checkout` restores"):
        check_dvc_files()


def test_another_data_set_makes_no_other_version_of_one(dvc_project: Path) -> None:
    """Otherwise, after `data add` the audit would find every older fit wrong, and `collect --add` would refuse."""
    versions = []
    for content in ("first", "second"):
        for name in ("old", "new"):
            Path("data", name).mkdir(parents=True, exist_ok=True)
            Path("data", name, "a.txt").write_text(content if name == "new" else "same")
        subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", "data"], check=True)
        Path("data/new/a.txt").chmod(0o644)
        Path("data/old/a.txt").chmod(0o644)
        versions.append(recorded_digest(Path("data")) or "")
    assert versions[0] != versions[1]
    assert same_data("old", *versions)
    assert not same_data("new", *versions)
    assert not same_data("old", versions[0], f"{'0' * 32}.dir")  # a version that DVC's cache lacks


def test_the_original_is_found_in_a_shared_cache(dvc_project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    shared = tmp_path_factory.mktemp("shared")
    (dvc_project / "data").mkdir()
    (dvc_project / "data" / "a.txt").write_text("whole")
    for command in (["cache", "dir", str(shared)], ["add", "--quiet", "data"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True)
    (dvc_project / "data" / "a.txt").unlink()
    (dvc_project / "data" / "a.txt").write_text("damaged")
    with pytest.raises(UserError, match="dvc checkout --force data"):
        check_unchanged(Path("data"))
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "--force", "data.dvc"], check=True)
    assert (dvc_project / "data" / "a.txt").read_text() == "whole"


def test_dvc_lock_is_read_while_a_queue_of_experiments_holds_dvcs_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    DVC_LOCK.parent.mkdir(parents=True)
    LOCK.write_text("schema: '2.0'\nstages: {}\n")
    held = LockFile(str(DVC_LOCK))  # as DVC does it
    assert read_lock() == {}
    held.close()


def test_a_cut_rwlock_is_refused_at_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dvc_init(tmp_path)
    held = {"pid": 1, "cmd": "repro"}
    whole = json.dumps({"write": {"/project/artifacts": held}, "read": {"/project/data": [held]}})
    for end in range(len(whole)):
        RWLOCK.write_text(whole[:end])
        with pytest.raises(UserError, match=r"rm \.dvc/tmp/rwlock"):
            check_dvc_files()
    RWLOCK.write_text(whole)
    check_dvc_files()


@pytest.mark.parametrize("ask", [analyse_layers, explain_predictions])
@pytest.mark.parametrize(
    ("dataset", "name", "line"),
    [
        ("nope", "imagenet_all", "params.yaml: datasets: 'nope' is unknown; choose one of ham10000, chest_xray"),
        ("ham10000", "nope", "params.yaml: configurations: 'nope' is unknown; choose one of cnn_random, "),
        ("ham10000", "decision_tree", "decision_tree: a tree, not a network; the networks are cnn_random, "),
        ("chest_xray", "imagenet_all", "artifacts/runs/chest_xray/imagenet_all-seed0/model.keras: not found; run"),
    ],
)
def test_a_network_that_cannot_be_used_is_named(
    recorded: Path,
    params: Params,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[Params, str, str, int], Path],
    dataset: str,
    name: str,
    line: str,
) -> None:
    monkeypatch.chdir(recorded)
    with pytest.raises(UserError) as caught:
        ask(params, dataset, name, 0)
    assert str(caught.value).startswith(line)
