"""Raw data sets: layout, import, validation and the demo."""

import json
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image
from ruamel.yaml import YAML

from conftest import PROJECT
from drawn import draw_data
from medtransfer.cli import cli
from medtransfer.core.errors import UserError
from medtransfer.data.catalogue import CATALOGUE, CHEST_XRAY, HAM10000, get_dataset, read_source
from medtransfer.data.checks import describe, validate
from medtransfer.data.images import load_pixels, load_rgb
from medtransfer.data.importing import import_dataset

NAMES = sorted(CATALOGUE)


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.name != "source.json":
                archive.write(file, file.relative_to(folder))
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "source.json"
    }


@pytest.fixture
def raw(demo: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a demo data set that a test may damage."""
    return lambda name: Path(shutil.copytree(demo / name, tmp_path / "raw" / name))


# --- the embedded data


def test_git_never_converts_the_line_ends_of_the_embedded_data() -> None:
    asked = ["git", "check-attr", "text", "--", ".dvc/embedded/data.dvc", "results/params-real.yaml"]
    told = subprocess.run(asked, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert told.count(": text: unset\n") == 2


def test_the_embedded_data_are_real_small_and_credited() -> None:
    folder = PROJECT / ".dvc" / "embedded"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 4_000_000

    def stored(md5: str) -> bytes:
        return (folder / "files" / "md5" / md5[:2] / md5[2:]).read_bytes()

    pointer = YAML(typ="safe").load((folder / "data.dvc").read_text())["outs"][0]
    files = {entry["relpath"]: entry["md5"] for entry in json.loads(stored(pointer["md5"]))}
    for dataset in CATALOGUE.values():
        source = json.loads(stored(files[f"{dataset.name}/source.json"]))
        assert source["synthetic"] is False
        assert (source["licence"], source["citation"]) == (dataset.licence, dataset.citation)
        assert dataset.licence in source["note"]
        assert "draw_demonstration.py" in source["source"]


# --- the drawn data


def test_the_drawn_data_are_the_same_from_the_same_seed_and_small(demo: Path, tmp_path: Path) -> None:
    draw_data(tmp_path / "data", seed=0)
    assert contents(tmp_path / "data") == contents(demo)
    assert sum(map(len, contents(demo).values())) < 4_000_000
    draw_data(tmp_path / "data", seed=1)
    assert contents(tmp_path / "data") != contents(demo)


@pytest.mark.parametrize("name", NAMES)
def test_the_drawn_data_are_sound_imbalanced_grouped_and_marked(demo: Path, name: str) -> None:
    report = validate(get_dataset(name), demo / name)
    assert report["problems"] == []
    assert report["duplicates"] == []
    assert report["synthetic"] is True
    counts = [entry["images"] for entry in report["classes"].values()]
    assert max(counts) > 2 * min(counts)
    assert report["groups"] < 0.8 * report["images"]


# --- the layouts


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("person1_bacteria_2.jpeg", "person1"),
        ("person1_virus_6.jpeg", "person1"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("IM-0539-0001-0002.jpeg", "IM-0539"),
        ("NORMAL2-IM-0275-0001.jpeg", "NORMAL2-IM-0275"),
    ],
)
@pytest.mark.parametrize("layout", ["chest_xray/train/NORMAL", "test/NORMAL", "NORMAL"])
def test_chest_xray_reads_the_patient_in_both_layouts(tmp_path: Path, path: str, group: str, layout: str) -> None:
    (tmp_path / layout).mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / layout / path)
    (tmp_path / layout / ".DS_Store").touch()
    listing = CHEST_XRAY.read(tmp_path)
    assert listing.problems == []
    assert listing.samples.drop(columns="split", errors="ignore").to_dict("records") == [
        {"id": path.removesuffix(".jpeg"), "label": "NORMAL", "group": group, "path": f"{layout}/{path}"}
    ]


@pytest.mark.parametrize(
    ("name", "path", "target"),
    [
        ("ham10000", "HAM10000_images_part_1/ISIC_1.jpg", "HAM10000_images_part_1/ISIC_1.jpg"),
        ("ham10000", "x/ham10000_images_part_2/ISIC_1.jpg", "HAM10000_images_part_2/ISIC_1.jpg"),
        ("ham10000", "dataverse_files/HAM10000_metadata", "HAM10000_metadata.csv"),
        ("ham10000", "HAM10000_metadata.tab", "HAM10000_metadata.csv"),
        ("ham10000", "x/ISIC2018_Task3_Training_Input/ISIC_1.jpg", "ISIC2018_Task3_Training_Input/ISIC_1.jpg"),
        ("ham10000", "hmnist_28_28_RGB.csv", None),
        ("chest_xray", "chest_xray/chest_xray/val/NORMAL/a.jpeg", "chest_xray/val/NORMAL/a.jpeg"),
        ("chest_xray", "PNEUMONIA/a.jpeg", "chest_xray/PNEUMONIA/a.jpeg"),
        ("chest_xray", "chest_xray/__MACOSX/train/NORMAL/a.jpeg", None),
        ("chest_xray", "chest_xray/train/NORMAL/.DS_Store", None),
    ],
)
def test_the_published_archives_are_tidied(name: str, path: str, target: str | None) -> None:
    assert get_dataset(name).select(PurePosixPath(path)) == (PurePosixPath(target) if target else None)


# --- import


def as_dataverse(folder: Path) -> None:
    table = pd.read_csv(folder / "HAM10000_metadata.csv")
    (folder / "HAM10000_metadata.csv").unlink()
    table.to_csv(folder / "HAM10000_metadata.tab", sep="\t", index=False)


def as_challenge(folder: Path) -> None:
    table = pd.read_csv(folder / "HAM10000_metadata.csv").rename(columns={"image_id": "image"})
    (folder / "HAM10000_metadata.csv").unlink()
    hot = pd.get_dummies(table.dx.str.upper(), dtype=float)
    hot.insert(0, "image", table.image)
    hot.to_csv(folder / "ISIC2018_Task3_Training_GroundTruth.csv", index=False)
    table[["image", "lesion_id", "dx_type"]].to_csv(folder / "ISIC2018_Task3_Training_LesionGroupings.csv", index=False)
    images = sorted(folder.rglob("*.jpg"))
    for image in images:
        (folder / "ISIC2018_Task3_Training_Input").mkdir(exist_ok=True)
        image.rename(folder / "ISIC2018_Task3_Training_Input" / image.name)


def test_an_unknown_age_sex_or_site_is_missing(tmp_path: Path) -> None:
    header = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
    (tmp_path / "HAM10000_metadata.csv").write_text(
        f"{header}l1,i1,mel,histo,unknown,,\nl2,i2,nv,histo,85.0,male,back\n"
    )
    described = HAM10000.describe(tmp_path).set_index("id")
    assert described.loc["i1"].isna().all()
    assert list(described.loc["i2"]) == ["70 and over", "male", "back"]


@pytest.mark.parametrize("lay_out", [as_dataverse, as_challenge])
def test_ham10000_is_imported_as_others_distribute_it(
    demo: Path, tmp_path: Path, lay_out: Callable[[Path], None]
) -> None:
    source = Path(shutil.copytree(demo / "ham10000", tmp_path / "source"))
    lay_out(source)
    import_dataset(HAM10000, source, tmp_path / "data")
    found, expected = (HAM10000.read(folder / "ham10000") for folder in (tmp_path / "data", demo))
    assert found.problems == []
    columns = ["id", "label", "group"]
    pd.testing.assert_frame_equal(found.samples[columns], expected.samples[columns])


def test_an_archive_without_a_file_says_where_it_was_looked_for(demo: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(demo / "ham10000", tmp_path / "source"))
    next(source.rglob("*.jpg")).unlink()
    with pytest.raises(UserError, match=r"source: .*HAM10000_images_part_1 or HAM10000_images_part_2") as caught:
        import_dataset(HAM10000, source, tmp_path / "data")
    (source / "HAM10000_metadata.csv").unlink()
    with pytest.raises(UserError, match=r"source: HAM10000_metadata\.csv: not found, nor ISIC2018_Task3") as caught:
        import_dataset(HAM10000, source, tmp_path / "data")
    assert "data import" not in str(caught.value)
    assert "dvc pull" not in str(caught.value)
    assert str(tmp_path / "data") not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_an_import_copies_everything_and_notes_its_origin(demo: Path, tmp_path: Path, name: str, kind: str) -> None:
    source = demo / name if kind == "folder" else zipped(demo / name, tmp_path / "a.zip")
    data = tmp_path / "data"
    (data / name).mkdir(parents=True)
    (data / name / "old.txt").touch()
    count = import_dataset(get_dataset(name), source, data)
    assert contents(data / name) == contents(demo / name)
    assert count == len(contents(demo / name))
    assert read_source(data / name)["synthetic"] is False
    assert [path.name for path in data.iterdir()] == [name], "an unfinished copy was left behind"


def test_the_command_imports_one_after_the_other_under_dvc(
    demo: Path, dvc_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(PROJECT / name, dvc_project)
    for name in NAMES:
        zipped(demo / name, dvc_project / "archive.zip")
        done = CliRunner().invoke(cli, ["data", "import", name, "archive.zip"])
        assert f"{name}: {len(contents(demo / name))} files are in data/{name}" in done.output
        (out,) = YAML(typ="safe").load((dvc_project / "data.dvc").read_text())["outs"]
        assert out["nfiles"] == sum(path.is_file() for path in (dvc_project / "data").rglob("*"))
    (dvc_project / "data" / name / "mine.txt").write_text("an import that succeeds removes it")
    before, pointer = contents(dvc_project / "data"), (dvc_project / "data.dvc").read_text()
    monkeypatch.setattr("medtransfer.cli.data.dvc", lambda *arguments, **options: sys.exit(2))
    assert CliRunner().invoke(cli, ["data", "import", name, "archive.zip"]).exit_code == 2
    assert (contents(dvc_project / "data"), (dvc_project / "data.dvc").read_text()) == (before, pointer)


def test_an_interrupted_import_keeps_what_is_whole(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, archive = tmp_path / "data", zipped(demo / "ham10000", tmp_path / "a.zip")
    copied: list[str] = []
    original = shutil.copyfileobj

    def stop_after_five(reader: zipfile.ZipExtFile, writer: object) -> None:
        if len(copied) == 5:
            raise KeyboardInterrupt
        copied.append(reader.name)
        original(reader, writer)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "copyfileobj", stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(HAM10000, archive, data)
    assert not (data / "ham10000").exists()
    damaged = data / ".partial-ham10000" / copied[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")

    again: list[str] = []

    def note(reader: zipfile.ZipExtFile, writer: object) -> None:
        again.append(reader.name)
        original(reader, writer)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "copyfileobj", note)
    import_dataset(HAM10000, archive, data)
    assert set(copied[1:]).isdisjoint(again)
    assert copied[0] in again
    assert contents(data / "ham10000") == contents(demo / "ham10000")


@pytest.mark.parametrize(
    "entry",
    ["../ham10000_images_part_1/ISIC_1.jpg", "/HAM10000_images_part_1/ISIC_1.jpg", "C:\\HAM10000_images_part_1\\x.jpg"],
)
def test_entries_that_leave_the_folder_are_refused(tmp_path: Path, entry: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, b"x")
    with pytest.raises(UserError, match="would leave the target folder"):
        import_dataset(HAM10000, tmp_path / "a.zip", tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_in_an_archive_are_refused(tmp_path: Path, kind: int) -> None:
    link = zipfile.ZipInfo("HAM10000_images_part_1/ISIC_1.jpg")
    link.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="is a link or a device"):
        import_dataset(HAM10000, tmp_path / "a.zip", tmp_path / "data")


def test_a_failed_import_leaves_the_old_data_alone(demo: Path, tmp_path: Path) -> None:
    data, archive = tmp_path / "data", zipped(demo / "ham10000", tmp_path / "a.zip")
    import_dataset(HAM10000, archive, data)
    body = bytearray(archive.read_bytes())
    body[len(body) // 2] ^= 0xFF
    archive.write_bytes(body)
    with pytest.raises(UserError, match="damaged"):
        import_dataset(HAM10000, archive, data)
    assert contents(data / "ham10000") == contents(demo / "ham10000")


@pytest.mark.parametrize("bad", ["missing.zip", "text.zip", "other"])
def test_a_source_that_is_no_data_set_is_refused(tmp_path: Path, bad: str) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.txt").touch()
    with pytest.raises(UserError, match=r"not found|neither a folder nor a complete zip|no files of"):
        import_dataset(HAM10000, tmp_path / bad, tmp_path / "data")


# --- validation


def damage_image(folder: Path) -> None:
    next(folder.rglob("*.jpg")).write_bytes(b"not a picture")


def cut_image(folder: Path) -> None:
    image = next(folder.rglob("*.jpg"))
    image.write_bytes(image.read_bytes()[:-400])


def remove_image(folder: Path) -> None:
    next(folder.rglob("*.jpg")).unlink()


def remove_row(folder: Path) -> None:
    edit_metadata(folder, lambda table: table.iloc[1:])


def repeat_row(folder: Path) -> None:
    edit_metadata(folder, lambda table: pd.concat([table, table.iloc[:1]]))


def change_label(folder: Path) -> None:
    edit_metadata(folder, lambda table: table.assign(dx=table.dx.mask(table.index == 0, "wart")))


def empty_group(folder: Path) -> None:
    edit_metadata(folder, lambda table: table.assign(lesion_id=table.lesion_id.mask(table.index == 0)))


def edit_metadata(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = folder / "HAM10000_metadata.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_image, "cannot be decoded"),
        (cut_image, "cannot be decoded"),
        (remove_image, "has no image file"),
        (remove_row, "no row in HAM10000_metadata.csv"),
        (repeat_row, "has more than one row"),
        (change_label, "has the label 'wart', but the classes are akiec"),
        (empty_group, "has no lesion_id"),
    ],
)
def test_validation_finds_each_problem_once(
    raw: Callable[[str], Path], damage: Callable[[Path], None], message: str
) -> None:
    folder = raw("ham10000")
    damage(folder)
    problems = validate(HAM10000, folder)["problems"]
    assert any(message in problem for problem in problems)
    assert len(problems) <= 2


def test_equal_files_are_reported_with_whether_their_labels_differ(raw: Callable[[str], Path]) -> None:
    folder = raw("chest_xray")
    normal = next(folder.rglob("NORMAL/*.jpeg"))
    shutil.copy(normal, normal.with_name("IM-9999-0001.jpeg"))
    sick = next(folder.rglob("PNEUMONIA/*.jpeg"))
    shutil.copy(normal, sick.with_name("person9999_virus_1.jpeg"))
    report = validate(CHEST_XRAY, folder)
    assert report["duplicates"] == [
        {"ids": sorted([normal.stem, "IM-9999-0001", "person9999_virus_1"]), "crosses_labels": True}
    ]
    assert report["problems"] == []


def test_the_description_counts_images_and_groups(demo: Path) -> None:
    table = pd.read_csv(demo / "ham10000" / "HAM10000_metadata.csv")
    entry = describe(HAM10000, demo / "ham10000")
    assert entry["images"] == len(table)
    assert {name: counts["images"] for name, counts in entry["classes"].items()} == table.dx.value_counts().to_dict()
    assert entry["classes"]["mel"]["groups"] == table[table.dx == "mel"].lesion_id.nunique()


# --- pixels


def test_resizing_gives_a_square_of_uint8(tmp_path: Path) -> None:
    Image.new("L", (10, 6), 200).save(tmp_path / "a.png")
    pixels = load_pixels(tmp_path / "a.png", 32, "lanczos")
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == 200).all()


def test_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert load_rgb(tmp_path / "a.jpg").image.size == (4, 8)
