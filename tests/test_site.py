"""The docs as a site: every link leads somewhere, nothing comes from elsewhere, and the commands' page is current."""

import os
import re
import subprocess
import sys
from pathlib import Path

import commands
from conftest import PROJECT

LOADED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)="(?:https?:)?//[^"]*"')


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=PROJECT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    sources = [PROJECT / "README.md", PROJECT / "benchmarks" / "README.md", *(PROJECT / "docs").rglob("*.md")]
    assert len(pages) > len(sources)
    for page in pages:
        assert not LOADED.findall(page.read_text()), page


def test_every_page_is_in_the_navigation() -> None:
    navigation = (PROJECT / "mkdocs.yml").read_text()
    for page in (PROJECT / "docs").rglob("*.md"):
        assert f" docs/{page.relative_to(PROJECT / 'docs')}\n" in navigation


def test_the_page_of_commands_is_current() -> None:
    assert commands.PAGE.read_text() == commands.page(), "run tools/commands.py"
