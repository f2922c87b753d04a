"""compose.yaml and the Dockerfile, as far as they can be looked at without an engine."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from conftest import PROJECT

DOCKERFILE = (PROJECT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load((PROJECT / "compose.yaml").read_text())
    return loaded


def test_docker_compose_accepts_the_file(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("Docker Compose is not installed (Debian's package: docker-compose, of version 2)")
    file = PROJECT / "compose.yaml"
    wanted = set(re.findall(r"\$\{(\w+):\?", file.read_text()))

    def config(text: str) -> str:
        (tmp_path / "env").write_text(text)
        places = ("--file", file, "--env-file", tmp_path / "env")
        command = [docker, "compose", *map(str, places), "--profile", "*", "config", "--quiet"]
        return subprocess.run(command, capture_output=True, text=True).stderr

    assert config("".join(f"{name}=x\n" for name in wanted)) == ""
    assert "run `make up`, which writes .env" in config("")


def test_every_volume_is_declared_and_used(compose: dict[str, Any]) -> None:
    mounted = {volume.split(":")[0] for service in compose["services"].values() for volume in service["volumes"]}
    assert mounted == set(compose["volumes"])


@pytest.mark.parametrize("trainer", ["trainer", "trainer-cpu"])
def test_a_trainers_volumes_begin_as_folders_that_it_may_write(compose: dict[str, Any], trainer: str) -> None:
    """A named volume takes over the owner of the image's folder; where there is none, it is root's."""
    made = re.search(r"^RUN mkdir --parents (.*) \\$", DOCKERFILE, re.MULTILINE)
    installed = re.search(r"install --directory --owner study .* 0777 (.*)$", DOCKERFILE, re.MULTILINE)
    assert made
    assert installed
    folders = {f"/study/{folder}" for folder in made[1].split()} | set(installed[1].split())
    targets = {volume.split(":")[1] for volume in compose["services"][trainer]["volumes"]}
    assert "/study/data" in targets
    assert targets <= folders


def test_nothing_is_open_but_on_loopback_and_no_password_is_written_down(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET", name):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?.*\}", value)


def test_services_wait_for_those_that_are_healthy(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        for other, wanted in service.get("depends_on", {}).items():
            assert wanted == {"condition": "service_healthy"}
            assert "healthcheck" in services[other]


def test_the_server_names_the_driver_that_is_locked(compose: dict[str, Any]) -> None:
    uri = compose["services"]["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert uri.startswith("postgresql+psycopg://")
    assert re.search(r"^psycopg==", (PROJECT / "requirements" / "cpu.txt").read_text(), re.MULTILINE)


def test_the_images_script_is_a_script_of_sh() -> None:
    subprocess.run(["sh", "-n", PROJECT / "tools" / "container.sh"], check=True)
