"""A custom data set: its files are studied as they are, and mistakes in them are named."""

import errno
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from dvc.repo import Repo
from filelock import FileLock
from PIL import Image
from ruamel.yaml import YAML

from clones import change_params, clone, dvc, run
from conftest import DVC_ON_A_FULL_DISK, PROJECT, dvc_init, git_init
from medtransfer.cli import cli, main
from medtransfer.core.dvc import DEMONSTRATION, IMPORTED, check_unchanged, recorded_digest, warn_of_another_version
from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_folder
from medtransfer.core.params import Params, read_params
from medtransfer.core.prepared import read_dataset
from medtransfer.data.checks import validate
from medtransfer.data.custom import Columns, dataset_of, find_samples
from medtransfer.data.preparation import prepare_dataset
from medtransfer.pipeline.prepare import prepare
from medtransfer.study.check import check_pipeline
from medtransfer.study.custom_data import add_custom, check_custom_name, remove_custom

ABOUT = {"title": "My scans"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with 20 patients' images in `mine`, two per patient, every second patient ill, and their table."""
    monkeypatch.chdir(tmp_path)
    dvc_init(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    rows = []
    rng = np.random.default_rng(0)
    for patient in range(20):
        for view in range(2):
            path = tmp_path / "mine" / f"p{patient % 3}" / f"scan {patient}-{view}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(path)
            rows.append({"image": path.name, "label": ("well", "ill")[patient % 2], "patient": f"patient {patient}"})
    pd.DataFrame(rows).to_csv("labels.csv", index=False)
    return tmp_path


ADD = ["data", "add", "mine", "--images", "mine", "--labels", "labels.csv", "--group", "patient"]


def add(**changes: Any) -> int:
    arguments: dict[str, Any] = {
        "params": read_params(Path("params.yaml")), "name": "mine", "images": Path("mine"),
        "labels": Path("labels.csv"), "columns": Columns(group="patient"), "about": ABOUT, "only": False, **changes,
    }  # fmt: skip
    check_custom_name(arguments["name"])
    return add_custom(**arguments)


def changed(**settings: Any) -> Params:
    """Change settings of the data set in params.yaml, and return all parameters."""
    yaml, path = YAML(), Path("params.yaml")
    content = yaml.load(path)
    content["datasets"]["mine"].update(settings)
    yaml.dump(content, path)
    return read_params(path)


def write_twelve_bits(folder: Path) -> dict[str, np.ndarray]:
    """Replace the images by some of 12 bits in 16-bit files, each with another largest value, and return them."""
    values = {}
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        values[path.stem] = np.random.default_rng(number).integers(0, 2100 + 50 * number, (32, 32), np.uint16)
        Image.fromarray(values[path.stem]).save(path)
    return values


@pytest.mark.parametrize(("bits", "white"), [(None, 4095), (14, 16383)])
def test_files_of_sixteen_bits_are_scaled_alike_by_the_bits_that_they_use(
    project: Path, bits: int | None, white: int, capsys: pytest.CaptureFixture[str]
) -> None:
    values = write_twelve_bits(project / "mine")
    add()
    params = changed(image_size=32, resize_filter="nearest", bits=bits)
    prepare(params, "mine")
    images, samples, description = read_dataset(params, "mine")
    assert description["white_level"] == white
    (said,) = [line for line in capsys.readouterr().out.splitlines() if f"{white:,}" in line]
    assert ("params.yaml" in said) == (bits is not None)
    for pixels, name in zip(images, samples.id, strict=True):
        assert (pixels == np.round(values[Path(name).name] * 255.0 / white)[..., None]).all()


def test_a_file_brighter_than_the_stated_bits_is_refused(project: Path) -> None:
    write_twelve_bits(project / "mine")
    add()
    with pytest.raises(UserError, match=r"mine/images/.*\.png: has the value [0-9],[0-9]{3}; expected at most 1,023"):
        prepare(changed(bits=10), "mine")


def stages() -> list[str]:
    """The names of all stages, as DVC reads dvc.yaml."""
    with Repo() as repo:
        return [stage.addressing for stage in repo.index.stages]


def test_a_data_set_is_copied_and_enters_the_study(project: Path) -> None:
    before = {name: (project / name).read_text() for name in ("params.yaml", "dvc.yaml")}
    assert add() == 40
    params = read_params(Path("params.yaml"))
    entry = params.datasets["mine"].catalogue
    assert entry is not None
    assert entry.classes == ["ill", "well"]
    assert params.datasets["mine"].split.by == "group"
    assert params.study["mine"].train == params.study["ham10000"].train
    for name, text in before.items():
        lines = (project / name).read_text().splitlines()
        assert [line for line in text.splitlines() if line not in lines] == []
    found = stages()
    assert "train-mine@mine-imagenet_head-0" in found
    assert "train-chest_xray@chest_xray-cnn_random-0" in found
    assert {"prepare@mine", "baseline@mine-random_forest-0", "explain@mine"} <= set(found)
    dataset = dataset_of("mine", params)
    assert validate(dataset, Path("data/mine"))["problems"] == []
    with atomic_folder(Path("prepared")) as folder:
        prepare_dataset(dataset, Path("data/mine"), params.datasets["mine"], folder)
    samples = pd.read_csv("prepared/samples.csv", dtype=str)
    assert samples.groupby("group").split.nunique().max() == 1
    assert samples.group.nunique() == 20
    labels = pd.read_csv("labels.csv").set_index("image").label
    assert all(labels[f"{row.id}.png".split("/")[-1]] == row.label for row in samples.itertuples())


def test_added_again_it_replaces_the_earlier_one(project: Path) -> None:
    add()
    once = {name: (project / name).read_text() for name in ("params.yaml", "dvc.yaml")}
    table = pd.read_csv("labels.csv")
    table.iloc[:30].to_csv("labels.csv", index=False)
    assert add() == 30
    assert {name: (project / name).read_text() for name in once} == once
    assert len(list(Path("data/mine/images").rglob("*.png"))) == 30


def test_added_again_it_keeps_its_description(project: Path) -> None:
    add(about={})
    text = Path("params.yaml").read_text()
    for written, edited in ((" ill: ill", " ill: pneumonia"), ("title: mine", "title: Scans"), ("unknown", "CC0")):
        assert text.count(f"{written}\n") == 1, written
        text = text.replace(f"{written}\n", f"{edited}\n")
    Path("params.yaml").write_text(text)
    add(about={"citation": "ours"})
    catalogue = read_params(Path("params.yaml")).datasets["mine"].catalogue
    assert catalogue is not None
    said = (catalogue.title, catalogue.meanings, catalogue.licence, catalogue.citation)
    assert said == ("Scans", {"ill": "pneumonia", "well": "well"}, "CC0", "ours")


def test_a_change_of_the_classes_fits_again_but_not_one_of_the_rest_of_the_description(project: Path) -> None:
    shutil.copytree(PROJECT / "src", "src")
    add()
    run(project, "dvc", "repro", "prepare@mine")
    before = recorded_digest(Path("artifacts/prepared/mine"))
    change_params(project, {"datasets": {"mine": {"catalogue": {"licence": "CC0", "citation": "ours"}}}})
    change_params(project, {"datasets": {"mine": {"catalogue": {"title": "Scans", "meanings": {"ill": "sick"}}}}})
    read_dataset(read_params(Path("params.yaml")), "mine")
    run(project, "dvc", "repro", "prepare@mine")
    assert recorded_digest(Path("artifacts/prepared/mine")) == before
    change_params(project, {"datasets": {"mine": {"catalogue": {"classes": ["well", "ill"]}}}})
    with pytest.raises(
        UserError, match=r"prepared with classes \['ill', 'well'\], but params.yaml has \['well', 'ill'\]"
    ):
        read_dataset(read_params(Path("params.yaml")), "mine")
    assert "Running stage 'prepare@mine'" in run(project, "dvc", "repro", "prepare@mine")
    _, _, description = read_dataset(read_params(Path("params.yaml")), "mine")
    assert description["classes"] == ["well", "ill"]


def test_added_again_it_keeps_its_groups(project: Path) -> None:
    add()
    before = Path("params.yaml").read_text()
    with pytest.raises(UserError, match=r"datasets\.mine\.split\.by: is group, but --group is missing"):
        add(columns=Columns())
    assert Path("params.yaml").read_text() == before


def test_a_group_that_is_added_later_is_refused(project: Path) -> None:
    add(columns=Columns())
    with pytest.raises(UserError, match=r"datasets\.mine\.split\.by: is image, but --group patient"):
        add()


def test_a_trailing_blank_makes_no_second_patient_or_class(project: Path) -> None:
    table = pd.read_csv("labels.csv")
    for column in ("label", "patient"):
        table.loc[::3, column] += " "
    table.to_csv("labels.csv", index=False)
    add()
    copied = pd.read_csv("data/mine/labels.csv", dtype=str, keep_default_na=False)
    assert copied.group.nunique() == 20
    assert set(copied.label) == {"ill", "well"}


def test_data_that_data_dvc_names_are_pulled_first(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc add data` would leave the demonstration out of data.dvc."""
    called: list[tuple[str, ...]] = []

    def dvc(*arguments: str, hints: bool = True) -> int:
        called.append(arguments)
        return 1  # the remote is away

    monkeypatch.setattr("medtransfer.study.run.run_dvc", dvc)
    Path("data.dvc").write_text(
        "outs:\n- {md5: 0123456789abcdef0123456789abcdef.dir, size: 1, nfiles: 1, path: data}\n"
    )
    before = Path("params.yaml").read_text()
    command = ["data", "add", "mine", "--images", "mine", "--labels", "labels.csv", "--group", "patient"]
    for asked in (command, ["data", "import", "ham10000", "a.zip"]):
        refused = CliRunner().invoke(cli, asked)
        assert refused.exit_code == 2
        assert refused.stderr.startswith("data.dvc: ")
        assert refused.stderr.count("\n") == 1
        assert called.pop() == ("pull", "data.dvc")
        assert Path("params.yaml").read_text() == before
        assert not Path("data").exists()
    CliRunner().invoke(cli, [*command, "--only"])
    assert called == [("add", "data")]


def test_a_removed_data_set_leaves_no_trace(project: Path) -> None:
    before = {name: Path(name).read_text() for name in ("params.yaml", "dvc.yaml")}
    add(name="other")
    remove_custom(read_params(Path("params.yaml")), "other")
    assert {name: Path(name).read_text() for name in before} == before
    add(name="other")
    with_other = {name: Path(name).read_text() for name in before}
    command = ["data", "add", "mine", "--images", "mine", "--labels", "labels.csv", "--group", "patient"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    done = CliRunner().invoke(cli, ["data", "remove", "mine"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert {name: Path(name).read_text() for name in before} == with_other
    assert [path.name for path in Path("data").iterdir()] == ["other"]
    assert "nfiles: 42" in Path("data.dvc").read_text()
    for name, message in (("mine", "'mine' is unknown"), ("ham10000", "no custom data set 'ham10000'")):
        assert message in str(CliRunner().invoke(cli, ["data", "remove", name]).exception)


@pytest.mark.parametrize("style", ["block", "flow", "no line at the end"])
def test_added_data_sets_leave_each_comment_in_its_place(project: Path, style: str) -> None:
    path = Path("params.yaml")
    before, study, after = re.split(r"(?ms)^(study:.*?)\n\n", path.read_text())
    if style == "flow":
        path.write_text(f"{before}study: {{chest_xray: {{train: [imagenet_head]}}}}\n\n{after}")
    elif style == "no line at the end":
        path.write_text(f"{before}{after}{study}")
    commented = re.compile(r"^#.*\n(\w+):", re.MULTILINE)
    sections = commented.findall(path.read_text())
    for name in ("one", "two", "three"):
        add(name=name)
    assert commented.findall(path.read_text()) == sections
    assert len(sections) > 3
    assert [*read_params(path).study][-3:] == ["one", "two", "three"]


@pytest.mark.parametrize("comment", ["# 12 bits", "  # 12 bits", "", "  "])
def test_settings_after_a_comment_in_an_entry_stay_with_their_data_set(project: Path, comment: str) -> None:
    add(name="one")
    path = Path("params.yaml")
    entry = "      citation: none\n"
    assert path.read_text().count(entry) == 1
    path.write_text(path.read_text().replace(entry, f"{entry}{comment}\n    bits: 12\n"))
    before = path.read_text()
    add(name="two")
    params = read_params(path)
    assert (params.datasets["one"].bits, params.datasets["two"].bits) == (12, None)
    remove_custom(params, "two")
    assert path.read_text() == before
    add(name="two")
    remove_custom(read_params(path), "one")
    assert read_params(path).datasets["two"].bits is None
    assert "bits: 12" not in path.read_text()


def test_a_removed_data_set_is_brought_back_by_the_command_that_is_printed(project: Path) -> None:
    git_init(project)
    add(name="other")
    command = ["data", "add", "mine", "--images", "mine", "--labels", "labels.csv", "--group", "patient"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    names = ["data.dvc", "dvc.yaml", "params.yaml"]
    subprocess.run(["git", "add", *names], check=True)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "a"], check=True)
    before = [Path(name).read_text() for name in names]
    shutil.rmtree(".dvc/cache")  # as if another project that shares it had run `dvc gc`
    shown = CliRunner().invoke(cli, ["data", "remove", "mine"]).output
    assert not Path("data/mine").exists()
    (line,) = re.findall("`(.+)`", shown)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(line, shell=True, check=True, env=environment, stdin=subprocess.DEVNULL)
    assert [Path(name).read_text() for name in names] == before
    check_unchanged(Path("data"))
    assert len(list(Path("data/mine/images").rglob("*.png"))) == 40


def test_an_import_is_not_called_damage(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    git_init(project)
    assert CliRunner().invoke(cli, ADD).exit_code == 0
    subprocess.run(["git", "add", "data.dvc"], check=True)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "a"], check=True)
    committed = Path("data.dvc").read_text()
    pd.read_csv("labels.csv").iloc[:30].to_csv("labels.csv", index=False)
    assert CliRunner().invoke(cli, ADD).exit_code == 0
    assert Path("data.dvc").read_text() != committed
    warn_of_another_version()
    assert caplog.text == ""
    Path("data.dvc").write_text(committed.replace("size: ", "size: 1"))  # as after damage
    warn_of_another_version()
    assert "git checkout HEAD data.dvc && dvc checkout --force data.dvc" in caplog.text


def test_a_change_by_hand_is_not_recorded_with_another_data_set(project: Path) -> None:
    git_init(project)
    assert CliRunner().invoke(cli, ADD).exit_code == 0
    before = Path("data.dvc").read_text()
    labels = Path("data/mine/labels.csv")
    labels.write_text(labels.read_text().replace(",well,", ",ill,", 1))
    for command in (["add", "other", *ADD[3:]], ["remove", "mine"]):
        refused = CliRunner().invoke(cli, ["data", *command])
        assert "mine/labels.csv; it was damaged or changed on disk; `dvc add data` keeps" in str(refused.exception)
        assert Path("data.dvc").read_text() == before
    # Without DVC's cache, nobody knows which data set was changed.
    Path(".dvc/cache").rename("cache")
    refused = CliRunner().invoke(cli, ["data", "add", "other", *ADD[3:]])
    assert "`dvc add data` keeps a change; to undo it, run `dvc pull data.dvc` after moving data away" in str(
        refused.exception
    )
    Path("cache").rename(".dvc/cache")
    assert CliRunner().invoke(cli, ADD).exit_code == 0  # replaces it
    assert Path("data.dvc").read_text() == before


def test_the_demonstration_replaces_no_data_that_only_this_folder_knows(project: Path) -> None:
    git_init(project)
    (project / ".dvc/embedded").mkdir(exist_ok=True)
    shutil.copy(PROJECT / ".dvc/embedded/data.dvc", project / ".dvc/embedded")
    commit = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "a"]
    shutil.copy(PROJECT / "data.dvc", project)
    subprocess.run(["git", "add", "data.dvc"], check=True)
    subprocess.run(commit, check=True)
    Path("data.dvc").unlink()
    assert CliRunner().invoke(cli, ADD).exit_code == 0
    before = Path("data.dvc").read_text()
    refused = CliRunner().invoke(cli, ["data", "demo"])
    assert (
        "data.dvc: this version of the data has not been committed; keep it (`git add data.dvc && git commit --message"
        in str(refused.exception)
    )
    subprocess.run([*commit, "data.dvc"], check=True)
    Path("data/mine/notes.txt").write_text("mine")
    refused = CliRunner().invoke(cli, ["data", "demo"])
    assert "mine/notes.txt; it was damaged or changed on disk; `dvc add data` keeps a change" in str(refused.exception)
    assert Path("data.dvc").read_text() == before


def test_the_demonstration_replaces_no_data_in_a_repository_without_a_commit(project: Path) -> None:
    git_init(project)
    shutil.copytree(PROJECT / ".dvc/embedded", project / ".dvc/embedded")
    assert CliRunner().invoke(cli, ADD).exit_code == 0
    refused = CliRunner().invoke(cli, ["data", "demo"])
    assert "this version of the data has not been committed; keep it (`git add data.dvc && git commit" in str(
        refused.exception
    )
    assert Path("data/mine/labels.csv").exists()


@pytest.mark.parametrize("command", ["demo", "fetch", "import", "add", "remove"])
def test_a_folder_that_is_not_the_project_stays_empty(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    arguments = {"demo": [], "import": ["ham10000", str(project)], "add": ["mine", "--images", str(project / "mine")]}
    refused = CliRunner().invoke(cli, ["data", command, *arguments.get(command, ["ham10000"])])
    assert str(refused.exception).startswith(f"params.yaml: not found in {elsewhere}; run medtransfer in the project's")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["study", "s"])
def test_a_data_set_may_be_called_like_a_part_of_the_pipelines_text(project: Path, name: str) -> None:
    before = Path("dvc.yaml").read_text()
    add(name=name)
    remove_custom(read_params(Path("params.yaml")), name)
    assert Path("dvc.yaml").read_text() == before


def test_both_files_are_written_before_either_is_replaced(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, replaced = Path("params.yaml").read_text(), list[str]()
    replace = Path.replace

    def note(path: Path, target: Path) -> Path:
        if target.suffix == ".yaml":
            replaced.append(target.name)
            assert Path(".partial-params.yaml").exists() or "params.yaml" in replaced
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", note)
    add()
    assert replaced == ["dvc.yaml", "params.yaml"]
    assert Path("params.yaml").read_text() != before


def test_two_blanks_in_a_folders_name_are_one(project: Path) -> None:
    for number, path in enumerate(sorted(Path("mine").rglob("*.png"))):
        target = Path("folders", ("ill", "not ill", "not  ill")[number % 3], path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    add(images=Path("folders"), labels=None, columns=Columns())
    assert sorted(pd.read_csv("data/mine/labels.csv").label.unique()) == ["ill", "not ill"]


def test_two_blanks_in_a_label_are_one(project: Path) -> None:
    change_table(label=[("basal cell", "basal  cell", "other")[number % 3] for number in range(40)])
    add(columns=Columns(group="patient"))
    assert sorted(pd.read_csv("data/mine/labels.csv").label.unique()) == ["basal cell", "other"]


@pytest.mark.parametrize("part", ["training", "testing"])
def test_a_class_that_a_given_part_lacks_is_named_with_a_remedy_that_helps(project: Path, part: str) -> None:
    labels = pd.read_csv("labels.csv").label
    other = {"training": "testing", "testing": "training"}[part]
    change_table(part=[other if label == "well" else (part, other)[row // 4 % 2] for row, label in enumerate(labels)])
    with pytest.raises(UserError, match=r"no image of well among the .* change the data set's own split"):
        add(columns=Columns(group="patient", split="part"))


def test_a_study_names_changed_and_missing_data(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git_init(project)
    assert CliRunner().invoke(cli, [*ADD, "--only"]).exit_code == 0
    monkeypatch.setattr("medtransfer.study.run.run_dvc", lambda *_: 1)
    labels = Path("data/mine/labels.csv")
    labels.chmod(0o644)
    labels.write_text(labels.read_text() + "\n")
    refused = CliRunner().invoke(cli, ["study"])
    assert "data: differs from data.dvc" in str(refused.exception)
    assert "mine/labels.csv; it was damaged or changed on disk; `dvc add data` keeps a change" in str(refused.exception)
    monkeypatch.setattr("medtransfer.study.run.run_dvc", lambda *_: 0)
    shutil.rmtree("data/mine")
    missing = str(CliRunner().invoke(cli, ["study"]).exception)
    assert missing.endswith("remove it (`medtransfer data remove mine`), or run `dvc pull data.dvc`")
    assert (
        "data/mine/labels.csv: not found; add the data set again (`medtransfer data add mine --images FOLDER`"
        in missing
    )
    Path("data/notes.txt").write_text("the rest")
    subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", "data"], check=True)
    gone = str(CliRunner().invoke(cli, ["study"]).exception)
    assert gone.endswith("remove it (`medtransfer data remove mine`)")


@pytest.mark.parametrize("command", ["fetch", "import", "add", "remove"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_path_in_place_of_the_name_is_refused_before_it_is_touched(
    project: Path, command: str, relative: bool
) -> None:
    photos = project.parent / "photos"
    photos.mkdir(exist_ok=True)
    (photos / "photo.jpg").touch()
    before = (photos / "photo.jpg").stat().st_ctime_ns  # a hard link would change it
    name = "../../photos" if relative else str(photos)
    refused = CliRunner().invoke(
        cli, ["data", command, name, *{"import": ["ham10000"], "add": ["--images", "mine"]}.get(command, [])]
    )
    assert isinstance(refused.exception, UserError)
    assert (photos / "photo.jpg").stat().st_ctime_ns == before
    assert [path.name for path in photos.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("command", ["demo", "fetch", "import", "add", "remove"])
def test_two_commands_do_not_change_the_data_at_once(project: Path, command: str) -> None:
    add(name="other")
    before = {name: Path(name).read_text() for name in ("params.yaml", "dvc.yaml")}
    arguments = {
        "demo": [],
        "fetch": ["ham10000"],
        "import": ["ham10000", "a.zip"],
        "add": ["mine", "--images", "mine"],
    }
    DEMONSTRATION.parent.mkdir()
    DEMONSTRATION.touch()
    with FileLock(IMPORTED.with_suffix(".lock")):
        refused = CliRunner().invoke(cli, ["data", command, *arguments.get(command, ["other"])])
    assert isinstance(refused.exception, UserError)
    assert "another command" in str(refused.exception)
    assert {name: Path(name).read_text() for name in before} == before
    assert [path.name for path in Path("data").iterdir()] == ["other"]


@pytest.mark.parametrize("layout", ["datasets first", "study first", "four blanks"])
def test_a_data_set_is_removed_from_a_file_of_another_layout(project: Path, layout: str) -> None:
    add()
    path = Path("params.yaml")
    text = path.read_text()
    if layout == "four blanks":
        text = re.sub(r"(?m)^ +", lambda blanks: 2 * blanks[0], text)
    else:
        first = text.index(f"{layout.split()[0]}:")
        text = f"{text[first:]}\n{text[:first]}"
    path.write_text(text)
    before = read_params(path)
    remove_custom(before, "mine")
    after = read_params(path)
    assert set(before.datasets) - set(after.datasets) == set(before.study) - set(after.study) == {"mine"}
    assert set(re.findall("#.*", text)) == set(re.findall("#.*", path.read_text()))


def test_the_first_data_set_of_the_pipeline_can_be_removed(project: Path) -> None:
    add(only=True)
    with pytest.raises(UserError, match="train-mine is the only training stage; add another data set first"):
        remove_custom(read_params(Path("params.yaml")), "mine")
    add(name="another")
    remove_custom(read_params(Path("params.yaml")), "mine")
    found = stages()
    assert "train-another@another-imagenet_all-0" in found
    assert not [name for name in found if "mine" in name]


def test_validation_names_groups_of_several_classes(project: Path) -> None:
    for group, problems in (("patient", 0), ("lesion", 1)):
        table = pd.read_csv("labels.csv").rename(columns={"patient": group})
        table.loc[0, group] = "patient 1"
        table.to_csv("labels.csv", index=False)
        add(name=group, columns=Columns(group=group))
        params = read_params(Path("params.yaml"))
        report = validate(dataset_of(group, params), Path("data", group))
        assert report["mixed_groups"] == ["patient 1"]
        assert len(report["problems"]) == problems
        table.rename(columns={group: "patient"}).to_csv("labels.csv", index=False)


def test_a_part_far_from_what_was_asked_is_a_warning(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = pd.read_csv("labels.csv")
    table.loc[4:27:2, "patient"] = "patient 2"
    add()
    prepare(changed(image_size=32), "mine")
    assert "% of the images are" not in caplog.text
    change_table(
        patient=["patient 2" if number < 24 and number % 4 < 2 else table.patient[number] for number in range(40)]
    )
    add()
    prepare(changed(image_size=32), "mine")
    assert "% of the images are" in caplog.text


@pytest.mark.parametrize("only", [False, True])
def test_a_data_set_leaves_with_its_own_transfer_stage(project: Path, only: bool) -> None:
    """docs/freezing.md says how to add one."""
    add()
    text = Path("params.yaml").read_text()
    text = text.replace("  mine:\n    train:", "  mine:\n    transfer: [mine_all]\n    train:")
    mine_all = "  mine_all: {weights: ham10000/imagenet_all, trainable: all}\n"
    Path("params.yaml").write_text(text.replace("\nconfigurations:\n", f"\nconfigurations:\n{mine_all}"))
    yaml = YAML()
    pipeline = yaml.load(Path("dvc.yaml"))
    matrix = {"dataset": ["mine"], "configuration": "${study.mine.transfer}", "seed": "${seeds}"}
    pipeline["stages"]["transfer-mine"] = {**pipeline["stages"]["transfer"], "matrix": matrix}
    yaml.dump(pipeline, Path("dvc.yaml"))
    check_pipeline(read_params(Path("params.yaml")))
    if only:
        add(name="other", only=True)
        assert yaml.load(Path("dvc.yaml"))["stages"]["transfer-mine"]["matrix"]["configuration"] == []
    else:
        remove_custom(read_params(Path("params.yaml")), "mine")
        assert "transfer-mine" not in yaml.load(Path("dvc.yaml"))["stages"]
        check_pipeline(read_params(Path("params.yaml")))


def test_a_given_training_part_that_is_too_small_to_divide_is_named(project: Path) -> None:
    table = pd.read_csv("labels.csv")
    table["part"] = ["train" if row < 6 else "test" for row in range(len(table))]
    table.to_csv("labels.csv", index=False)
    with pytest.raises(UserError, match=r"mine: 6 training images are too few to draw 0\.2 for validation"):
        add(columns=Columns(group="patient", split="part"))
    assert not Path("data/mine").exists()


@pytest.mark.parametrize("spelling", ["1.23456789012346e+17", "1E+11", "1,2E+15"])
def test_patients_whose_numbers_a_program_has_rounded_are_refused(project: Path, spelling: str) -> None:
    table = pd.read_csv("labels.csv")
    table.loc[3, "patient"] = spelling
    table.to_csv("labels.csv", index=False)
    with pytest.raises(
        UserError, match=r"row 5: patient is .*, which a program has rounded; write that column as text"
    ):
        add()


def test_data_sets_come_and_go_without_a_transfer_stage(project: Path) -> None:
    """README says to leave out a data set by removing it from `study` and dvc.yaml, which takes `transfer` along."""
    yaml = YAML()
    pipeline = yaml.load(Path("dvc.yaml"))
    del pipeline["stages"]["transfer"]
    yaml.dump(pipeline, Path("dvc.yaml"))
    add()
    remove_custom(read_params(Path("params.yaml")), "mine")
    add(only=True)
    assert list(read_params(Path("params.yaml")).study) == ["mine"]


def test_a_patient_per_image_is_a_group_too(project: Path) -> None:
    add()
    table = pd.read_csv("labels.csv")
    change_table(patient=[f"P{number}" for number in range(len(table))])
    assert add() == 40
    assert read_params(Path("params.yaml")).datasets["mine"].split.by == "group"


def test_it_can_be_the_only_data_set(project: Path) -> None:
    add(only=True)
    assert list(read_params(Path("params.yaml")).study) == ["mine"]
    assert {name.split("@")[0] for name in stages()} == {"prepare", "baseline", "train-mine", "explain", "evaluate"}
    assert not [name for name in stages() if "ham10000" in name or "chest_xray" in name]
    add(name="another")
    assert "train-another@another-imagenet_all-0" in stages()


def test_it_can_be_the_only_data_set_beside_a_stage_that_lists_its_networks(project: Path) -> None:
    """As docs/freezing.md tells it for a second source."""
    path = Path("dvc.yaml")
    path.write_text(path.read_text().replace('"${study.chest_xray.transfer}"', "[ham10000_all]"))
    add(only=True)
    check_pipeline(read_params(Path("params.yaml")))


def test_an_anchor_is_not_removed_before_its_aliases(project: Path) -> None:
    path = Path("params.yaml")
    text = path.read_text().replace("    train:\n", "    train: &networks\n", 1)
    path.write_text(text.replace("train: [cnn_random, imagenet_all]", "train: *networks"))
    add(only=True)
    assert list(read_params(path).study) == ["mine"]
    add(name="another")
    text = path.read_text().replace("  mine:\n    train:", "  mine:\n    train: &networks")
    text = re.sub(r"(  another:\n    train:)\n(?:      - .*\n)+", r"\1 *networks\n", text)
    path.write_text(text)
    with pytest.raises(UserError, match=r"params.yaml: study.mine: has an anchor \(&\) that another entry uses"):
        remove_custom(read_params(path), "mine")
    assert path.read_text() == text


def test_one_folder_per_class_needs_no_table(project: Path) -> None:
    assert add(labels=None, columns=Columns()) == 40
    params = read_params(Path("params.yaml"))
    assert params.datasets["mine"].split.by == "image"
    listing = dataset_of("mine", params).read(Path("data/mine"))
    assert listing.problems == []
    assert set(listing.samples.label) == {"p0", "p1", "p2"}
    assert listing.samples.group.nunique() == 40


def test_a_folder_around_the_class_folders_is_named(project: Path) -> None:
    Path("whole").mkdir()
    Path("mine").rename("whole/mine")
    with pytest.raises(UserError, match=r"mine is the only label; .* are the classes, use --images whole/mine"):
        add(images=Path("whole"), labels=None, columns=Columns())


def test_a_folder_beside_given_parts_is_refused(project: Path) -> None:
    """As in the archive of the chest X-rays, which has a second copy inside."""
    for part in ("train", "test", "again"):
        shutil.copytree("mine", f"nested/{part}")
    with pytest.raises(
        UserError, match=r"nested/again: unexpected folder beside train and test; move it elsewhere, or give --labels"
    ):
        find_samples(Path("nested"), None, Columns())
    shutil.rmtree("nested/again")
    assert set(find_samples(Path("nested"), None, Columns()).split) == {"train", "test"}


def test_the_command_says_what_to_do_next(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    git_init(project)
    done = CliRunner().invoke(
        cli, ["data", "add", "mine", "--images", "mine", "--labels", "labels.csv", "--group", "patient"]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert "`medtransfer data validate mine && dvc repro`" in done.output
    assert "git add" not in capfd.readouterr().out  # DVC's own hint
    shown = CliRunner().invoke(cli, ["data", "describe", "mine", "--plots", "plots"])
    assert "40 images of 20 patients" in shown.output
    alone = CliRunner().invoke(cli, ["data", "add", "mine", "--images", "mine", "--group", "patient"])
    assert "--group: given without --labels" in str(alone.exception)


def test_what_would_be_replaced_is_not_copied_from(project: Path) -> None:
    """A user's originals in data/mine would be gone, as would an archive that was put there."""
    Path("data").mkdir()
    Path("mine").rename("data/mine")
    shutil.move("labels.csv", "data/mine/l.csv")
    before = sorted(Path("data").rglob("*"))
    add = ["data", "add", "mine", "--images", "data/mine", "--labels", "data/mine/l.csv", "--group", "patient"]
    for command in (add, ["data", "import", "ham10000", "data/ham10000/a.zip"]):
        done = CliRunner().invoke(cli, command)
        assert "which this command replaces; move it elsewhere first" in str(done.exception)
    assert sorted(Path("data").rglob("*")) == before


@pytest.mark.parametrize("linked", [False, True])
def test_where_dvc_add_fails_nothing_is_changed(
    project: Path, tmp_path_factory: pytest.TempPathFactory, linked: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "add", "mine", "--images", "mine", "--labels", "labels.csv", "--group", "patient"]
    if linked:
        Path("data").symlink_to(tmp_path_factory.mktemp("other disk"))
    else:
        Path(".dvc/config").write_text("# no_scm\n[core\n")
    files = {name: Path(name).read_bytes() for name in ("params.yaml", "dvc.yaml")}
    for _ in range(2):  # the second time with an earlier version of the data
        before = sorted(Path("data").rglob("*"))
        done = CliRunner().invoke(cli, command)
        assert isinstance(done.exception, SystemExit)
        assert done.stderr.startswith("mine: not added; ")
        assert "ERROR" in capfd.readouterr().err
        assert sorted(Path("data").rglob("*")) == before
        assert {name: Path(name).read_bytes() for name in files} == files
        assert not Path("data.dvc").exists()
        shutil.copytree("mine", "data/mine", dirs_exist_ok=True)


def test_where_dvcs_cache_is_full_nothing_is_changed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc add` ends with 0 there; `data remove`, for example, could not be undone later."""
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(next(Path("mine").rglob("*.png")))
    files = {name: Path(name).read_bytes() for name in ("params.yaml", "dvc.yaml")}
    with monkeypatch.context() as patched:
        patched.setattr("medtransfer.study.run.DVC", DVC_ON_A_FULL_DISK)
        done = CliRunner().invoke(cli, ADD)
    assert str(done.exception) == ".dvc/cache/files/md5: lacks files of data; free space on that disk, then run again"
    assert done.stderr.startswith("mine: not added; ")
    assert {name: Path(name).read_bytes() for name in files} == files
    assert not Path("data/mine").exists()
    assert not Path("data.dvc").exists()
    assert CliRunner().invoke(cli, ADD).exit_code == 0


@pytest.mark.parametrize("written", ["params.yaml", "dvc.yaml"])
def test_data_add_that_was_killed_between_two_files_can_be_run_again(project: Path, written: str) -> None:
    names = ("params.yaml", "dvc.yaml")
    before = {name: Path(name).read_text() for name in names}
    assert CliRunner().invoke(cli, ADD).exit_code == 0
    after = {name: Path(name).read_text() for name in names}
    for name in names:
        Path(name).write_text((after if name == written else before)[name])
    Path("data.dvc").unlink()
    assert CliRunner().invoke(cli, ADD).exit_code == 0
    assert {name: Path(name).read_text() for name in names} == after


def test_where_the_disk_fills_after_dvc_add_the_old_data_version_stays(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: str, **options: bool) -> None:
        Path("data.dvc").write_text("new")
        # shutil names first the file that it read, then the one that it could not write.
        raise OSError(errno.ENOSPC, "No space left on device", "data.dvc", None, "imported.dvc")

    Path("data.dvc").write_text("old")
    Path("data").mkdir(exist_ok=True)
    monkeypatch.setattr("medtransfer.cli.data.dvc", full)
    monkeypatch.setattr(
        sys, "argv", ["medtransfer", "data", "add", "mine", "--images", "mine", "--labels", "labels.csv"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert Path("data.dvc").read_text() == "old"
    assert not Path("data/mine").exists()


@pytest.mark.slow
def test_the_whole_study_runs_on_it(project: Path) -> None:
    folder = clone(project / "clone", {})
    images = ("--images", "../mine", "--labels", "../labels.csv", "--group", "patient")
    run(folder, "medtransfer", "data", "add", "mine", *images, "--only")
    quick = {"train": {"epochs": 1, "dense_units": [8, 8]}, "baselines": ["decision_tree"]}
    change_params(folder, {**quick, "study": {"mine": {"train": ["cnn_random"]}}})
    dvc(folder, "repro")
    results = pd.read_csv(folder / "reports" / "results.csv")
    assert set(results.dataset) == {"mine"}
    run(folder, "medtransfer", "report")
    card = folder / "reports" / "figures" / "mine" / "cnn_random-seed0" / "model-card.md"
    for told in (folder / "reports" / "results.md", folder / "reports" / "index.html", card):
        assert not [word for word in ("HAM10000", "Chest X-Ray", "lesions", "datasheets") if word in told.read_text()]
    assert set(results.model) == {"cnn_random", "decision_tree"}
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted((found.info.run_name, found.info.status) for found in runs) == [
        ("cnn_random-seed0", "FINISHED"),
        ("decision_tree-seed0", "FINISHED"),
    ]
    run(folder, "medtransfer", "register", "mine")
    told = json.loads(run(folder, "medtransfer", "predict", "mine", "../mine/p0/scan 0-0.png", "--json"))
    [answer] = told["answers"]
    assert set(answer["probabilities"]) == {"well", "ill"}
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def change_table(**columns: Any) -> None:
    pd.read_csv("labels.csv").assign(**columns).to_csv("labels.csv", index=False)


def test_a_mistake_is_one_line_and_changes_nothing(project: Path) -> None:
    table = Path("labels.csv").read_text()
    first, folders = "scan 0-0.png", {"labels": None, "columns": Columns()}
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (lambda: None, {"name": "ham10000"}, "ham10000: the name of a built-in data set; choose another name"),
        (lambda: None, {"name": "My-Scans"}, "'My-Scans': not a name for a data set; expected lowercase letters"),
        (lambda: None, {"name": "s" * 65}, "expected lowercase letters, digits and '_', at most 64"),
        (lambda: None, {"columns": Columns(label="x")}, "no column 'x'; its columns are image, label, patient"),
        (lambda: None, {"columns": Columns(group="person")}, "no column 'person'"),
        (lambda: None, {"images": Path("data")}, "data: no image; expected files that end in .jpg"),
        (lambda: change_table(label="ill"), {}, "labels.csv: ill is the only label; a study needs two or more"),
        (lambda: change_table(label=["a/b", "c"] * 20), {}, "label 'a/b': expected letters, digits"),
        (lambda: change_table(label=["a" * 101, "c"] * 20), {}, "at most 100"),
        (lambda: change_table(label=["AUC", "c"] * 20), {}, "label 'AUC': every table uses this name"),
        (lambda: change_table(label=["warning", "c"] * 20), {}, "label 'warning': every table uses this name"),
        (lambda: change_table(label=["ill"] * 36 + ["well"] * 4), {}, "class well has 2 groups; a split by group"),
        (lambda: change_table(label=["ill"] * 36 + ["well"] * 4), {"columns": Columns()}, "class well has 4 images"),
        (lambda: change_table(image=["x.png"] * 40), {}, "row 2: 'x.png' is not among the images"),
        (lambda: change_table(image=[first] * 40), {}, "p0/scan 0-0.png has more than one row; expected one per image"),
        (lambda: change_table(image=["../labels.csv"] * 40), {}, "row 2: '../labels.csv' is not among the images"),
        (lambda: change_table(patient=[""] * 40), {}, "row 2 has no patient; fill it in"),
        (lambda: change_table(label=["ill", None] * 20), {}, "row 3 has no label"),
        (lambda: Path("labels.csv").write_bytes(b"image,label,patient\n\xff,x,y\n"), {}, "save it as `CSV UTF-8`"),
        (lambda: Path("labels.csv").write_text(table, encoding="utf-16"), {}, "labels.csv: not a text file in UTF-8"),
        (lambda: Path("labels.csv").write_bytes(gzip.compress(table.encode())), {}, "unpack it if it is compressed"),
        (lambda: change_table(patient="2.02311E+15"), {}, "row 2: patient is 2.02311E+15, which a program"),
        (lambda: change_table(patient="#N/A"), {}, "row 2 has no patient, but '#N/A'"),
        (lambda: change_table(patient=["p1", "P1", *"ab" * 19]), {}, "patient has 'p1' and 'P1', which may be"),
        (lambda: change_table(patient=["12", "12.0", *"ab" * 19]), {}, "patient has '12' and '12.0'"),
        (lambda: change_table(patient=["007", "7", *"ab" * 19]), {}, "patient has '007' and '7'"),
        (lambda: Path("labels.csv").write_text(""), {}, "cannot be read as CSV in UTF-8: it is empty"),
        (lambda: Path("labels.csv").write_text(f"sep=;\n{table}"), {}, "remove this line"),
        (lambda: Path("labels.csv").write_text(table.replace(",", "|")), {}, "cells are separated by '|'"),
        (lambda: Path("labels.csv").write_text("image,label,patient\na,b,c,d\ne,f,g\n"), {}, "row 2 has 4 cells"),
        (lambda: Path("labels.csv").write_text("image,label,patient\n1,a,b,c\n2,d,e,f\n"), {}, "row.names = FALSE"),
        (lambda: Path("labels.csv").write_text("image,label,label\n"), {}, "more than one column 'label'"),
        (lambda: Path("labels.csv").write_text("image,label,patient\n"), {}, "labels.csv: no row below the header"),
        (lambda: shutil.copy(f"mine/p0/{first}", f"mine/p1/{first}"), {}, f"matches p0/{first} and p1/{first}"),
        (lambda: shutil.copy(f"mine/p0/{first}", "mine"), folders, f"mine/{first}: not in the folder of a class"),
    ]  # fmt: skip
    before = {path: path.read_text() for path in (Path("params.yaml"), Path("dvc.yaml"))}
    Path("data").mkdir()
    for spoil, changes, message in wrong:
        Path("labels.csv").write_text(table)
        spoil()
        with pytest.raises(UserError) as error:
            add(**changes)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert list(Path("data").iterdir()) == []
        assert {path: path.read_text() for path in before} == before


def test_a_comma_at_the_end_of_each_row_shifts_no_column(project: Path) -> None:
    header, *rows = Path("labels.csv").read_text().splitlines()
    Path("labels.csv").write_text("\n".join([header, *(f"{row}," for row in rows)]))
    assert add() == 40
    copied = pd.read_csv("data/mine/labels.csv")
    assert set(copied.label) == {"ill", "well"}
    assert copied.group.nunique() == 20


@pytest.mark.parametrize("more", [",,", ",note,note", ",,0,0"])
def test_columns_without_a_unique_name_are_ignored(project: Path, more: str) -> None:
    header, *rows = Path("labels.csv").read_text().splitlines()
    Path("labels.csv").write_text("\n".join([f"{header}{more}", *(f"{row},0,1" for row in rows)]))
    assert add() == 40


def test_blanks_around_the_names_of_columns_do_not_matter(project: Path) -> None:
    Path("labels.csv").write_text(Path("labels.csv").read_text().replace(",", ", "))
    assert add() == 40
    assert set(pd.read_csv("data/mine/labels.csv").label) == {"ill", "well"}


def test_blank_rows_do_not_shift_the_numbers_in_messages(project: Path) -> None:
    header, *rows = Path("labels.csv").read_text().splitlines()
    rows[3] = "missing.png,ill,patient 1"
    Path("labels.csv").write_text("\n".join([header, "", rows[0], ",,", *rows[1:], ""]))
    with pytest.raises(UserError, match=r"labels\.csv: row 7: 'missing\.png' is not among the images"):
        add()


@pytest.mark.parametrize(("sign", "word"), [(";", "';'"), ("\t", "tabs")])
def test_another_separator_is_named(project: Path, sign: str, word: str) -> None:
    Path("labels.csv").write_text(Path("labels.csv").read_text().replace(",", sign))
    with pytest.raises(UserError, match=f"separated by {word}; save it with commas"):
        add()


def test_cells_that_another_computer_wrote_name_the_image(project: Path) -> None:
    table = pd.read_csv("labels.csv")
    places = [f"p{number // 2 % 3}" for number in range(len(table))]
    written = [
        [f"C:\\study\\mine\\{place}\\{image}" for place, image in zip(places, table.image, strict=True)],
        [f"/elsewhere/{place}/{image}" for place, image in zip(places, table.image, strict=True)],
        [image.replace(".png", ".PNG") for image in table.image],
        [image.removesuffix(".png") for image in table.image],
    ]
    add()
    expected = Path("data/mine/labels.csv").read_text()
    for cells in written:
        change_table(image=cells)
        add()
        assert Path("data/mine/labels.csv").read_text() == expected


def test_a_project_without_a_pipeline_is_told_to_restore_it(project: Path) -> None:
    Path("dvc.yaml").unlink()
    before = Path("params.yaml").read_text()
    with pytest.raises(UserError, match=r"^dvc\.yaml: not found; restore it"):
        add()
    assert Path("params.yaml").read_text() == before
    assert not Path("data/mine").exists()


def test_a_link_to_params_stays_one(project: Path) -> None:
    Path("params.yaml").rename("shared.yaml")
    Path("params.yaml").symlink_to("shared.yaml")
    add()
    assert Path("params.yaml").is_symlink()
    assert "mine" in Path("shared.yaml").read_text()


def test_a_patient_in_two_spellings_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = Path("labels.csv")
    spellings = ["J\u00fcrgen 1", "Ju\u0308rgen 1\u200b", "\u202aJ\u00fcrgen 1\u202c", "J\u00fcrgen\u00a01"]
    spellings = [f"{name}{dash}2" for name, dash in zip(spellings, "-\u2010\u2013\u2212", strict=True)]
    rows = [f"{name}.png,x,{patient}\n" for name, patient in zip("abcd", spellings, strict=True)]
    table.write_text("image,label,patient\n" + "".join(rows), encoding="utf-8")
    Path("images").mkdir()
    for name in "abcd":
        Image.new("RGB", (8, 8)).save(f"images/{name}.png")
    found = find_samples(Path("images"), table, Columns(group="patient"))
    assert found.group.nunique() == 1


def test_an_umlaut_written_as_two_characters_names_the_image(project: Path) -> None:
    Path("mine/p0/scan 0-0.png").rename("mine/p0/u\u0308.png")
    change_table(image=["\u00fc.png", *pd.read_csv("labels.csv").image[1:]])
    assert add() == 40


def test_another_folders_image_of_the_same_name_is_not_taken(project: Path) -> None:
    change_table(image=["/elsewhere/p9/scan 0-0.png", *pd.read_csv("labels.csv").image[1:]])
    with pytest.raises(UserError, match=r"row 2: '/elsewhere/p9/scan 0-0\.png' is not among the images"):
        add()


def test_a_class_folder_whose_name_ends_in_a_blank_is_refused(project: Path) -> None:
    for number, image in enumerate(sorted(Path("mine").rglob("*.png"))):
        folder = Path("classes") / ("well", "ill ")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.rename(folder / f"{number}.png")
    with pytest.raises(UserError, match=r"label 'ill ': expected letters.*no space last"):
        add(images=Path("classes"), labels=None, columns=Columns())


@pytest.mark.parametrize(("first", "second"), [("a b", "a_b"), ("Mel", "mel"), ("0", "0.0"), ("01", "1")])
def test_labels_that_may_be_the_same_are_refused(project: Path, first: str, second: str) -> None:
    change_table(label=[first, second] * 20)
    with pytest.raises(UserError, match=f"labels '{first}' and '{second}' may be the same"):
        add()


@pytest.mark.parametrize("cell", ["NA", "unknown", "N/A", "n.a.", "#DIV/0!", "missing"])
def test_an_unknown_patient_is_no_group(project: Path, cell: str) -> None:
    change_table(patient=[*pd.read_csv("labels.csv").patient[:3], cell, *pd.read_csv("labels.csv").patient[4:]])
    with pytest.raises(UserError, match=f"row 5 has no patient, but '{cell}'"):
        add()


def test_an_empty_name_among_the_label_columns_is_refused(project: Path) -> None:
    with pytest.raises(UserError, match="no column ''; its columns are"):
        add(columns=Columns(label="label,"))


def test_fractions_of_a_split_by_image_that_are_no_folds_are_not_taken_over(project: Path) -> None:
    text = Path("params.yaml").read_text()
    split = re.search(r"split: \{by: \w+, validation: 0.2, test: 0.2", text)
    assert split
    Path("params.yaml").write_text(text.replace(split[0], "split: {by: image, validation: 0.15, test: 0.15", 1))
    add()
    assert read_params(Path("params.yaml")).datasets["mine"].split.test == 0.2


def test_a_one_hot_table_gives_the_classes_of_its_columns(project: Path) -> None:
    table = pd.read_csv("labels.csv")
    add()
    expected = Path("data/mine/labels.csv").read_text()
    table.assign(ill=(table.label == "ill").astype(float), well=(table.label == "well").astype(int)).drop(
        columns="label"
    ).to_csv("labels.csv", index=False)
    with pytest.raises(UserError, match=r"ill is one of the columns of a one-hot table; .*--label-column ill,well"):
        add(columns=Columns(label="ill", group="patient"))
    change_table(female=[1, 0, 0, 1] * 10)  # a further column need not be a class
    with pytest.raises(UserError, match=r"one-hot table; .*--label-column ill,well"):
        add(columns=Columns(label="ill", group="patient"))
    add(columns=Columns(label="ill,well", group="patient"))
    assert Path("data/mine/labels.csv").read_text() == expected
    change_table(well=1)
    with pytest.raises(UserError, match=r"labels\.csv: row 4: found 1.0, 1; expected 1 in one of ill, well"):
        add(columns=Columns(label="ill,well", group="patient"))


def test_labels_0_and_1_are_classes(project: Path) -> None:
    change_table(label=[0, 1] * 20, sex=[0, 0, 1, 1] * 10)
    add()
    assert set(pd.read_csv("data/mine/labels.csv", dtype=str).label) == {"0", "1"}


def test_other_files_are_counted_and_hidden_ones_are_no_images(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (
        ".hidden.png", "._scan.png", ".ipynb_checkpoints/scan 0-0.png", "__MACOSX/a.png",
        "p0/@eaDir/scan 0-0.png/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/a.png",
    ):  # fmt: skip
        Path("mine", name).parent.mkdir(parents=True, exist_ok=True)
        Path("mine", name).write_bytes(b"no image")
    Path("mine/p0/notes.docx").write_text("a")
    add()
    told = capsys.readouterr().out
    assert "1 file left out as non-images: mine/p0/notes.docx" in told
    assert "ill 20, well 20" in told
    assert len(list(Path("data/mine/images").rglob("*.*"))) == 40


def test_masks_beside_images_are_left_out(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in BUSI, where `benign (1)_mask.png` and `benign (1)_mask_1.png` outline the tumours of `benign (1).png`."""
    for mask in ("scan 0-0_mask.png", "scan 0-0_mask_1.png", "scan 0-0 Segmentation.PNG"):
        shutil.copy("mine/p0/scan 0-0.png", Path("mine/p0", mask))
    shutil.move("mine/p0/scan 0-1.png", "mine/p0/gas_mask.png")  # the mask of no image
    assert add(labels=None, columns=Columns()) == 40
    assert "left out: 3 images named as the mask of another: p0/scan 0-0" in capsys.readouterr().out
    assert Path("data/mine/images/p0/gas_mask.png").is_file()


def test_class_folders_may_contain_any_format(project: Path) -> None:
    for number, path in enumerate(sorted(Path("mine").rglob("*.png"))):
        suffix = (".jfif", ".tif", ".webp", ".bmp", ".JPG")[number % 5]
        with Image.open(path) as image:
            image.save(path.with_suffix(suffix))
        path.unlink()
    assert add(labels=None, columns=Columns()) == 40
    prepare(changed(image_size=32), "mine")


def test_folders_below_a_class_are_said_not_to_be_kept_together(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Many archives have a folder per patient below each class; two images of one patient are then test and training.
    add(labels=None, columns=Columns())
    assert "can be in two splits" not in capsys.readouterr().out
    for path in sorted(Path("mine/p0").glob("*.png")):
        target = Path("mine/p0", path.stem.replace("scan ", "P"), path.name)
        target.parent.mkdir()
        path.rename(target)
    add(labels=None, columns=Columns())
    line = "mine/p0/P0-0: images of one folder can be in two splits; if it is a patient, give --labels with --group"
    assert line in capsys.readouterr().out


def test_a_name_that_is_not_utf8_is_one_line(project: Path) -> None:
    shutil.copy("mine/p0/scan 0-0.png", os.fsdecode(b"mine/p0/k\xf6rper.png"))
    with pytest.raises(UserError, match="its name is not in UTF-8; rename it"):
        add()


def test_a_name_with_a_backslash_is_one_line(project: Path) -> None:
    shutil.copy("mine/p0/scan 0-0.png", "mine/p0\\scan.png")
    with pytest.raises(UserError, match="its name contains a backslash; unpack the archive again, or rename it"):
        add()


def divide(project: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Lay the images out as <part>/<class>/<image>, and return the part of each."""
    table = pd.read_csv("labels.csv").set_index("image")
    parts = {}
    for number, path in enumerate(sorted(Path("mine").rglob("*.png"))):
        name = names[number // 2 % len(names)]
        target = Path("parts", name, str(table.label[path.name]), path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        parts[path.name] = name
    return parts


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test", "train", "valid"),
        ("Train", "Test", "Train"),
        ("training_set", "test_set", "training_set"),
        ("Train Images", "Test Images", "Train Images"),
    ],
)
def test_folders_train_and_test_are_the_given_split(project: Path, names: tuple[str, ...]) -> None:
    parts = divide(project, names)
    add(images=Path("parts"), labels=None, columns=Columns())
    params = read_params(Path("params.yaml"))
    split = params.datasets["mine"].split
    assert (split.by, split.validation) == ("given", None if "valid" in names else 0.2)
    prepare(params, "mine")
    _, samples, description = read_dataset(params, "mine")
    assert description["classes"] == ["ill", "well"]
    tested = {f"{Path(name).name}.png" for name in samples.id[samples.split == "test"]}
    assert tested == {name for name, part in parts.items() if part.lower().startswith("test")}
    with pytest.raises(UserError, match=r"datasets\.mine\.split\.by: is given, but --split-column is missing"):
        add(columns=Columns(group="patient"))


def test_folders_without_test_images_are_refused(project: Path) -> None:
    divide(project, ("train", "val"))
    with pytest.raises(UserError, match="has only the parts train, val; expected train and test"):
        add(images=Path("parts"), labels=None, columns=Columns())


def test_folders_that_contain_the_same_folders_are_neither_classes_nor_parts(project: Path) -> None:
    divide(project, ("trainval", "holdout"))
    with pytest.raises(UserError, match="parts: holdout, trainval contain the same folders, ill, well; expected one"):
        add(images=Path("parts"), labels=None, columns=Columns())


def test_a_column_can_give_the_split(project: Path) -> None:
    change_table(part=[("training", "testing", "training")[number // 2 % 3] for number in range(40)])
    add(columns=Columns(group="patient", split="part"))
    assert set(pd.read_csv("data/mine/labels.csv").split) == {"train", "test"}
    assert read_params(Path("params.yaml")).datasets["mine"].split.by == "given"
    change_table(part="somewhere")
    with pytest.raises(UserError, match="row 2: 'somewhere' is not a split; expected train, validation or test"):
        add(columns=Columns(group="patient", split="part"))


def test_a_folder_that_is_a_link_is_not_left_out(project: Path) -> None:
    Path("mine/p2").rename("elsewhere")
    Path("mine/p2").symlink_to(project / "elsewhere")
    with pytest.raises(UserError, match=r"mine/p2: a link to a folder; expected a folder, so copy it there"):
        add()


@pytest.mark.parametrize("name", ["gone.png", "gone"])
def test_a_link_to_a_missing_file_is_not_left_out(project: Path, name: str) -> None:
    Path("mine/p0/.#emacs").symlink_to("someone@here")
    Path("mine/p0", name).symlink_to(".git/annex/objects/x")
    with pytest.raises(UserError, match=f"mine/p0/{name}: a link to a missing file; get that file"):
        add()
    Path("mine/p0", name).unlink()
    assert add() == 40


def test_a_link_out_of_the_folder_is_refused(project: Path) -> None:
    outside = project / "secret.png"
    Image.new("RGB", (8, 8)).save(outside)
    Path("mine/p0/link.png").symlink_to(outside)
    with pytest.raises(UserError, match="a link to a file outside mine"):
        add()


def test_a_changed_copy_is_noticed(project: Path) -> None:
    add()
    params = read_params(Path("params.yaml"))
    folder = Path("data/mine")
    table = pd.read_csv(folder / "labels.csv")
    gone, strange = folder / table.path[0], folder / "images" / "other.png"
    gone.rename(strange)
    table.loc[1, "path"] = "../../params.yaml"
    table.to_csv(folder / "labels.csv", index=False)
    problems = dataset_of("mine", params).read(folder).problems
    assert any("has no images/" in problem for problem in problems)
    assert any("other.png: no row in labels.csv" in problem for problem in problems)
    assert any("has no ../../params.yaml" in problem for problem in problems)
    (folder / "labels.csv").unlink()
    with pytest.raises(UserError, match=r"labels\.csv: not found; add the data set again"):
        dataset_of("mine", params).read(folder)
