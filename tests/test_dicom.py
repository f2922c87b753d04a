"""DICOM: comparable pictures, patients as groups, and no tag that identifies a person in any file."""

import hashlib
import json
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom import Dataset, Sequence, dcmread
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from conftest import PROJECT
from medtransfer.core.errors import UserError
from medtransfer.core.params import read_params
from medtransfer.data.custom import Columns, find_samples
from medtransfer.data.dicom import hide, read_header
from medtransfer.data.images import load_rgb
from medtransfer.pipeline.prepare import prepare
from medtransfer.serving.outside import match_labels
from medtransfer.study.custom_data import add_custom

NAME = "Mustermann^Erika"


def dicom(path: Path, values: np.ndarray, **tags: Any) -> Path:
    """Write a grey file with 12 of 16 bits of an odd patient, and return its path."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.StudyInstanceUID = NAME, "P17", generate_uid()
    data.SeriesInstanceUID, data.PatientComments = generate_uid(), f"seen by {NAME}"
    data.add_new(0x00091001, "LO", NAME)  # private
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def grey(source: Path) -> np.ndarray:
    return np.asarray(load_rgb(source).image)[..., 0]


VALUES = np.random.default_rng(0).integers(0, 4096, (32, 40), np.uint16)


def test_without_a_window_the_stored_bits_are_the_range(tmp_path: Path) -> None:
    for values in (VALUES, VALUES // 2):
        assert (grey(dicom(tmp_path / "a", values)) == np.rint(values / 4095 * 255)).all()


@pytest.mark.parametrize(
    "window",
    [
        {},
        {"WindowCenter": None, "WindowWidth": None},
        {"WindowCenter": 40},
        {"WindowCenter": 2048, "WindowWidth": 4096},
    ],
)
def test_a_descending_range_is_not_inverted(tmp_path: Path, window: dict[str, Any]) -> None:
    descending = dicom(tmp_path / "a", 4095 - VALUES, RescaleSlope=-1, RescaleIntercept=4095, **window)
    assert (grey(descending) == grey(dicom(tmp_path / "b", VALUES))).all()


def test_excess_bytes_change_nothing_and_print_nothing(tmp_path: Path) -> None:
    padded = dicom(tmp_path / "padded", VALUES, PixelData=VALUES.tobytes() + bytes(64))
    script = f"from pathlib import Path; from medtransfer.data.images import load_rgb; load_rgb(Path({str(padded)!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert (grey(padded) == grey(dicom(tmp_path / "plain", VALUES))).all()


def test_modality_and_window_follow_the_standard(tmp_path: Path) -> None:
    window = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": [40, 600], "WindowWidth": [400, 1500]}
    signed = VALUES.astype(np.int16) - 2048
    for values in (VALUES, signed):
        # PS3.3 C.11.2.1.2.1
        expected = np.clip((values * 2.0 - 1000 - 39.5) / 399 + 0.5, 0, 1) * 255
        assert np.abs(grey(dicom(tmp_path / "a", values, **window)) - expected).max() <= 0.51
    sigmoid = 255 / (1 + np.exp(-4 * (VALUES - 2000.0) / 1000))
    tags = {"WindowCenter": 2000, "WindowWidth": 1000, "VOILUTFunction": "SIGMOID"}
    assert np.abs(grey(dicom(tmp_path / "a", VALUES, **tags)) - sigmoid).max() <= 0.51


@pytest.mark.parametrize("bits", [8, 12])
def test_a_voi_table_comes_before_a_window(tmp_path: Path, bits: int) -> None:
    table = Dataset()
    curve = np.rint(np.linspace(0, 1, 4096) ** 2 * (2**bits - 1)).astype(np.uint16)
    table.LUTDescriptor, table.LUTData = [4096, 0, bits], curve.tolist()
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    tags = {"VOILUTSequence": Sequence([table]), "WindowCenter": 40, "WindowWidth": 400}
    assert np.abs(grey(dicom(tmp_path / "a", VALUES, **tags)) - curve[VALUES] / (2**bits - 1) * 255).max() <= 0.51


@pytest.mark.parametrize("tags", [{"PhotometricInterpretation": "MONOCHROME1"}, {"PresentationLUTShape": "INVERSE"}])
def test_inverted_pictures_are_inverted(tmp_path: Path, tags: dict[str, str]) -> None:
    plain, inverted = dicom(tmp_path / "a", VALUES), dicom(tmp_path / "b", VALUES, **tags)
    assert (grey(inverted) == 255 - grey(plain)).all()


def test_colours_and_other_frames(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "BitsAllocated": 8}
    tags |= {"BitsStored": 8, "HighBit": 7}
    found = load_rgb(dicom(tmp_path / "a", colours, **tags))
    assert (np.asarray(found.image) == colours).all()
    assert found.converted == "DICOM"
    assert found.image.info == {}
    several = dicom(tmp_path / "b", np.tile(VALUES, (3, 1)), NumberOfFrames=3, Rows=32)
    with pytest.raises(UserError, match="b: has 3 frames; expected one image"):
        load_rgb(several)


@pytest.mark.parametrize("keep", [140, 400, -100])
def test_a_damaged_file_is_one_line(tmp_path: Path, keep: int) -> None:
    path = dicom(tmp_path / "a.dcm", VALUES)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a\.dcm: ") as caught:
        load_rgb(path)
    assert "\n" not in str(caught.value)
    assert "Mustermann" not in str(caught.value)


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, r"RescaleSlope is 0\); export it again"),
        ({"RescaleSlope": None, "RescaleIntercept": None}, r"NoneType'\); export it again"),
        ({"HighBit": 15}, r"HighBit is 15, but 12 bits are stored\); export it again"),
        ({"Rows": 99}, "export it again"),
        ({"Rows": None}, "has no picture .*; remove it"),
    ],
)
def test_a_file_with_unusable_tags_is_one_line(tmp_path: Path, tags: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=f"a: .*{problem}"):
        load_rgb(dicom(tmp_path / "a", VALUES, **tags))


def test_a_deflated_file_is_not_unpacked(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a", VALUES)
    data = dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path)
    with pytest.raises(UserError, match="uses the deflated transfer syntax"):
        load_rgb(path)
    data.file_meta.PrivateInformationCreatorUID, data.file_meta.PrivateInformation = generate_uid(), bytes(2000)
    data.save_as(path)
    for source in (path, path.read_bytes()):
        with pytest.raises(UserError, match="uses the deflated transfer syntax"):
            load_rgb(source, name="a")


def test_a_compressed_picture_has_the_size_that_its_tags_say(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (32, 40), np.uint8)
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "JPEG", quality=95)
    path = dicom(tmp_path / "a", values, BitsAllocated=8, BitsStored=8, HighBit=7)
    data = dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.PixelData = encapsulate([buffer.getvalue()])
    data["PixelData"].VR = "OB"
    data.save_as(path)
    assert abs(grey(path).astype(int) - values).mean() < 5
    data.Rows = 16
    data.save_as(path)
    with pytest.raises(UserError, match=r"its image is 40 × 32 pixels, but its tags say 40 × 16\); export it again"):
        load_rgb(path)


def test_a_private_compression_or_damaged_tag_is_one_line(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", VALUES)
    private = b"1.2.840.113619.5.2\0\0"  # GE's
    path.write_bytes(path.read_bytes().replace(ExplicitVRLittleEndian.encode() + b"\0", private))
    with pytest.raises(UserError, match=r"a\.dcm: cannot be"):
        load_rgb(path)
    path = dicom(tmp_path / "b.dcm", VALUES)
    path.write_bytes(path.read_bytes().replace(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00Z?"))
    with pytest.raises(UserError, match=r"b\.dcm: cannot be read as DICOM \(NotImplementedError\); copy it again"):
        read_header(path)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with 20 patients' files in `scans/<class>`, two per patient, named by their UID or a number."""
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    rows = []
    for number in range(40):
        patient = f"P{number // 2}"  # of odd and even length
        values = np.random.default_rng(number).integers(0, 4096, (40, 40), np.uint16)
        uid = generate_uid()
        label = ("ill", "well")[number // 2 % 2]
        path = dicom(Path("scans", label, uid if number % 2 else f"{number}.dcm"), values, PatientID=patient)
        data = dcmread(path)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid
        data.compress(RLELossless, generate_instance_uid=False)
        data.save_as(path)
        rows.append({"image": uid, "label": label, "patient": patient})
    Path("scans/DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    pd.DataFrame(rows).to_csv("labels.csv", index=False)
    return tmp_path


def add(labels: Path | None, columns: Columns) -> pd.DataFrame:
    params = read_params(Path("params.yaml"))
    add_custom(params, "mine", Path("scans"), labels, columns, {}, only=False)
    return pd.read_csv("data/mine/labels.csv", dtype=str)


def test_the_patient_of_the_files_is_the_group(project: Path) -> None:
    found = add(None, Columns())
    assert (len(found), found.group.nunique()) == (40, 20)
    assert hashlib.sha256(b"P7").hexdigest()[:16] in set(found.group)
    params = read_params(Path("params.yaml"))
    assert params.datasets["mine"].split.by == "group"
    prepare(params, "mine")
    samples = pd.read_csv("artifacts/prepared/mine/samples.csv")
    assert samples.groupby("group").split.nunique().max() == 1


def test_rows_name_a_compressed_file_by_its_uid(project: Path) -> None:
    by_folder = add(None, Columns()).set_index("id")
    Path("params.yaml").write_text((PROJECT / "params.yaml").read_text())
    by_table = add(Path("labels.csv"), Columns(group="patient")).set_index("id")
    pd.testing.assert_frame_equal(by_folder, by_table)
    table = pd.read_csv("labels.csv")
    table.loc[4, "image"] = "1.2.3"
    table.to_csv("labels.csv", index=False)
    with pytest.raises(UserError, match=r"row 6: '1\.2\.3' is not among the images"):
        add(Path("labels.csv"), Columns(group="patient"))


def test_no_file_names_a_person(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(None, Columns())
    prepare(read_params(Path("params.yaml")), "mine")
    written = [path for folder in ("data", "artifacts") for path in Path(folder).rglob("*") if path.is_file()]
    assert len(written) > 40
    written += [Path("params.yaml"), Path("dvc.yaml")]
    for path in written:
        content = path.read_bytes()
        assert b"Mustermann" not in content, path
        assert b"P17" not in content, path
    assert "Mustermann" not in json.dumps(capsys.readouterr())
    for path in Path("data/mine/images").rglob("*.png"):
        with Image.open(path) as image:
            assert image.info == {}


@pytest.mark.parametrize(
    ("tags", "others"),
    [
        ({"WindowCenter": 40, "WindowWidth": 400}, {"WindowCenter": 41}),
        ({"WindowCenter": 40, "WindowWidth": 400}, {"VOILUTFunction": "SIGMOID"}),
        ({"RescaleSlope": 1, "RescaleIntercept": 0}, {"RescaleSlope": 2}),
        ({"BitsStored": 12, "HighBit": 11}, {"BitsStored": 14, "HighBit": 13}),
    ],
)
def test_a_series_of_two_scales_is_refused(project: Path, tags: dict[str, Any], others: dict[str, Any]) -> None:
    series = {"SeriesInstanceUID": generate_uid()}
    for number, more in enumerate([{}, others]):
        dicom(Path("scans/ill", f"w{number}"), VALUES, **(tags | more | series))
    with pytest.raises(UserError, match=r"scans/ill/w1: its window or range of values differs from that of ill/w0"):
        add(None, Columns())
    scans = [path for path in Path("scans").glob("*/*") if path.name != "w1"]
    table = pd.DataFrame({"image": [f"{path.parent.name}/{path.name}" for path in scans]})
    table.assign(label=[path.parent.name for path in scans]).to_csv("labels.csv", index=False)
    assert len(add(Path("labels.csv"), Columns())) == len(scans)  # the other file is left out


def test_a_series_with_one_window_may_have_several_slopes(project: Path) -> None:
    """As in PET: the window is that of rescaled values."""
    tags = {"WindowCenter": 400, "WindowWidth": 800, "RescaleIntercept": 0, "SeriesInstanceUID": generate_uid()}
    dicom(Path("scans/ill", "w0"), VALUES, RescaleSlope=1, **tags)
    dicom(Path("scans/ill", "w1"), VALUES, RescaleSlope=2, VOILUTFunction="LINEAR", **tags)
    assert len(add(None, Columns())) == 42


def test_files_without_a_series_may_have_different_windows(project: Path) -> None:
    for number in range(2):
        window = {"WindowCenter": 40 + number, "WindowWidth": 400, "SeriesInstanceUID": ""}
        dicom(Path("scans/ill", f"w{number}"), VALUES, **window)
    assert len(add(None, Columns())) == 42


@pytest.mark.parametrize("patient", ["", "unknown "])
def test_a_file_without_a_patient_among_others_is_refused(project: Path, patient: str) -> None:
    dicom(Path("scans/ill/x"), VALUES, PatientID=patient)
    with pytest.raises(
        UserError, match="scans/ill/x: has no PatientID, but other files have; give --labels with --group"
    ):
        add(None, Columns())


@pytest.mark.parametrize("patient", ["", "Anonymized"])
def test_files_without_any_patient_are_said_to_have_none(
    project: Path, capsys: pytest.CaptureFixture[str], patient: str
) -> None:
    for number in range(4):
        dicom(Path(f"anonymous/{'ill' if number % 2 else 'well'}/{number}.dcm"), VALUES + number, PatientID=patient)
    assert find_samples(Path("anonymous"), None, Columns()).group.nunique() == 4
    assert "no DICOM file has a PatientID, so images of one patient can be in two splits" in capsys.readouterr().out


def test_files_that_all_name_one_patient_need_a_table(project: Path) -> None:
    for number in range(4):
        dicom(Path(f"alike/{'ill' if number % 2 else 'well'}/{number}.dcm"), VALUES + number, PatientID="ANON01")
    with pytest.raises(UserError, match="alike: all DICOM files have the same PatientID; give --labels with --group"):
        find_samples(Path("alike"), None, Columns())


@pytest.mark.parametrize("patient", ["p7", "P\u20117"])
def test_a_patient_in_two_spellings_is_not_two(project: Path, patient: str) -> None:
    dicom(Path("scans/ill/x"), VALUES, PatientID=patient, SpecificCharacterSet="ISO_IR 192")
    if patient == "p7":
        with pytest.raises(UserError, match=r"their PatientIDs differ but may belong to the same patient") as caught:
            add(None, Columns())
        assert patient not in str(caught.value).lower()
    else:
        dicom(Path("scans/ill/y"), VALUES, PatientID="P-7")
        found = add(None, Columns()).set_index("id")
        assert found.group["ill/x"] == found.group["ill/y"]


def test_dicom_files_are_named_by_their_uid_and_patients_stay_hidden(tmp_path: Path) -> None:
    """The last number of a UID looks like a suffix."""
    files = {}
    for number in (1, 2):
        name = f"1.2.840.99.7.{number}"
        files[name] = dicom(tmp_path / name, np.full((32, 32), number, np.uint16), SOPInstanceUID=f"1.2.3.{number}")
    named, by_uid = list(files), ["1.2.3.1", "1.2.3.2"]
    for images in (named, by_uid):
        table = pd.DataFrame({"image": images, "label": "mel", "group": ["MRN1", "MRN1"]})
        samples = match_labels(files, table, Path("labels.csv"))
        assert samples.id.tolist() == named
        assert samples.group.tolist() == [hide("MRN1")] * 2
    alone = match_labels(files, table.assign(group=table.image), Path("labels.csv"))
    assert alone.group.nunique() == 1  # the patient in the files
    assert set(alone.group) != {"MRN1"}
