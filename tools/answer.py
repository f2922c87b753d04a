"""Write the answer in README.md, what folders of results say, between its heading and its figure: `make answer`."""

import re
import sys
import textwrap
from pathlib import Path

from medtransfer.report.sentences import answer, reproduced
from medtransfer.stages.report import read_study

README = Path(__file__).resolve().parent.parent / "README.md"
HEADING, FIGURE = "## The answer so far\n", "!["
WIDTH = 118


def page(readme: str, paragraphs: list[str]) -> str:
    """Return the README with these paragraphs as its answer."""
    before, heading, rest = readme.partition(HEADING)
    _, figure, after = rest.partition(FIGURE)
    if not (heading and figure):
        raise ValueError(f"{README}: no {HEADING!r} or no {FIGURE!r} after it")
    bold = [re.sub(r"^(.*?\?)", r"**\1**", text) for text in paragraphs]
    wrapped = [textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) for text in bold]
    return "".join((before, heading, "\n", "\n\n".join(wrapped), "\n\n", figure, after))


if __name__ == "__main__":
    studies = [read_study(Path(folder)) for folder in sys.argv[1:]]
    README.write_text(page(README.read_text(), answer(studies[0]) + reproduced(studies)))
