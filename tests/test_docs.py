"""Every command line of the site's pages is run, page by page in one small study or by the test that is named.

A line of neither kind is in NOT_RUN, with the reason.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from PIL import Image
from ruamel.yaml import YAML

from clones import clone, dvc, environment, run
from conftest import PROJECT

LOAD = "measures for a minute what the machine bears"
MEASURES = "measures for minutes to hours; the committed results say when it ran"
REAL = "needs the real data and hours; its kind is run on the demonstration data by other lines"
ENGINE = "needs a Docker engine (tests/test_containers.py looks at what can be seen without one)"
MACHINES = "needs several machines (tests/test_sweep.py: several nodes on one)"
SERVED = "test_serving.py::test_the_command_line_the_served_model_and_the_page_give_one_answer"
PASSWORDS = "test_tracking.py::test_a_server_with_passwords_refuses_requests_without_one"
LEAK = "test_collect.py::test_the_leak_is_measured_between_two_folders_and_shown"
REAL_PARAMS = "test_cli.py::test_the_params_for_the_real_data_are_those_of_the_results"
IMPORT = "test_datasets.py::test_the_command_imports_one_after_the_other_under_dvc"
COLLECT = "test_collect.py::test_results_are_collected_and_reported_without_the_models"
BUCKET = "test_bucket.py::test_data_come_back_from_a_bucket"
LAYERS = "test_pipeline.py::test_the_layers_that_matter_are_found_and_the_page_shows_them"
EXTERNAL = "test_serving.py::test_networks_are_scored_on_images_of_another_source"
SWEEP = "test_sweep.py::test_a_sweep_fits_everything_once_and_notices_a_changed_fit"

NOT_RUN = {
    "git clone <this repository> medtransfer && cd medtransfer": "the address is the reader's",
    "source .venv/bin/activate": "the tests' environment is active",
    "make test": "runs these tests",
    "KERAS_BACKEND=jax dvc repro --force": "takes minutes; one of its stages is run by test_jax.py",
    "dvc repro results/dvc.yaml": "takes a minute; test_results.py computes the tables of one folder",
    "make report": "takes half a minute; test_results.py looks at what make would run, test_page.py at the page",
    "cp results/real-64px-by-group/params.yaml params.yaml": REAL,
    "cp results/params-real.yaml params.yaml": REAL_PARAMS,
    "dvc repro --single-item train-chest_xray@chest_xray-imagenet_all-1": REAL,
    "dvc repro --single-item train-ham10000@ham10000-imagenet_last_block-0": REAL,
    "medtransfer tune ham10000 --search learning_rate=3e-5,1e-4,3e-4 --search fraction=0.2 --search epochs=5": REAL,
    "medtransfer tune ham10000 --search learning_rate=1e-5:1e-3:log --search dropout=0.3,0.5 --sampler tpe "
    "--trials 30": REAL,
    "medtransfer tune ham10000 --search learning_rate=1e-4,1e-3,1e-2 --search fraction=0.2 --search epochs=5 "
    "--search optimizer=sgd --configuration imagenet_first_block --configuration imagenet_all": REAL,
    "medtransfer tune ham10000 --search learning_rate=1e-4,3e-4,1e-3,3e-3 --search fraction=1.0 --search epochs=60 "
    "--configuration imagenet_head_weighted --configuration imagenet_head_sampled "
    "--configuration imagenet_head_caffe": REAL,
    "medtransfer tune chest_xray --configuration imagenet_head --search learning_rate=3e-5,1e-4,3e-4,1e-3,3e-3 "
    "--search fraction=1.0 --search epochs=60": REAL,
    "medtransfer tune chest_xray --configuration imagenet_last_block --configuration imagenet_all "
    "--search learning_rate=1e-5,3e-5,1e-4,3e-4,1e-3 --search fraction=0.2 --search epochs=5": REAL,
    "dvc repro --single-item train-chest_xray@chest_xray-imagenet_head-0": REAL,
    "medtransfer tune chest_xray --search learning_rate=3e-5,1e-4,3e-4 --search fraction=0.2 --search epochs=5 "
    "--configuration imagenet_last_block": REAL,
    "dvc repro --single-item train-chest_xray@chest_xray-imagenet_all-0": REAL,
    ".venv/bin/python benchmarks/xla.py --size 64 --rounds 5 --precision mixed_bfloat16": MEASURES,
    ".venv/bin/python benchmarks/trees.py artifacts/prepared/ham10000 random_forest": MEASURES,
    ".venv/bin/pip install torch==2.13.0": "would change the tests' environment",
    ".venv/bin/python benchmarks/speed/speed.py ham10000 --race-images 0 --output bench.json": MEASURES,
    ".venv/bin/python benchmarks/speed/speed.py ham10000 --rounds 0 --race-images 960 --race-epochs 3 "
    "--output race.json": MEASURES,
    ".venv/bin/python benchmarks/against.py 661080e --ham10000 ham10000.zip --rounds 1": MEASURES,
    ".venv/bin/python benchmarks/preparing.py": MEASURES,
    ".venv/bin/python benchmarks/gradients.py": MEASURES,
    ".venv/bin/python benchmarks/augmentation.py --rounds 15": MEASURES,
    ".venv/bin/python benchmarks/convolutions.py": MEASURES,
    "make up": ENGINE,
    "docker build --target gpu --tag medtransfer:gpu .": ENGINE,
    "docker build --target cpu --tag medtransfer:cpu .": ENGINE,
    'docker run --rm --gpus all --user "$(id -u):$(id -g)" --volume "$PWD:/study" medtransfer:gpu': ENGINE,
    'docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/study" medtransfer:cpu': ENGINE,
    'docker run --rm --gpus all --user "$(id -u):$(id -g)" --volume "$PWD/data:/study/data" '
    '--volume "$PWD/.dvc/cache:/study/.dvc/cache" --volume "$PWD/mlruns:/study/mlruns" '
    '--volume "$PWD/reports:/study/reports" medtransfer:gpu': ENGINE,
    "docker compose --profile gpu up trainer": ENGINE,
    "docker compose --profile cpu up trainer-cpu": ENGINE,
    "docker compose down": ENGINE,
    "tools/container.sh cpu": "needs root, buildah and half an hour",
    "medtransfer sweep sizes --local --cpus 4 --gpus 0.25 --memory-gb 8 --retries 3": "needs a GPU",
    "medtransfer sweep everywhere": MACHINES,
    "ray start --head --port 6379": MACHINES,
    "ray start --address first:6379": MACHINES,
    "ray stop": MACHINES + "; would end other people's Ray",
    "export RAY_ADDRESS=first:6379": MACHINES,
    "export MLFLOW_TRACKING_URI=https://mlflow.hospital.example": MACHINES,
    "medtransfer serve ham10000 &": LOAD,
    ".venv/bin/python benchmarks/serving.py http://127.0.0.1:8000 folder/*.jpg --output serving.json": LOAD,
}

ELSEWHERE = {
    "make study": "test_docs.py::study",
    "medtransfer study": "test_pipeline.py::study",
    "make ui": "test_tracking.py::test_requests_that_should_do_nothing_are_refused",
    "medtransfer data import ham10000 ham10000.zip": IMPORT,
    "medtransfer data import chest_xray chest_xray.zip": IMPORT,
    "dvc remote add --default hospital s3://bucket/medtransfer": BUCKET,
    "dvc remote add --default hospital ssh://user@host/srv/medtransfer": "test_bucket.py::"
    "test_data_come_back_from_behind_ssh",
    "dvc remote modify hospital endpointurl https://s3.hospital.example": BUCKET,
    "dvc remote add --default hospital /srv/medtransfer": "test_bucket.py::test_data_come_back_from_a_folder",
    "dvc push": BUCKET,
    "dvc pull data.dvc": BUCKET,
    "medtransfer collect mine": COLLECT,
    "medtransfer tables results/mine": COLLECT,
    "medtransfer report results/mine": COLLECT,
    "medtransfer collect mine --add": "test_collect.py::test_another_seed_is_added_to_what_is_collected",
    "medtransfer weights verify FILE": "test_weights.py::test_the_command_verifies_a_file",
    "medtransfer register chest_xray": "test_serving.py::test_the_best_on_validation_is_registered_once",
    "medtransfer predict chest_xray image.png": SERVED,
    "medtransfer predict chest_xray folder --json": SERVED,
    "medtransfer predict chest_xray folder --output answers.csv --overlays where": SERVED,
    "medtransfer serve chest_xray": SERVED,
    "medtransfer register chest_xray cnn_random --seed 0": "test_serving.py::"
    "test_a_named_network_is_registered_beside_the_best_and_found_by_its_run",
    "medtransfer predict chest_xray folder --labels labels.csv": "test_serving.py::"
    "test_answers_are_scored_where_labels_are_given",
    "medtransfer score ham10000 --images path/to/images --labels labels.csv --group patient": EXTERNAL,
    "medtransfer score ham10000 --images ISIC2019 --labels ISIC2019.csv --map AK=akiec --map SCC= --map UNK=": EXTERNAL,
    "curl --data-binary @image.png http://127.0.0.1:8000/predict": SERVED,
    "MLFLOW_TRACKING_URI=sqlite:///mlruns/mlflow.db mlflow models serve --model-uri models:/chest_xray@best "
    "--env-manager local --port 8001": SERVED,
    """printf '{"dataframe_records": [{"image": "%s"}]}' "$(base64 --wrap 0 image.png)" | """
    "curl --header 'Content-Type: application/json' --data @- http://127.0.0.1:8001/invocations": SERVED,
    "medtransfer collect leak-match": LEAK,
    "medtransfer leakage results/leak-match results/leak-remove": LEAK,
    "medtransfer layers ham10000 imagenet_all": LAYERS,
    "medtransfer gradcam ham10000 imagenet_all": LAYERS,
    "export MLFLOW_AUTH_ADMIN_PASSWORD=...": PASSWORDS,
    "export MLFLOW_FLASK_SERVER_SECRET_KEY=...": PASSWORDS,
    "mlflow server --app-name basic-auth --host 127.0.0.1 --backend-store-uri sqlite:///mlruns/server.db "
    "--artifacts-destination mlruns/artifacts": PASSWORDS,
    "export MLFLOW_TRACKING_USERNAME=admin": PASSWORDS,
    "export MLFLOW_TRACKING_PASSWORD=...": PASSWORDS,
    "export MLFLOW_TRACKING_URI=http://127.0.0.1:5000": "test_track_push.py::test_every_run_arrives_complete_and_once",
    "medtransfer track push": "test_track_push.py::test_every_run_arrives_complete_and_once",
    "python tools/tracking_server.py ~/medtransfer-server --port 5000": "test_server.py::"
    "test_eight_processes_at_once_lose_nothing_and_a_restart_keeps_it",
    "medtransfer sweep rates --local --dataset ham10000 --configuration imagenet_head --seed 0 --seed 1 --rate 1e-4 "
    "--rate 1e-3": SWEEP,
}

# Those of the site.
PAGES = re.findall(r"(\S+\.md)$", (PROJECT / "mkdocs.yml").read_text(), re.MULTILINE)


def lines(page: str) -> list[str]:
    """The command lines of a page, without comments, each on one line."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (PROJECT / page).read_text(), re.MULTILINE | re.DOTALL)
    joined = re.sub(r"\s*\\\n\s*", " ", "".join(blocks))
    found = [re.sub(r"(^|\s+)#\s.*", "", line).strip() for line in joined.splitlines()]
    return [line for line in found if line]


def lines_to_run(page: str) -> list[str]:
    return [line for line in lines(page) if line not in NOT_RUN and line not in ELSEWHERE]


def test_every_exception_is_a_line_of_a_page_and_names_a_test_that_exists() -> None:
    known = {line for page in PAGES for line in lines(page)}
    assert {*NOT_RUN, *ELSEWHERE} <= known
    assert not {*NOT_RUN} & {*ELSEWHERE}
    for test in ELSEWHERE.values():
        file, name = test.split("::")
        assert f"\ndef {name}(" in (PROJECT / "tests" / file).read_text(), test


def test_every_surprise_names_a_test_that_exists_or_is_not_used() -> None:
    rows = re.findall(r"^\| (?!behaviour|---).*\|$", (PROJECT / "docs" / "surprises.md").read_text(), re.MULTILINE)
    assert len(rows) >= 28
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 5
        assert cells[4].startswith("`") or cells[3].startswith("not used"), row
        for file, name in re.findall(r"`(test_\w+\.py)::(\w+)`", cells[4]):
            assert f"\ndef {name}(" in (PROJECT / "tests" / file).read_text(), name


def test_the_transfer_stage_of_the_page_is_the_pipelines() -> None:
    [stage] = [part for part in (PROJECT / "dvc.yaml").read_text().split("\n\n") if "\n  transfer:\n" in part]
    shown = stage[stage.index("  transfer:\n") : stage.index("    deps:\n")]
    assert f"```yaml\n{shown}```" in (PROJECT / "docs" / "freezing.md").read_text()


SMALL = {
    "baselines": ["random_forest"],
    "study": {"ham10000": {"train": ["imagenet_head"], "transfer": []}},
    "train": {"epochs": 1, "dense_units": [16, 16]},
    "trees": {"random_forest": {"n_estimators": 10}},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with one small study, finished and committed, and the files that the pages name."""
    folder = clone(tmp_path_factory.mktemp("docs") / "medtransfer", SMALL)
    yaml = YAML()
    for name in ("params.yaml", "dvc.yaml"):
        values = yaml.load((folder / name).read_text())
        if name == "params.yaml":
            del values["study"]["chest_xray"]
            # A data set of one's own gets them all.
            values["configurations"] = {"imagenet_head": values["configurations"]["imagenet_head"]}
        else:
            del values["stages"]["train-chest_xray"]
            values["stages"]["transfer"]["matrix"]["configuration"] = []
        with (folder / name).open("w") as file:
            yaml.dump(values, file)
    run(folder, "git", "config", "user.name", "test")
    run(folder, "git", "config", "user.email", "test@localhost")
    # What `make install` makes.
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (folder / ".venv" / ".installed").touch()
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "start")
    run(folder, "make", "study")
    (folder / ".git" / "info" / "exclude").write_text("path\nlabels.csv\n")
    images = folder / "path" / "to" / "images"
    images.mkdir(parents=True)
    table = ["image,label,patient"]
    for number, label in enumerate(["healthy", "ill"] * 12):
        Image.new("L", (40, 40), 60 + number + 100 * (label == "ill")).save(images / f"scan-{number}.png")
        table.append(f"scan-{number}.png,{label},P{number}")
    (folder / "labels.csv").write_text("\n".join(table))
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "finished")
    run(folder, "git", "tag", "finished")
    shutil.copytree(folder / "mlruns", folder.with_name("mlruns"))  # not in git
    return folder


# Pages whose lines train several times, or are much the same as the README's.
SLOW = ("docs/experiments.md", "docs/getting-started.md", "docs/custom-data.md", "docs/reliability.md")


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in PAGES if lines_to_run(page)],
)
def test_the_lines_of_a_page_run(study: Path, page: str) -> None:
    run(study, "git", "reset", "--quiet", "--hard", "finished")
    run(study, "git", "reset", "--quiet", "HEAD~")  # a study that has just ended, not committed yet
    for folder in ("artifacts", "mlruns"):
        shutil.rmtree(study / folder)
    shutil.copytree(study.with_name("mlruns"), study / "mlruns")
    dvc(study, "checkout", "--quiet", "--force")
    script = "\n".join(lines_to_run(page))
    # A pipe after a line would hide its exit code; -x shows the line that failed.
    done = subprocess.run(
        ["bash", "-euxc", script], cwd=study, env=environment(study), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    after = CHECKS.get(page)
    if after:
        after(study)


def check_experiments(study: Path) -> None:
    """Each experiment is known to DVC with its value, and its MLflow runs are in the project's own store."""
    shown = json.loads(dvc(study, "exp", "show", "--json"))
    rates = {}
    for state in shown:
        for experiment in state.get("experiments") or []:
            revision = experiment["revs"][0]
            params = revision["data"]["params"]["params.yaml"]["data"]
            network = params["configurations"]["imagenet_head"]
            rates[revision["name"]] = (network["learning_rate"], params["train"]["dropout"])
    assert rates == {"dropout-0.3": (1e-3, 0.3), "rate-3e-4": (3e-4, 0.2)}
    assert (study / "dvc_plots" / "index.html").stat().st_size > 1000
    client = mlflow.MlflowClient(f"sqlite:///{study}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("ham10000")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "attributes.run_name = 'imagenet_head-seed0'")
    logged = [(run.data.params["train.learning_rate"], run.data.params["train.dropout"]) for run in runs]
    for values in (("0.001", "0.3"), ("0.0003", "0.2"), ("0.003", "0.2")):
        assert logged.count(values) == 1, logged
    for found in runs:
        assert found.info.status == "FINISHED"
        assert {"confusion.png"} <= {entry.path for entry in client.list_artifacts(found.info.run_id)}


CHECKS = {"docs/experiments.md": check_experiments}
