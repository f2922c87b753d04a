"""Downloading from Kaggle, against a local server with the part of its API that is used."""

import http.server
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from kagglesdk import kaggle_env

from conftest import PROJECT
from medtransfer.cli import cli
from medtransfer.core.errors import UserError
from medtransfer.data.catalogue import HAM10000, read_source
from medtransfer.data.importing import fetch_dataset


class Kaggle(http.server.BaseHTTPRequestHandler):
    archive: bytes = b""
    status = 200
    requests: list[tuple[str, str]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method = self.path.rpartition("/")[2]
        self.requests.append((method, f"{body['ownerSlug']}/{body['datasetSlug']}"))
        if self.status != 200:
            self.answer(b"{}", "application/json")
        elif method == "GetDataset":
            self.answer(json.dumps({"currentVersionNumber": 2}).encode(), "application/json")
        else:
            self.answer(self.archive, "application/zip")

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(self.status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def kaggle(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Kaggle]]:
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as writer:
        for file in (demo / "ham10000").rglob("*.[jc]*"):
            if file.name == "source.json":
                continue
            path = file.relative_to(demo / "ham10000").as_posix()
            writer.write(file, path)
            if path.endswith(".jpg"):  # Kaggle's archive has the image folders twice
                writer.write(file, path.lower().replace("isic", "ISIC"))
        writer.writestr("hmnist_8_8_L.csv", "1,2")
    handler = type("Handler", (Kaggle,), {"archive": archive.read_bytes(), "requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.TEST, endpoint)
        monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
        monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
        yield handler
        server.shutdown()


def test_a_data_set_comes_from_its_kaggle_handle(kaggle: type[Kaggle], demo: Path, dvc_project: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(PROJECT / name, dvc_project)
    done = CliRunner().invoke(cli, ["data", "fetch", "ham10000"])
    assert done.exit_code == 0, done.output
    assert (dvc_project / "data.dvc").exists()
    assert {method for method, _ in kaggle.requests} == {"GetDataset", "DownloadDataset"}
    assert {handle for _, handle in kaggle.requests} == {"kmader/skin-cancer-mnist-ham10000"}
    listing = HAM10000.read(dvc_project / "data" / "ham10000")
    assert listing.problems == []
    assert listing.samples.id.equals(HAM10000.read(demo / "ham10000").samples.id)
    assert read_source(dvc_project / "data" / "ham10000")["source"] == "kaggle kmader/skin-cancer-mnist-ham10000"


def test_a_refusal_is_one_line_that_names_the_alternative(kaggle: type[Kaggle], tmp_path: Path) -> None:
    kaggle.status = 403
    with pytest.raises(UserError, match="medtransfer data import ham10000 FILE") as caught:
        fetch_dataset(HAM10000, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()
