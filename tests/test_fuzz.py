"""Fuzzing: any input gives a result or one clear line, and nothing is written outside the target."""

import io
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML

from conftest import PROJECT
from medtransfer.core.errors import UserError
from medtransfer.core.params import CatalogueEntry, Params, Split, read_params
from medtransfer.data.catalogue import CHEST_XRAY, HAM10000, METADATA_COLUMNS
from medtransfer.data.custom import COLUMNS, Columns, custom_dataset, find_samples
from medtransfer.data.images import load_rgb, visible_files
from medtransfer.data.importing import import_dataset
from medtransfer.data.preparation import SPLITS, assign_splits, shared_with_training
from test_bad_input import png_of_16_bits

# Set MEDTRANSFER_FUZZ to try more: docs/reliability.md has the numbers of a long run.
EXAMPLES = int(os.environ.get("MEDTRANSFER_FUZZ", "100"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def expect_one_line(error: UserError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) > 10


# --- params


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)  # fmt: skip


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, part in keys for found in paths_of(part, (*path, key)))]


PARAMS = YAML(typ="safe").load((PROJECT / "params.yaml").read_text())
PATHS = [path for path in paths_of(PARAMS) if path]


@FUZZ
@given(path=st.sampled_from(PATHS), value=VALUES, how=st.sampled_from(["replace", "remove", "add"]))
def test_params_are_valid_or_one_line(tmp_path: Path, path: tuple[Any, ...], value: Any, how: str) -> None:
    values = YAML(typ="safe").load((PROJECT / "params.yaml").read_text())
    parent = values
    for key in path[:-1]:
        parent = parent[key]
    if how == "remove":
        del parent[path[-1]]
    elif how == "add" and isinstance(parent, dict):
        parent[str(value)] = value
    else:
        parent[path[-1]] = value
    yaml = YAML(typ="safe")
    with (tmp_path / "params.yaml").open("w") as file:
        yaml.dump(values, file)
    try:
        assert isinstance(read_params(tmp_path / "params.yaml"), Params)
    except UserError as error:
        expect_one_line(error)


@FUZZ
@given(content=st.binary(max_size=200))
def test_a_params_file_of_any_bytes_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_params(tmp_path / "params.yaml")
    expect_one_line(caught.value)


# --- splits


@FUZZ
@given(data=st.data(), by=st.sampled_from(["image", "group"]), seed=st.integers(0, 2**31 - 1))
def test_splits_are_complete_and_groups_do_not_cross(data: Any, by: str, seed: int) -> None:
    sizes = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    label = np.repeat([f"class{number}" for number in range(len(sizes))], sizes)
    groups = data.draw(st.lists(st.integers(0, 40), min_size=len(label), max_size=len(label)))
    samples = pd.DataFrame({"label": label, "group": [f"g{group}" for group in groups]})
    split = Split.model_validate({"by": by, "validation": 0.2, "test": 0.2, "seed": seed})
    try:
        samples["split"] = assign_splits(samples, split, "x")
    except UserError as error:
        expect_one_line(error)
        return
    assert set(samples.split) <= set(SPLITS)
    assert samples.split.notna().all()
    if by == "group":
        assert not shared_with_training(samples).any()
        assert (samples.groupby("group").split.nunique() == 1).all()


# --- metadata


CELLS = st.one_of(st.sampled_from(["nv", "mel", "ISIC_1", "ISIC_2", "HAM_1", ""]), st.text(max_size=6))


@FUZZ
@given(
    rows=st.lists(st.lists(CELLS, min_size=7, max_size=7), max_size=6),
    columns=st.permutations(METADATA_COLUMNS),
    junk=st.binary(max_size=12),
)
def test_metadata_is_read_or_named(tmp_path: Path, rows: list[list[str]], columns: list[str], junk: bytes) -> None:
    folder = tmp_path / "HAM10000_images_part_1"
    folder.mkdir(exist_ok=True)
    (folder / "ISIC_1.jpg").touch()
    table = pd.DataFrame(rows, columns=columns).to_csv(index=False).encode("utf-8", "surrogatepass")
    (tmp_path / "HAM10000_metadata.csv").write_bytes(table + junk)
    try:
        listing = HAM10000.read(tmp_path)
    except UserError as error:
        expect_one_line(error)
        return
    assert set(listing.samples.label) <= set(HAM10000.classes)
    assert listing.samples.id.is_unique
    assert all("\n" not in line for line in listing.problems)
    assert all((tmp_path / path).is_file() for path in listing.samples.path)


CHEST_FOLDERS = st.sampled_from(["NORMAL", "PNEUMONIA", "train/NORMAL", "val/PNEUMONIA", "COVID", "", "a/b/c"])
CHEST_NAMES = st.one_of(
    st.sampled_from(["person1_virus_2.jpeg", "IM-0001-0001.jpeg", "NORMAL2-IM-3-1.png", "._person1_virus_2.jpeg"]),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8),
).filter(lambda name: name not in (".", ".."))


@FUZZ
@given(names=st.lists(st.tuples(CHEST_FOLDERS, CHEST_NAMES), max_size=5))
def test_chest_files_are_listed_or_named(tmp_path: Path, names: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as work:
        for folder, name in names:
            Path(work, folder).mkdir(parents=True, exist_ok=True)
            if not Path(work, folder, name).is_dir():
                Path(work, folder, name).touch()
        listing = CHEST_XRAY.read(Path(work))
        assert set(listing.samples.label) <= set(CHEST_XRAY.classes)
        assert listing.samples.id.is_unique
        assert all("\n" not in line for line in listing.problems)
        assert all((Path(work) / path).is_file() for path in listing.samples.path)
        assert len(listing.samples) + len(listing.problems) >= max(1, len(visible_files(Path(work))))


SCANS = CatalogueEntry(title="Scans", classes=["nv", "mel"], group="patient", licence="none", citation="none")
OWN_CELLS = st.one_of(
    st.sampled_from(["a.jpg", "a", "b/c.png", "c", "../x.jpg", "images/a.jpg", "nv", "mel", "", "a\0b", "x" * 300]),
    st.text(max_size=6),
)
OWN_COLUMNS = st.lists(st.one_of(st.sampled_from(["file", "dx", "who", "id", "path"]), st.text(max_size=4)), max_size=4)


@FUZZ
@given(
    rows=st.lists(st.lists(OWN_CELLS, min_size=4, max_size=4), max_size=4),
    more=OWN_COLUMNS,
    group=st.sampled_from(["", "who"]),
    junk=st.binary(max_size=12),
)
def test_a_custom_table_is_read_or_named(
    tmp_path: Path, rows: list[list[str]], more: list[str], group: str, junk: bytes
) -> None:
    images = tmp_path / "own"
    for name in ("a.jpg", "b/c.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).touch()
    columns = [*more, "file", "dx", "who", "more"][:4]
    table = pd.DataFrame(rows, columns=columns).to_csv(index=False).encode("utf-8", "surrogatepass")
    (tmp_path / "labels.csv").write_bytes(table + junk)
    try:
        found = find_samples(images, tmp_path / "labels.csv", Columns("file", "dx", group))
    except UserError as error:
        expect_one_line(error)
        return
    assert found.id.is_unique
    assert all(file.is_file() and file.is_relative_to(images) for file in found.file)


@FUZZ
@given(
    rows=st.lists(st.lists(OWN_CELLS, min_size=4, max_size=4), max_size=4),
    columns=st.one_of(st.permutations(COLUMNS), st.just(["id", "label", "group", "x"])),
    junk=st.binary(max_size=12),
)
def test_labels_of_an_added_data_set_are_read_or_named(
    tmp_path: Path, rows: list[list[str]], columns: list[str], junk: bytes
) -> None:
    dataset = custom_dataset("scans", SCANS)
    folder = tmp_path / "scans"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images" / "a.jpg").touch()
    table = pd.DataFrame(rows, columns=columns).to_csv(index=False).encode("utf-8", "surrogatepass")
    (folder / "labels.csv").write_bytes(table + junk)
    try:
        listing = dataset.read(folder)
    except UserError as error:
        expect_one_line(error)
        return
    assert set(listing.samples.label) <= {"nv", "mel"}
    assert listing.samples.id.is_unique
    assert all("\n" not in line for line in listing.problems)
    assert all((folder / path).resolve().is_relative_to(folder.resolve()) for path in listing.samples.path)


# --- images and archives


def picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6
WIDE = np.random.default_rng(0).integers(0, 65536, (24, 20, 4))
CORPUS = [
    picture("JPEG"),
    picture("JPEG", progressive=True),
    picture("JPEG", exif=TURNED),
    picture("JPEG", "CMYK"),
    picture("JPEG", "L"),
    picture("PNG"),
    picture("PNG", "P"),
    picture("PNG", "P", transparency=3),
    picture("PNG", "1"),
    picture("PNG", "RGBA"),
    picture("PNG", "I;16"),
    png_of_16_bits(WIDE[..., :2]),
    png_of_16_bits(WIDE[..., :3]),
    png_of_16_bits(WIDE),
]
CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)


def mutate(content: bytes, changes: list[tuple[float, int]], keep: float) -> bytes:
    changed = bytearray(content)
    for where, value in changes:
        changed[int(where * len(changed))] = value
    return bytes(changed[: max(1, int(keep * len(changed)))])


@FUZZ
@given(content=st.sampled_from(CORPUS), changes=CHANGES, keep=st.one_of(st.just(1.0), st.floats(0, 1)))
@pytest.mark.filterwarnings("ignore")
def test_a_changed_image_decodes_or_is_one_line(content: bytes, changes: list[tuple[float, int]], keep: float) -> None:
    try:
        image, _ = load_rgb(mutate(content, changes, keep), 32, name="fuzzed")
        assert image.mode == "RGB"
    except UserError as error:
        expect_one_line(error)


NAMES = st.one_of(
    st.sampled_from(
        ["HAM10000_metadata.csv", "HAM10000_images_part_1/ISIC_1.jpg", "../HAM10000_images_part_1/a.jpg",
         "/HAM10000_images_part_1/a.jpg", "x/../../HAM10000_images_part_2/a.jpg", "HAM10000_images_part_1/..",
         "HAM10000_images_part_1/../../../../a.jpg", "C:/HAM10000_images_part_1/a.jpg"]
    ),
    st.text(max_size=12).map(lambda text: f"HAM10000_images_part_1/{text}.jpg"),
)  # fmt: skip


@FUZZ
@given(entries=st.dictionaries(NAMES, st.binary(max_size=30), max_size=4), changes=CHANGES, keep=st.floats(0.5, 1))
def test_no_archive_writes_outside_its_target(
    tmp_path: Path, entries: dict[str, bytes], changes: list[tuple[float, int]], keep: float
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    content = buffer.getvalue()
    for body in (content, mutate(content, changes, keep)):
        with tempfile.TemporaryDirectory(dir=tmp_path) as work:
            source, data = Path(work, "a.zip"), Path(work, "deep", "data")
            source.write_bytes(body)
            expected = {source}
            try:
                import_dataset(HAM10000, source, data)
                expected |= {path for path in (data / "ham10000").rglob("*") if path.is_file()}
            except UserError as error:
                expect_one_line(error)
            assert {path for path in Path(work).rglob("*") if path.is_file()} == expected
