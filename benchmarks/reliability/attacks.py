"""Requests that should do nothing: `make ui`, `mlflow models serve` and `medtransfer serve` answer each with 4xx.

Before and after, a canary folder beside the servers is compared: no request may write there, and no code
that was sent may run (it would write there).
"""

import http.client
import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import mlflow
import numpy as np
import requests
from PIL import Image

from medtransfer.core.files import sha256_of, write_json
from medtransfer.serving import likeness
from medtransfer.serving.app import MAX_BYTES
from medtransfer.tracking import mlflow_models, mlflow_runs
from provenance import made_by

PROJECT = Path(__file__).resolve().parents[2]
TIMEOUT = 60
PACKAGES = ("mlflow", "fastapi", "starlette", "uvicorn", "flask", "keras", "tensorflow")
NAME = "attacks"
EVIL = "http://evil.example"
JSON = {"Content-Type": "application/json"}
# What MLflow's own servers answer otherwise (docs/security.md); no code runs and nothing is written.
KNOWN = {
    "serving: deeply nested": 500,
    "serving: no content type": 500,
    "serving: fractions of pixels": 200,
    "serving: foreign Host": 200,
    "serving: foreign Origin": 200,
    "serving: 1,000 images at once": 200,
    "tracking: by absolute path": 308,
}


@click.command()
def main() -> None:
    """Attack the servers and report what each request was answered with."""
    begun = made_by(PACKAGES)
    with tempfile.TemporaryDirectory(prefix="medtransfer-attacks-") as folder:
        click.echo(json.dumps({**begun, **attack(Path(folder))}, indent=2))


def attack(folder: Path) -> dict[str, Any]:
    """Start the servers under `folder`, send everything, and return the statuses and what was let in."""
    canary = folder / "outside"
    canary.mkdir()
    (canary / "secret.txt").write_text("SECRET")
    work = folder / "inside"
    work.mkdir()
    model, run_id = log_a_model(work)
    answers: dict[str, int] = {}
    leaks = []
    with tracking_server(work) as ui, model_server(work, model) as served, page_server(work) as page:
        attacks = {
            **tracking_attacks(ui, run_id, canary),
            **serving_attacks(served, canary),
            **page_attacks(page, canary),
        }
        for name, request in attacks.items():
            answers[name], text = send(request)
            if "SECRET" in text or "root:" in text:
                leaks.append(name)
        good = requests.post(f"{served}/invocations", headers=JSON, data=good_body(), timeout=TIMEOUT)
        good_image = requests.post(f"{page}/predict", data=picture(), timeout=TIMEOUT)
        home = requests.get(ui, timeout=TIMEOUT)
    return {
        "requests": len(answers),
        "not_refused": {
            name: status for name, status in answers.items() if not 400 <= status < 500 and KNOWN.get(name) != status
        },
        "known": KNOWN,
        "leaked": leaks,
        "canary": sorted(path.name for path in canary.iterdir() if path.name != "secret.txt"),
        "a_good_request": good.status_code,
        "a_good_image": good_image.status_code,
        "the_page": home.status_code,
        "answers": answers,
    }


def send(request: dict[str, Any]) -> tuple[int, str]:
    """Return the status and the text of the answer; the key `as_is` is a path that requests would shorten."""
    if "as_is" not in request:
        answer = requests.request(**request, timeout=TIMEOUT)
        return answer.status_code, answer.text
    connection = http.client.HTTPConnection(urlsplit(request["url"]).netloc, timeout=TIMEOUT)
    connection.request("GET", request["as_is"])
    response = connection.getresponse()
    text = response.read().decode(errors="replace")
    connection.close()
    return response.status, text


def paths_above(name: str, address: str, below: str) -> dict[str, dict[str, Any]]:
    """Return requests for files above what a server shows, under `below` and at its root."""
    up = "/.." * 12
    paths = {
        "above the root": f"{up}/etc/passwd",
        "above a route": f"{below}{up}/etc/passwd",
        "above a route, encoded": f"{below}{up.replace('..', '%2e%2e')}/etc/passwd",
        "above a route, slashes encoded": f"{below}/{up[1:].replace('/', '%2f')}%2fetc%2fpasswd",
        "by absolute path": f"{below}//etc/passwd",
    }
    return {f"{name}: {what}": {"url": address, "as_is": path} for what, path in paths.items()}


def log_a_model(folder: Path) -> tuple[str, str]:
    """Log a small network as the stages do and register it; return its address and its run."""

    from medtransfer.core.params import read_params
    from medtransfer.models import vgg16

    settings = read_params(PROJECT / "params.yaml").train
    network = vgg16.build_vgg16(32, 3, settings.model_copy(update={"dense_units": [8, 8]}), seed=0)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlruns/mlflow.db"
    before = Path.cwd()
    os.chdir(folder)
    try:
        with mlflow_runs.run(NAME, "x", "fit", {}, {}, sample_seconds=None) as run:
            run.log_model(lambda: mlflow_models.log_keras_model(network, images))
        assert run.run_id
        (logged,) = mlflow.MlflowClient().search_logged_models([mlflow.get_run(run.run_id).info.experiment_id])
        register(network, run.run_id, folder / mlflow_models.CLASSIFIER)
    finally:
        os.chdir(before)
    return str(logged.artifact_location), run.run_id


def register(network: Any, run_id: str, folder: Path) -> None:
    """Register a network as `medtransfer register` does, without a study."""
    folder.mkdir()
    network.save(folder / "model.keras")
    classes = ["a", "b", "c"]
    facts = {
        "dataset": NAME, "model": "x", "seed": 0, "fit": "fit", "synthetic": True, "title": NAME, "classes": classes,
        "scope": "", "note": "", "white_level": None, "flips": [[]],
        "meanings": dict(zip(classes, classes, strict=True)), "image_size": 32, "resize_filter": "bilinear",
        "calibrated": False, "temperature": 1.0, "validation_macro_f1": 0.0,
        "network_sha256": sha256_of(folder / "model.keras"),
    }  # fmt: skip
    features = network.get_layer(likeness.LAYER).output.shape[-1]
    likeness.save(likeness.Reference(np.zeros(features), np.eye(features)), folder / "training.npz")
    facts["likeness"] = {"method": likeness.METHOD, "threshold": 1e9, "false_alarm_rate": 0.0, "test_images": 0}
    facts["training_sha256"] = sha256_of(folder / "training.npz")
    (folder / "model-card.md").write_text(NAME)
    write_json(folder / "classifier.json", facts)
    mlflow_models.register_classifier(run_id, folder, facts, mlflow_models.BEST)


def tracking_attacks(ui: str, run_id: str, canary: Path) -> dict[str, dict[str, Any]]:
    """Return requests to the tracking server: foreign pages, and paths that leave the store."""
    api = f"{ui}/api/2.0/mlflow"
    create = {"method": "POST", "url": f"{api}/runs/create", "json": {"experiment_id": "1"}}
    up = "../" * 12
    outside = str(canary)
    return {
        "tracking: foreign Host": {"method": "GET", "url": ui, "headers": {"Host": "evil.example"}},
        "tracking: foreign Host on the API": {**create, "headers": {"Host": "evil.example:5000"}},
        "tracking: foreign Origin": {**create, "headers": {"Origin": EVIL}},
        "tracking: null Origin": {**create, "headers": {"Origin": "null"}},
        "tracking: preflight of a foreign page": {
            "method": "OPTIONS", "url": f"{api}/runs/create",
            "headers": {"Origin": EVIL, "Access-Control-Request-Method": "POST"},
        },
        "tracking: artifact above the run": {
            "method": "GET", "url": f"{ui}/get-artifact", "params": {"run_uuid": run_id, "path": f"{up}etc/passwd"},
        },
        "tracking: artifact by absolute path": {
            "method": "GET", "url": f"{ui}/get-artifact",
            "params": {"run_uuid": run_id, "path": f"{outside}/secret.txt"},
        },
        "tracking: artifact above the run, encoded twice": {
            "method": "GET", "url": f"{ui}/get-artifact?run_uuid={run_id}&path=%252e%252e%252fsecret.txt",
        },
        "tracking: list above the run": {
            "method": "GET", "url": f"{api}/artifacts/list", "params": {"run_id": run_id, "path": up},
        },
        **paths_above("tracking", ui, "/static-files"),
        "tracking: upload above the run": {
            "method": "POST", "url": f"{ui}/ajax-api/2.0/mlflow/upload-artifact",
            "params": {"run_uuid": run_id, "path": f"{up}{outside.lstrip('/')}/written"}, "data": b"x",
        },
        "tracking: experiment with a file address above": {
            "method": "POST", "url": f"{api}/experiments/create",
            "json": {"name": "evil", "artifact_location": f"file://{outside}/../outside?x=#/.."},
        },
        "tracking: registered model from a file": {
            "method": "POST", "url": f"{api}/model-versions/create",
            "json": {"name": "evil", "source": f"file://{outside}"},
        },
        "tracking: a run that does not exist": {
            "method": "GET", "url": f"{api}/runs/get", "params": {"run_id": "../x"},
        },
        "tracking: broken JSON": {"method": "POST", "url": f"{api}/runs/create", "data": b"{", "headers": JSON},
        "tracking: metric that is no number": {
            "method": "POST", "url": f"{api}/runs/log-metric",
            "json": {"run_id": run_id, "key": "loss", "value": "evil", "timestamp": 0},
        },
        "tracking: filter with SQL in it": {
            "method": "POST", "url": f"{api}/runs/search",
            "json": {"experiment_ids": ["1"], "filter": "tags.x = 'a'; DROP TABLE runs; --'"},
        },
    }  # fmt: skip


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def good_body() -> str:
    """Return a request that a served network answers."""
    return json.dumps({"inputs": np.zeros((1, 32, 32, 3), int).tolist()})


def serving_attacks(served: str, canary: Path) -> dict[str, dict[str, Any]]:
    """Return requests to the served model: bodies that are no image."""

    def post(body: Any, headers: dict[str, str] = JSON) -> dict[str, Any]:
        return {"method": "POST", "url": f"{served}/invocations", "data": body, "headers": headers}

    def inputs(value: Any) -> dict[str, Any]:
        return post(json.dumps({"inputs": value}))

    pixels = np.zeros((1, 32, 32, 3)).tolist()
    nan = np.full((1, 32, 32, 3), np.nan).tolist()
    return {
        "serving: broken JSON": post("{"),
        "serving: no inputs": post("{}"),
        "serving: unknown key": post(json.dumps({"evil": pixels})),
        "serving: text": inputs("evil"),
        "serving: null": inputs(None),
        "serving: empty list": inputs([]),
        "serving: NaN": inputs(nan),
        "serving: infinity": post('{"inputs": [[[[1e999, 0, 0]]]]}'),
        "serving: negative pixels": inputs((np.zeros((1, 32, 32, 3)) - 1).tolist()),
        "serving: pixels above 255": inputs((np.zeros((1, 32, 32, 3)) + 256).tolist()),
        "serving: fractions of pixels": inputs((np.zeros((1, 32, 32, 3)) + 0.5).tolist()),
        "serving: other size": inputs(np.zeros((1, 64, 64, 3), int).tolist()),
        "serving: one channel": inputs(np.zeros((1, 32, 32, 1), int).tolist()),
        "serving: ragged": inputs([[[[0, 0, 0]], [[0, 0]]]]),
        "serving: deeply nested": post('{"inputs": ' + "[" * 5000 + "]" * 5000 + "}"),
        "serving: a pickle": post(
            pickle.dumps(Canary(canary / "unpickled")), {"Content-Type": "application/octet-stream"}
        ),
        "serving: a pickle called JSON": post(pickle.dumps(Canary(canary / "unpickled"))),
        "serving: CSV": post("a,b\n1,2\n", {"Content-Type": "text/csv"}),
        "serving: no content type": post(b"\x00" * 100, {}),
        **paths_above("serving", served, "/invocations"),
        "serving: foreign Host": post(good_body(), {**JSON, "Host": "evil.example"}),
        "serving: foreign Origin": post(good_body(), {**JSON, "Origin": EVIL}),
        "serving: 1,000 images at once": inputs(np.zeros((1000, 32, 32, 3), int).tolist()),
        "serving: other method": {"method": "DELETE", "url": f"{served}/invocations"},
        "serving: 64 MB of zeros": post(b"0" * 64_000_000),
    }


def picture() -> bytes:
    """Return an image that `medtransfer serve` answers."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def page_attacks(page: str, canary: Path) -> dict[str, dict[str, Any]]:
    """Return requests to `medtransfer serve`: foreign pages, bodies that are no image or too large, other routes."""

    def post(body: Any, **headers: str) -> dict[str, Any]:
        return {"method": "POST", "url": f"{page}/predict", "data": body, "headers": headers}

    def parts() -> Iterator[bytes]:
        """Give a body without its length, sent in chunks."""
        for _ in range(2 * MAX_BYTES // 1_000_000):
            yield bytes(1_000_000)

    good = picture()
    return {
        "page: foreign Host": post(good, Host="evil.example"),
        "page: foreign Host that begins like ours": post(good, Host="127.0.0.1.evil.example"),
        "page: no Host": post(good, Host=""),
        "page: foreign Origin": post(good, Origin=EVIL),
        "page: null Origin": post(good, Origin="null"),
        "page: preflight of a foreign page": {
            "method": "OPTIONS", "url": f"{page}/predict",
            "headers": {"Origin": EVIL, "Access-Control-Request-Method": "POST"},
        },
        "page: no image": post(b""),
        "page: text": post(b"evil"),
        "page: a cut image": post(good[: len(good) // 2]),
        "page: an image of another kind": post(b"GIF89a" + bytes(100)),
        "page: a pickle": post(pickle.dumps(Canary(canary / "unpickled"))),
        "page: 40 MB of zeros": post(bytes(2 * MAX_BYTES)),
        "page: 40 MB of zeros in chunks": post(parts()),
        "page: other method": {"method": "GET", "url": f"{page}/predict"},
        "page: the routes as JSON": {"method": "GET", "url": f"{page}/openapi.json"},
        **paths_above("page", page, "/health"),
    }  # fmt: skip


@contextmanager
def tracking_server(folder: Path) -> Iterator[str]:
    """Start `make ui` over the store in `folder`, with this environment in place of .venv."""
    port = free_port()
    (folder / "tools").symlink_to(PROJECT / "tools")  # `make ui` runs a script in it
    where = (
        "--makefile",
        str(PROJECT / "Makefile"),
        "--old-file",
        "install",
        f"VENV={Path(sys.executable).parents[1]}",
    )
    command = ("make", *where, "ui", f"PORT={port}")
    with started(folder, command, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def model_server(folder: Path, model: str) -> Iterator[str]:
    """Start `mlflow models serve` in this environment."""
    port = free_port()
    places = ("--env-manager", "local", "--host", "127.0.0.1", "--port", str(port))
    command = ("mlflow", "models", "serve", "--model-uri", model, *places)
    with started(folder, command, f"http://127.0.0.1:{port}/ping"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def page_server(folder: Path) -> Iterator[str]:
    """Start `medtransfer serve` in this environment."""
    port = free_port()
    with started(folder, ("medtransfer", "serve", NAME, "--port", str(port)), f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}"


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(folder: Path, command: tuple[str, ...], health: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server's command in `folder` until the block ends; wait first until it answers."""
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=env, start_new_session=True)
    try:
        for _ in range(1200):
            with suppress(requests.RequestException):
                if requests.get(health, timeout=5).ok:
                    break
            if process.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text()[-4000:])
            time.sleep(0.1)
        yield process
    finally:
        kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End a server and its workers with SIGKILL."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    main()
