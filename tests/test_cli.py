"""The command line: a user's mistake is one line and exit code 2; our own keeps its traceback."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from conftest import AT_64_PX, PROJECT, dvc_init
from medtransfer.cli import cli, main
from medtransfer.core.errors import UserError
from medtransfer.core.params import WEIGHTS_VARIABLE, Configuration, Params, StudyParams, read_params
from medtransfer.core.recipe import TALK, TrainParams
from medtransfer.data.catalogue import SOURCE_FILE
from medtransfer.study.check import check_pipeline, describe_study
from medtransfer.study.run import DVC

COMMAND = [sys.executable, "-m", "medtransfer"]
# A signal comes within a callback of the garbage collector.
DROPPED = """
import gc, signal, time
import click
from medtransfer.cli import app

def command(**_):
    def callback(*_):
        gc.callbacks.clear()
        signal.raise_signal({number})
    gc.callbacks.append(callback)
    gc.collect()
    try:
        time.sleep(50)
    except KeyboardInterrupt:
        raise click.Abort

app.cli = command
app.main()
"""
# Ctrl-C comes when Python looks for the command's modules.
INTERRUPTED = """
import sys, types

def find_spec(name, *_):
    if name == "medtransfer.cli":
        raise KeyboardInterrupt

sys.meta_path.insert(0, types.SimpleNamespace(find_spec=find_spec))
from medtransfer.__main__ import main
main()
"""


def medtransfer(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, in this process: Keras is already loaded."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        mock.patch.dict(os.environ, environment),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
        pytest.raises(SystemExit) as ended,
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["medtransfer", *arguments])
        patch.setattr(signal, "signal", lambda *_: None)
        main()
    code = ended.value.code or 0
    assert isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    return result.stderr.strip().splitlines()[-1]


def test_ctrl_c_while_the_command_is_loaded_is_one_line() -> None:
    result = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "Stopped. Run the command again to continue.\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_during_a_collection_of_garbage_stops_the_command(number: signal.Signals) -> None:
    """JAX has a callback of the garbage collector, and Python drops what is raised there."""
    result = subprocess.run(
        [sys.executable, "-c", DROPPED.format(number=int(number))], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (1, "\nStopped. Run the command again to continue.\n")


def test_a_folder_that_was_removed_is_one_line(tmp_path: Path) -> None:
    command = f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; {shlex.join([*COMMAND, 'check'])}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("medtransfer: the current folder was removed; ")


def test_another_version_of_a_package_in_pythonpath_is_one_line(tmp_path: Path) -> None:
    """As the modules of a cluster bring it."""
    (tmp_path / "typing_extensions.py").touch()
    found = {**os.environ, "PYTHONPATH": f"{tmp_path}:{PROJECT / 'src'}"}
    result = subprocess.run([sys.executable, "-m", "medtransfer"], capture_output=True, text=True, env=found)
    told = "PYTHONPATH: has other versions of typing_extensions; unset it (`unset PYTHONPATH`), then run again"
    assert (result.returncode, result.stderr) == (2, f"medtransfer: {told}\n")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    dvc_init(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stage", "prepare", "nowhere"], "datasets: 'nowhere' is unknown; choose one of ham10000, chest_xray"),
        (["stage", "prepare", "ham10000"], "HAM10000_metadata.csv: not found"),
        (["stage", "baseline", "ham10000", "decision_tree", "--seed", "0"], "then run `dvc repro prepare@ham10000`"),
        (["tune", "ham10000"], "get the data (`dvc pull data.dvc`"),
        (["stage", "train", "ham10000", "nothing", "--seed", "0"], "configurations: 'nothing' is unknown"),
        (["stage", "evaluate"], "no finished fit"),
        (["results"], "reports/results.csv: not found; run `medtransfer study`"),
        (["check"], "HAM10000_metadata.csv: not found, nor"),
        (["data", "import", "ham10000", "none.zip"], "none.zip: not found"),
        (["data", "import", "moles", "none.zip"], "'moles' is unknown; choose one of ham10000, chest_xray"),
        (["data", "validate", "chest_xray"], "data/chest_xray: not found"),
        (["data", "describe", "ham10000"], "HAM10000_metadata.csv: not found"),
        (["data", "describe"], "HAM10000_metadata.csv: not found"),
        (["weights", "verify", "none.h5"], "none.h5: not found"),
        (["tune", "ham10000", "--output", "x.db"], "--output: x.db: is the name of Optuna's file"),
        (["report", "--output", "params.yaml"], "--output: params.yaml: expected a name that ends in .html"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(project: Path, arguments: list[str], message: str) -> None:
    before = sorted(project.rglob("*"))
    result = medtransfer(project, *arguments)
    assert result.returncode == 2, result.stderr
    assert last_line(result).startswith("medtransfer: ")
    assert message in last_line(result)
    assert "Traceback" not in result.stderr
    left = [path for path in sorted(project.rglob("*")) if path not in before and path.is_file()]
    assert left == [], "something half-written was left"


@pytest.mark.parametrize("rate", ["nan", "inf", "0"])
def test_a_rate_that_is_no_number_is_refused_before_anything_starts(project: Path, rate: str) -> None:
    result = medtransfer(project, "sweep", "s", "--local", "--dataset", "ham10000", "--rate", rate)
    assert result.returncode == 2
    assert "Invalid value for '--rate'" in last_line(result)


def test_a_user_without_a_name_gets_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on clusters, where a job may have a number that is not in /etc/passwd."""

    def refuse(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", refuse)
    result = medtransfer(project, "check")
    assert result.returncode == 2
    assert last_line(result).endswith("has no name or home; set LOGNAME to a name and HOME to a folder")


def test_a_mistake_on_the_command_line_is_one_line(project: Path) -> None:
    result = medtransfer(project, "tables", "nope")
    assert result.returncode == 2
    assert result.stderr == (
        "medtransfer tables: Invalid value for 'FOLDER': Directory 'nope' does not exist. See `medtransfer tables "
        "--help`.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("data add scans images --group ''", "medtransfer data add: --group is empty"),
        ("data add scans images --split-column=", "medtransfer data add: --split-column is empty"),
        ("predict ham10000 x.png --model ''", "medtransfer predict: --model is empty"),
        ("predict ham10000 ''", "medtransfer predict: an argument is empty"),
        ("predict ham10000 x.png --output ''", "medtransfer predict: --output is empty"),
        ("serve ham10000 --host ''", "medtransfer serve: --host is empty"),
    ],
)
def test_an_empty_value_does_not_pass_for_one_that_was_not_given(project: Path, arguments: str, told: str) -> None:
    """Without its column of patients, a split by patient would be one by image; a script's variable may be empty."""
    result = medtransfer(project, *shlex.split(arguments))
    assert result.returncode == 2
    assert last_line(result).startswith(f"{told}; expected a value")


@pytest.mark.parametrize(
    ("output", "told"),
    [("/dev/null", "is not a regular file"), ("data/mine/labels.csv", "is in data, which has the raw data only")],
)
def test_neither_a_device_nor_the_raw_data_are_replaced_by_a_file(project: Path, output: str, told: str) -> None:
    for command in ("tune ham10000", "predict ham10000 params.yaml", "report"):
        result = medtransfer(project, *command.split(), "--output", output)
        assert result.returncode == 2
        assert f"Invalid value for '--output': {output} {told}" in last_line(result)


def test_a_reader_that_has_ended_and_a_group_without_a_command_are_no_traceback(project: Path) -> None:
    command = f"{shlex.join([*COMMAND, 'stage', '--help'])} | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("1\n", "")
    (project / "reports").mkdir()
    shutil.copy(PROJECT / AT_64_PX / "results.csv", project / "reports")
    command = f"{shlex.join([*COMMAND, 'results'])} >&-; echo $? >&2"  # as a service may start it
    assert subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True).stderr == "0\n"
    command = f"{shlex.join([*COMMAND, 'register', 'ham10000'])} <&- 2>&-; echo $?"
    assert subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True).stdout == "2\n"
    help_alone = medtransfer(project, "data")
    assert help_alone.returncode == 2
    assert help_alone.stderr.startswith("Usage: medtransfer data")


def test_data_that_were_never_pulled_are_said_to_be(project: Path) -> None:
    asked = ["data", "validate", "chest_xray"]
    assert "dvc pull" not in last_line(medtransfer(project, *asked))
    shutil.copy(PROJECT / "data.dvc", project)
    assert last_line(medtransfer(project, *asked)).endswith(
        "`medtransfer data import NAME FILE`, or run `dvc pull data.dvc`"
    )


def test_without_names_the_studys_data_sets_are_looked_at_and_what_is_there(project: Path, demo: Path) -> None:
    text = (project / "params.yaml").read_text()
    study = text[text.index("study:") : text.index("trees:")]
    (project / "params.yaml").write_text(text.replace(study, study.split("  chest_xray:")[0]))
    (project / "data").mkdir()
    (project / "data" / "ham10000").symlink_to(demo / "ham10000")
    alone = medtransfer(project, "data", "validate")
    assert alone.returncode == 0, alone.stderr
    assert "ham10000: 340 images" in alone.stdout
    assert "chest_xray" not in alone.stdout
    (project / "data" / "chest_xray").symlink_to(demo / "chest_xray")
    assert "chest_xray: 220 images" in medtransfer(project, "data", "validate").stdout


def test_a_wrong_params_file_stops_every_command_that_reads_it(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("[block5]", "[block9]"))
    for arguments in (["study"], ["stage", "train", "ham10000", "cnn_random", "--seed", "0"]):
        result = medtransfer(project, *arguments)
        assert result.returncode == 2
        assert "configurations.imagenet_last_block.trainable: found ['block9']" in last_line(result)


def test_a_check_finds_a_stage_that_is_missing(project: Path, demo: Path) -> None:
    (project / "data").symlink_to(demo)
    (project / "dvc.yaml").write_text((PROJECT / "dvc.yaml").read_text())
    result = medtransfer(project, "check")
    assert result.returncode == 0, result.stderr
    described = [
        line for line in result.stdout.splitlines(keepends=True) if "SYNTHETIC" not in line and "recipe" not in line
    ]
    assert "".join(described) == (
        "params.yaml: no mistakes found\n"
        "ham10000: 340 images, 32 x 32 px, split by lesion; 8 fits\n"
        "chest_xray: 220 images, 32 x 32 px, split by patient; 5 fits\n"
    )
    text = (project / "params.yaml").read_text()
    text = text.replace("transfer: [ham10000_all]", "transfer: [ham10000_all, again]")
    text = text.replace(
        "  ham10000_all: {", "  again: {weights: ham10000/cnn_random, trainable: all}\n  ham10000_all: {"
    )
    (project / "params.yaml").write_text(text)
    for command in ("check", "study"):
        result = medtransfer(project, command)
        assert result.returncode == 2
        assert "dvc.yaml: no stage trains again on chest_xray" in last_line(result)
    stages = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text())
    again = json.loads(json.dumps(stages["stages"]["transfer"]).replace("ham10000_all", "again"))
    stages["stages"]["transfer"]["matrix"]["configuration"] = ["ham10000_all"]
    stages["stages"]["again"] = again | {"matrix": {**again["matrix"], "configuration": ["again"]}}
    YAML().dump(stages, project / "dvc.yaml")
    assert medtransfer(project, "check").returncode == 0


def test_a_configuration_is_taken_out_of_the_study_without_an_edit_of_dvc_yaml(project: Path, demo: Path) -> None:
    (project / "data").symlink_to(demo)
    (project / "dvc.yaml").write_text((PROJECT / "dvc.yaml").read_text())
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("transfer: [ham10000_all]", "transfer: []"))
    assert medtransfer(project, "check").returncode == 0
    (project / "params.yaml").write_text(text.replace("    transfer: [ham10000_all]\n", ""))
    result = medtransfer(project, "check")
    assert result.returncode == 2
    assert "study.chest_xray.transfer: not found, but dvc.yaml reads it; write `transfer: []`" in last_line(result)


def test_a_check_tells_drawn_from_real_images_and_misses_a_weights_file(
    params: Params, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    shutil.copytree(demo, "data")
    from_skin = "chest_xray: ham10000_all would start from a network trained on demonstration data of ham10000"
    described = "\n".join(describe_study(params))
    assert "ham10000: SYNTHETIC demonstration data" in described
    assert "chest_xray: SYNTHETIC demonstration data" in described
    assert from_skin not in described
    Path("data", "chest_xray", SOURCE_FILE).unlink()  # as if somebody had put real ones there
    described = "\n".join(describe_study(params))
    assert "ham10000: SYNTHETIC demonstration data" in described
    assert "chest_xray: SYNTHETIC demonstration data" not in described
    assert from_skin in described
    named = params.model_copy(update={"weights": params.weights.model_copy(update={"file": "nope.h5"})})
    no_network = {name: StudyParams(train=[], transfer=[]) for name in params.study}
    for study in (params.study, no_network):  # the stage `explain` always needs the file
        with pytest.raises(UserError, match=r"params\.yaml: weights\.file: nope\.h5: no such file"):
            list(describe_study(named.model_copy(update={"study": study})))


def test_a_check_says_how_each_network_differs_from_its_named_recipe(
    params: Params, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo, "data")
    plain = TrainParams(**{key: value for key, value in dict(params.train).items() if key not in TALK})
    configurations = dict.fromkeys(params.configurations, Configuration(weights="random", trainable="all"))
    configurations["imagenet_all"] = Configuration(weights="random", trainable="all", recipe="modern", average=0.0)
    lines = list(describe_study(params.model_copy(update={"train": plain, "configurations": configurations})))
    assert lines[0].startswith("The modern recipe is the talk's with augment.flips auto, augment.crop 0.75, ")
    networks = ", ".join(name for name in params.study["ham10000"].networks if name != "imagenet_all")
    assert f"ham10000: {networks}: talk recipe" in lines
    assert "ham10000: imagenet_all: modern recipe with average 0.0" in lines
    assert "not trained" not in "".join(lines)


def test_a_check_names_a_configuration_that_no_data_set_trains(
    params: Params, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo, "data")
    more = {**params.configurations, "forgotten": Configuration(weights="random", trainable="all")}
    *_, last = describe_study(params.model_copy(update={"configurations": more}))
    assert last == "not trained on any data set: forgotten (list them under study.NAME.train)"


def test_a_check_names_the_users_keras_settings_that_are_not_used(project: Path, demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, project / "data")
    settings = {"backend": "torch", "floatx": "float16", "epsilon": 1e-7}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    shown = medtransfer(project, "check", KERAS_HOME=str(tmp_path), KERAS_BACKEND="jax")
    (line,) = [line for line in shown.stdout.splitlines() if "keras.json" in line]
    assert line.endswith("not used: floatx float16, backend torch (KERAS_BACKEND is jax)")
    refused = medtransfer(project, "check", KERAS_BACKEND="TensorFlow")
    assert refused.returncode == 2
    assert refused.stderr == "medtransfer: KERAS_BACKEND: found 'TensorFlow'; expected tensorflow or jax\n"


@pytest.mark.parametrize(
    "settings",
    [
        {"MPLBACKEND": "nonsense"},
        {"MATPLOTLIBRC": "matplotlibrc"},  # of a user who has LaTeX elsewhere
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_settings_of_the_user_change_no_file(project: Path, demo: Path, settings: dict[str, str]) -> None:
    shutil.copytree(demo, project / "data")
    (project / "matplotlibrc").write_text("text.usetex: True\n")
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(f"# \N{GREEK SMALL LETTER ALPHA}\n{params}")
    command = [*COMMAND, "data", "describe", "chest_xray", "--plots", "plots"]
    subprocess.run(command, cwd=project, env={**os.environ, **settings}, check=True, capture_output=True)
    found = (project / "plots" / "chest_xray.png").read_bytes()
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    assert found == (project / "plots" / "chest_xray.png").read_bytes()


def test_keras_limits_and_an_unknown_level_of_mlflow_are_ignored(project: Path) -> None:
    code = "import medtransfer.cli as c; c.cli(['cache', 'show'], standalone_mode=False); "
    code += "import keras, mlflow; print(keras.config.max_epochs(), keras.config.max_steps_per_epoch())"
    limits = {"KERAS_MAX_EPOCHS": "1", "KERAS_MAX_STEPS_PER_EPOCH": "1", "MLFLOW_LOGGING_LEVEL": "nonsense"}
    found = subprocess.run([sys.executable, "-c", code], cwd=project, env={**os.environ, **limits}, capture_output=True)
    assert found.stdout.endswith(b"None None\n"), found


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml"])
def test_a_merge_conflict_in_the_settings_is_named(project: Path, name: str) -> None:
    whole = (PROJECT / name).read_text()
    (project / name).write_text(f"<<<<<<< HEAD\n{whole}=======\n{whole}>>>>>>> theirs\n")
    refused = medtransfer(project, "check")
    assert refused.returncode == 2
    assert last_line(refused).startswith(f"medtransfer: {name}: has a merge conflict; take either side (`git checkout")


def test_a_git_hook_of_another_repository_does_not_change_the_commit(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "other.git"], check=True)
    code = "import medtransfer.cli as c; c.cli(['cache', 'show'], standalone_mode=False); "
    code += "from medtransfer.core.provenance import git_commit; print(git_commit())"
    hook = {**os.environ, "GIT_DIR": str(tmp_path / "other.git"), "GIT_INDEX_FILE": "index"}
    found = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=hook, capture_output=True, text=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert found.stdout.split()[-1].startswith(head.stdout.strip()), found


def test_no_proxy_is_asked_for_this_machine(project: Path) -> None:
    proxies = {"http_proxy": "http://127.0.0.1:1", "no_proxy": "intranet"}
    code = "import medtransfer.cli as c, requests; c.cli(['cache', 'show'], standalone_mode=False); "
    code += "print(requests.utils.get_environ_proxies('http://127.0.0.1:5000'), requests.utils.get_environ_proxies('http://intranet'))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env={**os.environ, **proxies}, capture_output=True
    )
    assert found.stdout.endswith(b"{} {}\n"), found


@pytest.mark.parametrize("command", ["check", "study"])
def test_a_home_that_is_no_folder_is_named_before_dvc_looks_there(project: Path, command: str) -> None:
    refused = medtransfer(project, command, HOME="/dev/null")
    assert refused.returncode == 2
    assert last_line(refused).startswith("medtransfer: HOME: /dev/null is not a folder")


def test_a_home_that_cannot_be_made_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("XDG_CACHE_HOME", WEIGHTS_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    refused = medtransfer(project, "weights", "fetch", HOME="/proc/nobody")
    assert refused.returncode == 2
    assert last_line(refused).endswith(
        "/proc/nobody: No such file or directory; set XDG_CACHE_HOME to a folder that you can write, then run again"
    )


def test_the_params_for_the_real_data_are_those_of_the_results(pipeline: Path) -> None:
    real = read_params(PROJECT / "results" / "params-real.yaml")
    made = read_params(PROJECT / "results" / "real-64px-by-group" / "params.yaml")
    assert real.configurations == {name: made.configurations[name] for name in real.configurations}
    assert real.datasets == made.datasets
    assert real.train.model_copy(update={"precision": made.train.precision}) == made.train
    check_pipeline(real)


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's dvc.yaml in a folder of its own, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(PROJECT / "dvc.yaml", tmp_path / "dvc.yaml"))


def test_a_check_finds_what_only_the_pipeline_has(pipeline: Path, params: Params) -> None:
    check_pipeline(params)
    skin = {"ham10000": params.study["ham10000"]}
    with pytest.raises(
        UserError, match=r"study\.chest_xray: not found, but dvc\.yaml reads study\.chest_xray\.train; "
    ):
        check_pipeline(params.model_copy(update={"study": skin}))
    pipeline.write_text(pipeline.read_text().replace('"${study.chest_xray.transfer}"', "[ham10000_all]"))
    no_chain = params.study["chest_xray"].model_copy(update={"transfer": []})
    with pytest.raises(UserError, match=r"study\.chest_xray: has no ham10000_all, but a stage of dvc\.yaml trains it"):
        check_pipeline(params.model_copy(update={"study": {**skin, "chest_xray": no_chain}}))


def test_an_empty_stage_is_named(pipeline: Path, params: Params) -> None:
    pipeline.write_text("stages:\n  prepare:\n")
    with pytest.raises(UserError, match=r"dvc\.yaml: cannot be read as a pipeline: the stage prepare is empty"):
        check_pipeline(params)


@pytest.mark.parametrize("name", ["extra", "real", "recipes"])
def test_the_committed_parameters_need_no_other_pipeline(pipeline: Path, name: str) -> None:
    check_pipeline(read_params(PROJECT / "results" / f"params-{name}.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"${study.chest_xray.train}"', "[cnn_random]", "dvc.yaml: no stage trains imagenet_all on chest_xray"),
        ("<<: *train", "<<: *trian", "dvc.yaml: cannot be read as a pipeline: found undefined alias"),
        ("stages:", "steps:", "dvc.yaml: cannot be read as a pipeline"),
    ],
)
def test_a_check_finds_a_pipeline_that_lacks_something(
    pipeline: Path, params: Params, old: str, new: str, message: str
) -> None:
    text = pipeline.read_text()
    assert old in text
    pipeline.write_text(text.replace(old, new))
    with pytest.raises(UserError) as error:
        check_pipeline(params)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_our_own_mistakes_keep_their_traceback(project: Path) -> None:
    code = "import medtransfer.cli as c; c.study.read_params = None; c.main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "stage", "evaluate"], cwd=project, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    "exhaust", [lambda _: np.empty(10**16), lambda _: keras.ops.zeros((10**14,))], ids=["NumPy", "the backend"]
)
def test_too_little_memory_is_one_line(project: Path, exhaust: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtransfer.cli.study.read_params", exhaust)
    result = medtransfer(project, "stage", "evaluate")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    # The reason has the size, such as '71.1 PiB' or '[100000000000000]'.
    assert re.match(r"medtransfer: not enough memory here or on the GPU \(.*(71\.1 PiB|10{14}).*\); free", line)


@pytest.mark.parametrize(
    ("name", "told"), [("MLFLOW_CONFIGURE_LOGGING", "value must be one of"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "'x' for")]
)
def test_a_variable_that_mlflow_cannot_read_is_one_line(project: Path, name: str, told: str) -> None:
    env = {**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:1", name: "x"}
    refused = subprocess.run([*COMMAND, "audit"], cwd=project, env=env, capture_output=True, text=True)
    assert refused.returncode == 2
    assert told in last_line(refused)
    assert name in last_line(refused)
    assert last_line(refused).endswith("; correct or unset this variable, then run again")


def test_values_that_keras_refuses_in_the_users_keras_json_are_one_line(
    project: Path, demo: Path, tmp_path: Path
) -> None:
    shutil.copytree(demo, project / "data")
    (tmp_path / "keras.json").write_text('{"floatx": "bfloat16"}')
    env = {**os.environ, "KERAS_HOME": str(tmp_path)}
    asked = [*COMMAND, "stage", "train", "chest_xray", "cnn_random", "--seed", "0"]
    refused = medtransfer(project, "check", KERAS_HOME=str(tmp_path))
    assert "keras.json: floatx: found 'bfloat16'; expected float16 or float32 or float64;" in last_line(refused)
    result = subprocess.run(asked, cwd=project, env=env, capture_output=True, text=True)
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("medtransfer: keras.json in KERAS_HOME or ~/.keras: Invalid `floatx` configuration.")
    assert line.endswith("Received: floatx=bfloat16; correct or remove that file, then run again")


def test_a_module_of_the_user_does_not_replace_pythons(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.chdir(project)
    (project / "random.py").write_text("raise ImportError('the random.py of the user')")
    assert CliRunner().invoke(cli, ["cache", "show"]).exit_code == 0
    version = subprocess.run([*DVC, "--version"], cwd=project, capture_output=True, text=True)
    assert version.returncode == 0, version.stderr


def test_validation_reports_and_fails(project: Path, demo: Path) -> None:
    import shutil

    shutil.copytree(demo / "ham10000", project / "data" / "ham10000")
    fine = medtransfer(project, "data", "validate", "ham10000")
    assert fine.returncode == 0
    assert "ham10000: 340 images of 215 lesions" in fine.stdout
    assert "SYNTHETIC" in fine.stdout
    next((project / "data").rglob("*.jpg")).unlink()
    broken = medtransfer(project, "data", "validate", "ham10000")
    assert broken.returncode == 2
    assert "has no image file" in broken.stdout
    assert last_line(broken) == (
        "medtransfer: 1 problem in the raw data; correct the files that you imported or added, then import or add the "
        "data set again"
    )


def test_the_description_has_licence_citation_and_plot(project: Path, demo: Path) -> None:
    import shutil

    shutil.copytree(demo / "chest_xray", project / "data" / "chest_xray")
    result = medtransfer(project, "data", "describe", "chest_xray")
    assert result.returncode == 0
    for text in ("SYNTHETIC", "NORMAL", "64 images", "CC BY 4.0", "Kermany"):
        assert text in result.stdout
    assert (project / "artifacts" / "class_distribution" / "chest_xray.png").stat().st_size > 1000


def test_the_cache_is_shown_and_cleared(project: Path, tmp_path: Path) -> None:
    entry = tmp_path / "medtransfer" / "features" / "0123"
    entry.mkdir(parents=True)
    (entry / "features.npy").write_bytes(b"x" * 5_000_000)
    shown = medtransfer(project, "cache", "show", XDG_CACHE_HOME=str(tmp_path)).stdout
    assert "0123     0.005 GB  incomplete" in shown
    assert "1 folder, 0.005 of 20 GB" in shown
    assert "removed 0.005 GB" in medtransfer(project, "cache", "clear", XDG_CACHE_HOME=str(tmp_path)).stdout
    assert not entry.exists()


def test_results_name_the_models_that_the_talk_lacks(project: Path) -> None:
    table = pd.read_csv(PROJECT / "reports" / "results.csv", keep_default_na=False)
    other = table[(table.dataset == "ham10000") & (table.model == "imagenet_all")].assign(
        model="mine", family="recipes"
    )
    (project / "reports").mkdir(exist_ok=True)
    pd.concat([table, other]).to_csv(project / "reports" / "results.csv", index=False)
    result = medtransfer(project, "results")
    assert result.returncode == 0, result.stderr
    score = float(other.f1[other["class"] == "macro avg"].iloc[0])
    assert f"mine {score:.2f}" in result.stdout
