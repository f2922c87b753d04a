"""Write the answer in README.md: what the committed results say, between its heading and its figure."""

import textwrap
from pathlib import Path

from medtransfer.report.sentences import answer, more
from medtransfer.stages.report import read_study

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
STUDY = ROOT / "results" / "real-64px-by-group"
HEADING, FIGURE = "## The answer so far\n", "!["
WIDTH = 118


def page(readme: str, paragraphs: list[str]) -> str:
    """Return the README with these paragraphs as its answer."""
    before, heading, rest = readme.partition(HEADING)
    _, figure, after = rest.partition(FIGURE)
    if not (heading and figure):
        raise ValueError(f"{README}: no {HEADING!r} or no {FIGURE!r} after it")
    wrapped = [textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) for text in paragraphs]
    return "".join((before, heading, "\n", "\n\n".join(wrapped), "\n\n", figure, after))


if __name__ == "__main__":
    study = read_study(STUDY)
    README.write_text(page(README.read_text(), [*answer(study), *more(study)]))
