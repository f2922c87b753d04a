"""The repository contains no key or password, and files with passwords stay out of it and of the image."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from clones import dvc
from conftest import PROJECT
from medtransfer.core.provenance import git_commit

PATTERNS = {
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "token": r"\b(?:gh[pousr]_\w{36}|github_pat_\w{22,}|glpat-[\w-]{20}|hf_[A-Za-z]{30,}|xox[abpr]-[\w-]{10,}"
    r"|sk-[A-Za-z0-9]{20,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})",
    # Not /etc/passwd, which the attacks ask for.
    "password": r"(?i)(?<!etc/)(?<!etc%2f)(?:password|passwd|secret|secret_key|token|api_?key)"
    r"['\"]?\s*[=:,]\s*['\"]([^'\"\n]{4,})['\"]",
    "variable": r"(?m)^\s*(?:export\s+)?[A-Z_]*(?:PASSWORD|SECRET|SECRET_KEY|TOKEN)[A-Z_]*=([^\s'\"$][^\s'\"]{3,})",
    "address": r"\w://[^\s/:@'\"]+:([^\s/@'\"]{3,})@",
}
# Placeholders for passwords in explanations and tests.
PLACEHOLDERS = {
    "SECRET", "a long password", "any secret", "any long random text", "correct horse battery",
    "of no use through a socket",
    "password", "...",
}  # fmt: skip
# A value that is computed when it is needed: f"{...}", ${...}, %s.
FILLED_IN = re.compile(r"[{}$%<>]|^\.\.\.$")
SECRET_FILES = (".env", ".dvc/config.local")
CACHES = (".grimp_cache", ".hypothesis", ".import_linter_cache", ".mypy_cache", ".pytest_cache", ".ruff_cache")


def secrets_in(text: str) -> list[str]:
    """Return what looks like a secret, with its kind."""
    found = []
    for kind, pattern in PATTERNS.items():
        for match in re.finditer(pattern, text):
            value = match.group(match.lastindex or 0)
            if value not in PLACEHOLDERS and not FILLED_IN.search(value):
                found.append(f"{kind}: {value}")
    return found


def git(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """The files that git tracks."""
    if not shutil.which("git"):
        pytest.skip("there is no git")
    listed = git("ls-files", "-z")
    if listed.returncode:
        pytest.skip(f"no git repository: {listed.stderr.strip()}")
    return [PROJECT / name for name in listed.stdout.split("\0") if name]


def test_no_tracked_file_contains_a_key_or_a_password(tracked: list[Path]) -> None:
    found = {}
    for path in tracked:
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content and (secrets := secrets_in(content.decode(errors="replace"))):
            found[str(path.relative_to(PROJECT))] = secrets
    assert found == {}


# In pieces, or this file would be found.
@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "aws_access_key_id = AKIA" + "ABCDEFGHIJKLMNOP",
        "ghp" + "_" + "a1" * 18,
        "hf" + "_" + "abcdefghij" * 3,
        "password" + ' = "hunter22"',
        '{"api_key"' + ': "0123456789"}',
        'setenv("MLFLOW_TRACKING_PASSWORD"' + ', "hunter22")',
        "export POSTGRES_" + "PASSWORD=hunter22",
        "postgresql://mlflow:" + "hunter22@db/mlflow",
    ],
)
def test_a_planted_secret_is_found(text: str) -> None:
    assert len(secrets_in(f"a line\n{text}\n")) >= 1


def test_the_files_with_passwords_are_ignored(tracked: list[Path]) -> None:
    for name in SECRET_FILES:
        assert git("check-ignore", "--quiet", name).returncode == 0, f"git would add {name}"
        assert name in left_out_of_the_image(), f"the image would hold {name}"
        assert PROJECT / name not in tracked


def left_out_of_the_image() -> list[str]:
    lines = (PROJECT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_image_contains_nothing_that_git_ignores_and_no_cache_of_a_tool() -> None:
    lines = [line for line in (PROJECT / ".gitignore").read_text().split("\n") if line and line[0] not in "#!"]
    left_out = [name.removeprefix("**/") for name in left_out_of_the_image()]
    assert {line.strip("/") for line in lines} | set(CACHES) <= set(left_out)


@pytest.mark.usefixtures("tracked")
def test_the_password_of_a_clone_stays_out_of_the_image_and_git_knows_the_commit_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = "of-a-" + "clone-by-https"  # in two parts: this file is in the clone
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", PROJECT, tmp_path / "clone"], check=True)
    monkeypatch.chdir(tmp_path / "clone")
    commit = git_commit()
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    address = f"https://user:{planted}@127.0.0.1:9/medtransfer.git"  # the discard port: nothing listens
    subprocess.run(["git", "remote", "set-url", "origin", address], check=True)
    subprocess.run(["git", "fetch", "--quiet", address], capture_output=True)
    Path(".git/logs/HEAD").write_text(f"clone: from {address}\n")  # as older versions of git wrote it
    assert [path for path in Path(".git").rglob("*") if path.is_file() and planted.encode() in path.read_bytes()]
    for name in left_out_of_the_image():
        for path in Path().glob(name):
            (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    assert not [path for path in Path().rglob("*") if path.is_file() and planted.encode() in path.read_bytes()]
    assert git_commit() == commit
    Path("params.yaml").write_text("")
    assert git_commit() == f"{commit}-modified"
    assert dvc(Path(), "status", "--json", "data.dvc").startswith("{")
