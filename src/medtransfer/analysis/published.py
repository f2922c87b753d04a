"""The talk's two result tables.

Dhruvin Patel: Transfer Learning in CNNs With Medical Images, University of Mississippi, 2019.
"""

from pathlib import Path

import pandas as pd


def published_f1() -> pd.DataFrame:
    """Return the published values: columns dataset, model, class, published."""
    return pd.read_csv(Path(__file__).with_name("published_f1.csv")).rename(columns={"f1": "published"})


def is_the_talks(dataset: str) -> bool:
    """Return whether the talk studied a data set."""
    return dataset in set(published_f1().dataset)
