"""How well the methods of measuring which layers matter agree."""

from dataclasses import dataclass

import pandas as pd

WAYS = {
    "trained": "macro F1 added by training it (Shapley value)",
    "rewinding": "macro F1 lost when it is reset to its initial weights",
    "outputs": "outputs changed, 1 - CKA",
    "weights": "relative change in weights",
    "probes": "rise through training in the macro F1 of a linear classifier on its output",
}


@dataclass(frozen=True)
class Agreement:
    """How much each block matters, measured by several methods.

    blocks : DataFrame
        One row per block, one column per method (WAYS; `trained` only if all subsets of the blocks were trained). The
        larger the value, the more the block matters.
    concordance : float
        Kendall's W of the methods' rankings of the blocks: 1 if they are the same, 0 if they do not agree at all.
    """

    blocks: pd.DataFrame
    concordance: float


def agree(
    rewinding: pd.DataFrame, similarity: pd.DataFrame, probes: pd.DataFrame, values: pd.Series | None = None
) -> Agreement:
    """Combine the three tables that `medtransfer layers` wrote for one network, and the Shapley values of the blocks.

    A block's similarity and distance are the means of its layers'. Outputs and probes also
    reflect the changes of earlier blocks; rewinding and weights measure the block alone.

    Kendall's W comes from Friedman's test (Kendall and Babington Smith, Ann. Math. Stat. 10, 275, 1939), whose p-value
    is left out: several measurements of one network are not independent.
    """
    from scipy.stats import friedmanchisquare

    scores = rewinding.set_index("block").macro_f1
    layers = similarity.groupby("block", sort=False)
    probed = probes.pivot(index="block", columns="network", values="macro_f1")
    blocks = pd.DataFrame(
        {
            "rewinding": scores["none"] - scores.drop("none"),
            "outputs": 1 - layers.cka.mean(),
            "weights": layers.distance.mean(),
            "probes": probed.tuned - probed.start,
        }
    )
    if values is not None:
        blocks.insert(0, "trained", values)
    test = friedmanchisquare(*blocks.to_numpy())
    return Agreement(blocks, float(test.statistic / (len(blocks.columns) * (len(blocks) - 1))))
