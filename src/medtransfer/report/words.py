"""The words for a data set."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Words(NamedTuple):
    """What to call a data set in a table and in a sentence, and what to call its groups."""

    title: str
    subject: str
    groups: str


KNOWN = {
    "ham10000": Words("skin lesions", "skin lesions (HAM10000)", "lesions"),
    "chest_xray": Words("chest X-rays", "chest X-rays", "patients"),
}


MISTUNED = "learning rate mis-tuned: predicts only {}; to be refitted"


def words_for(dataset: str, custom: Mapping[str, Mapping[str, Any]] | None = None) -> Words:
    """Return the words for a data set; `custom` describes custom data sets, by name, as in params.yaml."""
    if dataset in KNOWN:
        return KNOWN[dataset]
    entry = (custom or {}).get(dataset, {"title": dataset, "group": "group"})
    return Words(dataset, entry["title"], f"{entry['group']}s")
