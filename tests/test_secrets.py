"""No key and no password is in the repository, and the files that hold them stay out of it and of the image."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import PROJECT

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
# What stands for a password where one is explained or tested.
PLACEHOLDERS = {
    "SECRET", "a long password", "any secret", "any long random text", "correct horse battery",
    "of no use through a socket",
    "password", "...",
}  # fmt: skip
# A value that is made or asked for when it is needed: f"{...}", ${...}, %s.
FILLED_IN = re.compile(r"[{}$%<>]|^\.\.\.$")
SECRET_FILES = (".env", ".dvc/config.local")


def secrets_in(text: str) -> list[str]:
    """Return what looks like a secret, with the kind of it."""
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
    """The files that git knows."""
    if not shutil.which("git"):
        pytest.skip("there is no git")
    listed = git("ls-files", "-z")
    if listed.returncode:
        pytest.skip(f"no git repository: {listed.stderr.strip()}")
    return [PROJECT / name for name in listed.stdout.split("\0") if name]


def test_no_tracked_file_holds_a_key_or_a_password(tracked: list[Path]) -> None:
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


def test_the_files_that_hold_passwords_are_ignored(tracked: list[Path]) -> None:
    left_out = (PROJECT / ".dockerignore").read_text().split()
    for name in SECRET_FILES:
        assert git("check-ignore", "--quiet", name).returncode == 0, f"git would add {name}"
        assert name in left_out, f"the image would hold {name}"
        assert PROJECT / name not in tracked
