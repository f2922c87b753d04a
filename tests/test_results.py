"""The committed results: their tables are those of this code, and the README says what they say."""

import hashlib
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from conftest import ANSWER, AT_64_PX, PROJECT
from medtransfer.analysis.claims import CLAIMS, HOLDS, SMALL
from medtransfer.analysis.differences import Comparison, find_pair, read_comparisons
from medtransfer.analysis.families import LATTICE, RECIPES, SIZES, WEIGHTS, family
from medtransfer.analysis.runs import read_run
from medtransfer.analysis.tables import read_tables
from medtransfer.core.dvc import digest_of
from medtransfer.core.params import Params, read_params
from medtransfer.report.answers import answers, claimed
from medtransfer.report.study import Study
from medtransfer.study.report import write_result_tables


def test_the_committed_results_give_the_verdicts_of_the_readme() -> None:
    """ham10000, then chest_xray."""
    verdicts = (
        answers(Study("committed", [], read_tables(PROJECT / ANSWER, "")))
        .groupby("change", sort=False)
        .verdict.agg(list)
    )
    six, ten, same = "fewer than 6 seeds", "fewer than 10 seeds", "probably little effect"
    last = "train the last block instead of the first"
    assert verdicts.to_dict() == {
        "ImageNet instead of random weights": [ten, six],
        "add HAM10000 to ImageNet": [six],
        last: [six, same],
        "freeze blocks 1 to 4": [six, same],
        "freeze blocks 2 to 4": [six, same],
        "freeze all blocks": ["probably lower", same],
    }
    fits = [read_run(PROJECT / AT_64_PX / f"runs/{name}/imagenet_head-seed0") for name in ("ham10000", "chest_xray")]
    at_64_px = Study("smaller", fits, read_tables(PROJECT / AT_64_PX, ""))
    together = answers(Study("committed", [], read_tables(PROJECT / ANSWER, "")), [at_64_px])
    assert together.verdict["ImageNet instead of random weights"].tolist() == ["higher", "higher"]
    assert together["so far"]["ImageNet instead of random weights"].iloc[0] == "probably higher"
    for change in (last, "freeze blocks 1 to 4", "freeze blocks 2 to 4"):
        assert together.verdict[change].tolist() == ["not shown", same]
        assert together.place[change].tolist() == [", 64 px", ""]


README_ROWS = {
    "ImageNet weights instead of random weights, 224 px": (ANSWER, "imagenet_all", "cnn_random"),
    "ImageNet weights instead of random weights, 64 px": (AT_64_PX, "imagenet_all", "cnn_random"),
    "train the last block instead of the first, 224 px": (ANSWER, "imagenet_last_block", "imagenet_first_block"),
    "train the last block instead of the first, 64 px": (AT_64_PX, "imagenet_last_block", "imagenet_first_block"),
    "freeze blocks 1 to 4, 224 px": (ANSWER, "imagenet_last_block", "imagenet_all"),
    "freeze blocks 1 to 4, 64 px": (AT_64_PX, "imagenet_last_block", "imagenet_all"),
    "modern recipe instead of the talk's, 64 px": (AT_64_PX, "modern_all", "imagenet_all"),
    "modern recipe: ImageNet weights instead of random weights, 64 px": (AT_64_PX, "modern_all", "modern_random"),
    "modern recipe: train the last block instead of the first, 64 px": (
        AT_64_PX,
        "modern_last_block",
        "modern_first_block",
    ),
    "modern recipe: freeze blocks 1 to 4, 64 px": (AT_64_PX, "modern_last_block", "modern_all"),
}


def test_the_readme_says_what_the_committed_results_say() -> None:
    """Each cell of its table is a comparison of the committed runs, and its words follow from these."""
    answered = (PROJECT / "README.md").read_text().partition("## The answer so far")[2].partition("## Start")[0]
    found = {}
    for change, (folder, first, second) in README_ROWS.items():
        pairs, claims = read_comparisons(PROJECT / folder / "differences.csv"), read_tables(PROJECT / folder, "").claims
        found[change] = [find_pair(pairs, dataset, first, second) for dataset in ("ham10000", "chest_xray")]
        cells = [_readme_cell(pair, claims) for pair in found[change]]
        assert f"| {change} | {' | '.join(cells)} |" in answered
    assert answered.count("\n| ") == 1 + len(README_ROWS) + 1
    lesions = {change: pair for change, (pair, _) in found.items() if pair}
    words = " ".join(answered.split())
    for said, value in (
        ("raises macro F1 by {}", lesions["modern recipe instead of the talk's, 64 px"].difference),
        ("lowers macro F1 by about {}", -lesions["modern recipe: freeze blocks 1 to 4, 64 px"].difference),
    ):
        assert said.format(f"{value:.2f}".removeprefix("0")) in words
    claims = read_tables(PROJECT / AT_64_PX, "").claims
    held = claims[claims.verdict == HOLDS].to_dict("records")
    assert [(row["dataset"], row["first"], row["second"]) for row in held] == [
        ("ham10000", "imagenet_all", "cnn_random"),
        ("chest_xray", "imagenet_all", "cnn_random"),
        ("chest_xray", "ham10000_all", "cnn_random"),
    ]
    assert claims.verdict[claims.second == "ham10000_all"].tolist() == [SMALL]


def _readme_cell(pair: Comparison | None, claims: pd.DataFrame) -> str:
    """A claim that was tested has the seeds that the plan names; the pair may have more."""
    if not pair:
        return "not measured"
    tested = claimed(claims[claims.p.notna()], pair)
    value, low, high = tested[1:] if tested else (pair.difference, *pair.ends)
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def test_the_committed_tables_are_what_the_code_gives(tmp_path: Path) -> None:
    """One folder, the smallest; that the others are of this code too, the next test says."""
    source = PROJECT / "results" / "leak-remove"
    shutil.copytree(source / "runs", tmp_path / "runs")
    shutil.copy(source / "params.yaml", tmp_path)
    write_result_tables(tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert set(made) > {"results.csv", "summary.csv", "differences.csv", "claims.csv", "results.md", "scores.png"}
    assert made == {name: (source / name).read_bytes() for name in made}


def test_the_lock_of_the_results_names_the_files_here(tmp_path: Path) -> None:
    """DVC computes the tables anew only where someone asks it; this notices that what they are made of has changed."""
    stages, lock = (
        YAML(typ="safe").load((PROJECT / "results" / name).read_text())["stages"] for name in ("dvc.yaml", "dvc.lock")
    )
    expected = {"leak": stages["leak"]["deps"]}
    for study in stages["tables"]["matrix"]["study"]:
        expected[f"tables@{study}"] = [path.replace("${item.study}", study) for path in stages["tables"]["deps"]]
    assert {name: [entry["path"] for entry in stage["deps"]] for name, stage in lock.items()} == expected
    for stage in lock.values():
        for entry in (*stage["deps"], *stage["outs"]):
            assert dvc_hash(PROJECT / entry["path"], tmp_path) == entry["md5"], (
                f"{entry['path']}: run `dvc repro results/dvc.yaml`"
            )


def dvc_hash(path: Path, scratch: Path) -> str:
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    copy = scratch / path.relative_to(PROJECT)
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    return digest_of(copy)


def test_every_further_configuration_can_stand_beside_the_committed_ones() -> None:
    ours = read_params(PROJECT / AT_64_PX / "params.yaml")
    more = read_params(PROJECT / "results" / "params-extra.yaml")
    assert (more.train, more.datasets) == (ours.train, ours.datasets)
    assert set(more.seeds) <= set(ours.seeds)
    for name in set(more.configurations) & set(ours.configurations):  # collected by now
        assert more.configurations[name] == ours.configurations[name], name
    records = {
        name: {"kind": "network", "hyperparameters": {"configuration": found.model_dump(exclude_none=True)}}
        for name, found in more.configurations.items()
    }
    assert Counter(map(family, records.values())) == {RECIPES: 11, SIZES: 8, LATTICE: 27, WEIGHTS: 1}
    assert set(more.study["ham10000"].train) == set(more.configurations)
    # As results/README.md says: the rates of the whole network, of the last block for up to two blocks, for the head
    # its own, and for SGD the one that collapsed.
    tuning = pd.read_csv(PROJECT / AT_64_PX / "tuning.csv").query("fraction == 1")
    best = tuning.loc[tuning.groupby(["configuration", "dataset"]).val_loss.idxmin()]
    for name, found in more.configurations.items():
        whole = "imagenet_all" if found.weights == "imagenet" else "cnn_random"
        few_blocks = "last_block" in name or re.fullmatch(r"blocks_\d\d?", name)
        rates = ours.configurations["imagenet_last_block" if few_blocks else whole].learning_rate
        own = best[best.configuration == name]
        expected = dict(zip(own.dataset, own.learning_rate, strict=True)) if len(own) else rates
        assert found.learning_rate == (expected if found.optimizer is None else 1e-4), name


def test_make_report_lets_the_answering_folder_answer(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    for file in ("Makefile", "pyproject.toml", "requirements/lock.txt"):
        shutil.copy(PROJECT / file, tmp_path / file)
    for folder in (ANSWER, "results/leak-match", AT_64_PX):
        (tmp_path / folder / "runs").mkdir(parents=True)
    printed = subprocess.run(["make", "--dry-run", "report"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"medtransfer report {ANSWER} results/leak-match {AT_64_PX}\n" in printed.stdout


def test_every_claim_is_about_models_of_the_study(params: Params) -> None:
    known = {
        (dataset, model)
        for dataset, study in params.study.items()
        for model in (*params.baselines, *study.train, *study.transfer)
    }
    assert {(claim.dataset, model) for claim in CLAIMS for model in (claim.first, claim.second)} <= known
