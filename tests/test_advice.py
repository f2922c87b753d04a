"""Every command that a message of src/ prints exists; a command that restores a state does so when run as printed."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from dvc.cli.parser import get_main_parser
from ruamel.yaml import YAML

from clones import dvc, run
from conftest import PROJECT, use_store
from medtransfer.audit import audit
from medtransfer.cli import cli
from medtransfer.core.dvc import RWLOCK, check_unchanged, warn_of_another_version
from medtransfer.core.errors import UserError
from medtransfer.study.check import check_dvc_files

# What stands in a command for a value that is known only when the message is printed; 1 for all others.
FILLED = {
    "command": "layers", "extra": "gpu", "folder": "src", "quoted(folder)": "src", "store": "", "FILE": "params.yaml",
    "FOLDER": "src",
}  # fmt: skip


def texts(node: ast.AST) -> list[str]:
    """Return the texts that a string of the source can become, each branch of a conditional one with its own."""
    match node:
        case ast.Constant(value=str(text)):
            return [text.replace("%s", "1")]
        case ast.JoinedStr(values=parts):
            return ["".join(chosen) for chosen in product(*map(texts, parts))]
        case ast.FormattedValue(value=value):
            return texts(value)
        case ast.IfExp(body=body, orelse=orelse):
            return [*texts(body), *texts(orelse)]
        case _:
            return [FILLED.get(ast.unparse(node), "1")]


def printed_commands() -> Iterator[str]:
    """Yield every command between backticks in a string of src/ that is not a docstring."""
    for path in sorted((PROJECT / "src").rglob("*.py")):
        tree = ast.parse(path.read_text())
        skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        skipped |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in skipped:
                for text in texts(node):
                    yield from re.findall("`([^`]+)`", text)
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mlflow_command"):
                yield from (f"mlflow {text}" for text in texts(node.args[0]))


def check_click(command: click.Command, words: list[str]) -> None:
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)  # FILE and FOLDER exist there
        with suppress(click.exceptions.Exit):  # --help
            command.make_context(command.name, [FILLED.get(word, word) for word in words])


def check_mlflow(words: list[str]) -> None:
    from mlflow.cli import cli as mlflow

    check_click(mlflow, words)


def check_ray(words: list[str]) -> None:
    from ray.scripts.scripts import cli as ray

    check_click(ray, words)


def check_dvc(words: list[str]) -> None:
    parsed = get_main_parser().parse_args(words)
    if parsed.cmd == "repro":
        stages = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"]
        assert {name.partition("@")[0] for name in parsed.targets} <= stages.keys()


def check_git(words: list[str]) -> None:
    shown = subprocess.run(["git", words[0], "-h"], capture_output=True, text=True)
    assert f"usage: git {words[0]}" in shown.stdout + shown.stderr
    assert all(option in shown.stdout + shown.stderr for option in words if option.startswith("-"))


def check_make(words: list[str]) -> None:
    (target,) = words
    assert re.search(rf"^{target}:", (PROJECT / "Makefile").read_text(), re.MULTILINE)


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\.\[(\w+)\]", words[-1])) <= extras.keys()


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "medtransfer": lambda words: check_click(cli, words),
    "dvc": check_dvc, "git": check_git, "make": check_make, "mlflow": check_mlflow, "pip": check_pip, "ray": check_ray,
}  # fmt: skip
PRINTED = sorted(
    {part for line in printed_commands() for part in line.split(" && ") if part.partition(" ")[0] in PROGRAMS}
)


def test_commands_of_every_program_are_found() -> None:
    assert {line.partition(" ")[0] for line in PRINTED} == PROGRAMS.keys()


@pytest.mark.parametrize("line", PRINTED)
def test_a_command_that_a_message_prints_exists(line: str) -> None:
    program, *words = shlex.split(line)
    PROGRAMS[program](words)


# --- run as printed

OUTPUT = Path("artifacts/prepared/ham10000")
STAGE = {"cmd": f"mkdir -p {OUTPUT} && echo pixels > {OUTPUT}/images.npy", "outs": [str(OUTPUT)]}


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed project with data, and one stage that has run."""
    folder = tmp_path_factory.mktemp("committed")
    (folder / ".dvc/embedded").mkdir(parents=True)
    for name in ("config", ".gitignore"):
        shutil.copy(PROJECT / ".dvc" / name, folder / ".dvc")
    shutil.copy(PROJECT / ".dvcignore", folder)
    (folder / ".gitignore").write_text("/data\n/artifacts\n")
    YAML().dump({"stages": {"prepare": STAGE}}, folder / "dvc.yaml")
    write_data(folder, "whole")
    git(folder, "init", "--quiet")
    dvc(folder, "add", "--quiet", "data")
    dvc(folder, "repro", "--quiet")
    commit(folder)
    return folder


@pytest.fixture
def project(committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that project, which is the working directory."""
    folder = Path(shutil.copytree(committed, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(folder)
    return folder


def write_data(folder: Path, text: str) -> None:
    path = folder / "data/ham10000/a.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)


def git(folder: Path, *arguments: str, code: int = 0) -> None:
    run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments, code=code)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a")


def refusal(check: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        check()
    return str(refused.value)


def run_as_printed(message: str, leave_out: str = "nothing") -> None:
    """Run the commands that a message prints, one after the other, in an environment that sets nothing."""
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": os.environ["HOME"]}
    commands = re.findall(r"`([^`]+)`|\((rm [^)]+)\)|(remove .+) and run", message)
    assert commands
    for command in ("".join(found) for found in commands):
        if leave_out not in command:
            command = re.sub("^remove ", "rm -r ", command)
            subprocess.run(command, shell=True, check=True, env=environment, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("cached", [True, False], ids=["the cache is whole", "the cache is damaged too"])
def test_a_damaged_output_is_restored(project: Path, cached: bool) -> None:
    for path in (OUTPUT / "images.npy", *([] if cached else Path(".dvc/cache/files/md5").glob("*/*"))):
        if path.read_text() == "pixels\n":
            path.chmod(0o644)
            path.write_text("damage\n")
    run_as_printed(refusal(lambda: check_unchanged(OUTPUT)))
    assert (OUTPUT / "images.npy").read_text() == "pixels\n"
    check_unchanged(OUTPUT)


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "damaged"])
def test_data_that_the_audit_finds_changed_are_restored(
    project: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    use_store(project, empty_store, monkeypatch)
    if lost:
        shutil.rmtree("data")
    else:
        write_data(project, "damaged")
    (line,) = (line for line in audit.audit() if "data" in line)
    run_as_printed(line, leave_out="dvc add")
    assert Path("data/ham10000/a.txt").read_text() == "whole"
    assert audit.audit() == []


def test_damaged_data_that_dvc_recorded_are_restored(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_data(project, "damaged")
    dvc(project, "commit", "--quiet", "--force", "data.dvc")  # as `dvc repro` does before it runs prepare
    warn_of_another_version()
    (warning,) = caplog.messages
    run_as_printed(warning, leave_out="git commit")
    assert Path("data/ham10000/a.txt").read_text() == "whole"
    caplog.clear()
    warn_of_another_version()
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["dvc.lock", "data.dvc", str(RWLOCK)])
def test_a_truncated_file_of_dvc_is_restored(project: Path, name: str) -> None:
    whole = Path(name).read_text()
    Path(name).write_text("{")
    run_as_printed(refusal(check_dvc_files))
    check_dvc_files()
    assert not Path(name).exists() if name == str(RWLOCK) else Path(name).read_text() == whole


def test_new_files_in_data_are_not_lost_with_the_change_that_is_undone(project: Path) -> None:
    write_data(project, "damaged")
    Path("data/mine.csv").touch()
    message = refusal(lambda: check_unchanged(Path("data")))
    assert "to undo it, move data/mine.csv away, which DVC would delete, and run `dvc checkout" in message
    Path("data/mine.csv").rename("mine.csv")
    run_as_printed(message, leave_out="dvc add")
    check_unchanged(Path("data"))


def test_the_files_that_a_copy_lacks_are_restored(project: Path) -> None:
    shutil.rmtree(".dvc")
    Path(".dvcignore").write_text("# as `dvc init` writes it\n")
    message = refusal(check_dvc_files)
    assert "lacks the project's .dvc/config, .dvcignore (" in message
    run_as_printed(message)
    check_dvc_files()


@pytest.mark.parametrize("with_git", [True, False])
@pytest.mark.parametrize("command", ["study", "check", "data demo", "data add x --images data", "data remove x"])
def test_a_copy_without_hidden_files_is_refused_and_stays_as_it_is(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, with_git: bool
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    run(project, "sh", "-c", f"cp -r * {copy}")
    shutil.copy(PROJECT / "params.yaml", copy)
    monkeypatch.chdir(copy)
    if with_git:
        git(copy, "init", "--quiet")
    before = sorted(copy.rglob("*"))
    refused = CliRunner().invoke(cli, command.split())
    told = re.match(rf"{copy}: lacks the project's (.+) \(.*copy them again from where", str(refused.exception))
    assert told
    missing = {".dvc/config", ".dvcignore", *([".dvc/embedded/data.dvc"] if "demo" in command else [])}
    assert set(told[1].split(", ")) == missing | (set() if with_git else {".git"})
    assert sorted(copy.rglob("*")) == before


def test_a_merge_conflict_in_data_is_resolved(project: Path) -> None:
    for side in ("theirs", "ours"):
        git(project, "checkout", "--quiet", *(["-b", side] if side == "theirs" else ["-"]))
        write_data(project, side)
        dvc(project, "add", "--quiet", "data")
        commit(project)
    git(project, "merge", "--quiet", "theirs", code=1)
    run_as_printed(refusal(check_dvc_files), leave_out="--ours")
    assert Path("data/ham10000/a.txt").read_text() == "theirs"
    check_dvc_files()


def test_a_merge_conflict_in_the_lock_is_resolved(project: Path) -> None:
    whole = Path("dvc.lock").read_text()
    for side in ("theirs", "ours"):
        git(project, "checkout", "--quiet", *(["-b", side] if side == "theirs" else ["-"]))
        Path("dvc.lock").write_text(whole.replace("echo pixels", f"echo {side}"))
        commit(project)
    git(project, "merge", "--quiet", "theirs", code=1)
    run_as_printed(refusal(check_dvc_files), leave_out="--theirs")
    assert Path("dvc.lock").read_text() == whole


def test_a_project_without_git_is_put_under_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("home").mkdir()
    Path("home/.gitconfig").write_text("[user]\nname = a\nemail = a@example.org\n")
    monkeypatch.setenv("HOME", str(Path("home").resolve()))
    shutil.rmtree(".git")
    run_as_printed(refusal(check_dvc_files))
    check_dvc_files()
