"""A model card beside each model: what it is for, what it saw, how well it does, and what it must not be used for.

Mitchell et al.: Model cards for model reporting, FAT* 2019.
"""

from typing import Any

import jinja2

from medtransfer.core.run_record import split_of


def model_card(
    record: dict[str, Any], hyperparameters: dict[str, Any], metrics: dict[str, float], data: dict[str, Any]
) -> str:
    """Return the card as Markdown.

    Parameters
    ----------
    record : dict
        The contents of run.json.
    metrics : dict
        The contents of metrics.json: scores on the test images.
    data : dict
        The contents of dataset.json.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medtransfer.report"), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,  # noqa: S701 - Markdown
    )  # fmt: skip
    return environment.get_template("card.md.j2").render(
        record=record, split=split_of(record), hyperparameters=hyperparameters, metrics=metrics, data=data
    )
