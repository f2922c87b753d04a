"""The report's page: its verdicts follow the numbers, it contains everything it shows, and it reads on any screen."""

import dataclasses
import html
import itertools
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from conftest import PROJECT
from medtransfer.analysis.differences import find_pair
from medtransfer.analysis.families import LATTICE
from medtransfer.analysis.runs import Run
from medtransfer.core.params import BLOCKS
from medtransfer.core.run_record import LEAKAGE_WORDS, SplitRule
from medtransfer.metrics.scores import MACRO, MICRO
from medtransfer.report import figures
from medtransfer.report.answers import IMPORTANT, LAYERS, MODERN, answers, front, interim, settled
from medtransfer.report.drawings import FIGURES
from medtransfer.report.page import CHAPTERS, SPLITS, build_page
from medtransfer.report.study import Study, values_of
from medtransfer.report.tables import beyond_the_talk, difference
from studies import evaluate_study, found_layers, run, runs, with_seeds


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few pixels: nobody looks at them."""
    monkeypatch.setattr(figures, "DPI", 10)


@pytest.mark.parametrize(
    ("random", "imagenet", "seeds", "verdict"),
    [
        (0.6, 0.95, 6, "higher"),
        (0.95, 0.6, 6, "lower"),
        (0.8, 0.8, 6, "not shown"),
        (0.6, 0.95, 5, "fewer than 6 seeds"),
    ],
)
def test_a_verdict_follows_the_numbers_and_needs_six_seeds(
    random: float, imagenet: float, seeds: int, verdict: str
) -> None:
    study = evaluate_study("s", with_seeds(runs(random, imagenet), seeds))
    (answer,) = answers(study).to_dict("records")
    assert answer["verdict"] == verdict
    assert answer["seeds"] == (seeds, seeds)
    page = build_page([study])
    assert f"<strong>{verdict}</strong>" in page
    shown = {"not shown": "no clear effect", "fewer than 6 seeds": "probably higher"}.get(verdict, verdict)
    assert str(front([study], answers(study)).iloc[1, 0]).startswith(f"**{shown}**\n")


def test_claims_that_the_first_study_cannot_judge_have_the_verdicts_of_another() -> None:
    few, many = evaluate_study("few", with_seeds(runs(0.6, 0.95), 3)), evaluate_study("many", with_seeds(runs(), 6))
    assert interim(few, []).empty
    assert interim(many, [few]).empty
    (claim,) = interim(few, [few, many]).to_dict("records")
    assert (claim["study"], claim["verdict"], claim["first_seeds"]) == ("many", "holds", 6)
    assert "only from the runs at" in build_page([few, many])
    tables = few.tables
    untested = dataclasses.replace(tables, claims=tables.claims.assign(verdict="not tested: split by image"))
    assert interim(dataclasses.replace(few, tables=untested), [many]).empty


def test_claims_are_one_family_only_if_one_study_judges_them() -> None:
    def study(name: str, *p_values: float) -> Study:
        models = ["imagenet_all", "cnn_random", "random_forest", "ham10000_all"]
        made = evaluate_study(name, with_seeds([run("chest_xray", model, 0.9) for model in models]))
        given = pd.Series([*p_values, *[np.nan] * 4][:4])
        verdicts = given.lt(0.01).map({True: "holds", False: "fewer than 6 seeds"})
        claims = made.tables.claims.assign(p=given, p_corrected=given, verdict=verdicts)
        return dataclasses.replace(made, tables=dataclasses.replace(made.tables, claims=claims))

    p = 0.006  # below .05, but not below .05/9
    assert settled(study("both", p, p), []).verdict[:2].tolist() == ["holds", "holds"]
    assert settled(study("none"), [study("both", p, p)]).verdict[:2].tolist() == ["holds", "holds"]
    mixed = settled(study("one", p), [study("both", p, p)])
    assert mixed.verdict[:2].tolist() == ["not shown", "not shown"]
    assert mixed.p_corrected[:2].tolist() == [9 * p, 9 * p]


def test_two_studies_of_one_size_are_both_in_the_table_of_all() -> None:
    first, second = evaluate_study("first", runs(0.6)), evaluate_study("second", runs(0.8))
    page = build_page([first, second])
    assert all(f"32 px, split by group ({name})" in page for name in ("first", "second"))


def test_data_sets_that_are_split_differently_are_described_one_by_one() -> None:
    given = run("ham10000", "imagenet_all", 0.9)
    given = dataclasses.replace(given, record={**given.record, "split_by": "given"})
    page = build_page([evaluate_study("s", [*runs(), given])])
    text = "chest X-rays: 32 px, split by group; skin lesions: 32 px, split by the data set's publishers"
    assert text in html.unescape(page)


def test_what_a_data_set_does_not_answer_is_not_measured() -> None:
    head = run("ham10000", "imagenet_head", 0.8, trainable="head")
    study = evaluate_study("s", [*runs(), head, run("ham10000", "imagenet_all", 0.9)])
    table = front([study], answers(study))
    shown = table.loc["freeze all blocks"].to_dict()
    assert shown["chest X-rays"] == "not measured"
    assert shown["skin lesions"].startswith("**estimate only**")
    assert shown["skin lesions"].endswith(", 1 run")


def test_what_the_talk_does_not_claim_is_not_tested() -> None:
    fits = [run("chest_xray", "imagenet_all", 0.9), run("chest_xray", "imagenet_head", 0.6, trainable="head")]
    (answer,) = answers(evaluate_study("s", with_seeds(fits))).to_dict("records")
    assert answer["verdict"] == "probably lower"
    (answer,) = answers(evaluate_study("s", fits)).to_dict("records")
    assert answer["verdict"] == "estimate only"  # one run of each says nothing of the variation between runs


def test_a_network_that_predicts_only_one_class_carries_a_warning() -> None:
    fits = [run("chest_xray", "imagenet_all", 0.9), run("chest_xray", "imagenet_head", 0.6, trainable="head")]
    for fit in fits[1:]:
        fit.predictions[["p_NORMAL", "p_PNEUMONIA"]] = [0.1, 0.9]
    study = evaluate_study("s", fits)
    (answer,) = answers(study).to_dict("records")
    assert answer["verdict"].startswith("imagenet_head: learning rate mis-tuned: predicts only PNEUMONIA")
    page = build_page([study])
    assert page.count("predicts only PNEUMONIA") >= 2  # in the answers and the table of F1


def test_the_modern_recipe_has_a_row_for_each_change_that_was_measured_with_it() -> None:
    fits = [
        run("chest_xray", "imagenet_all", 0.9),
        run("chest_xray", "imagenet_last_block", 0.8, trainable=["block5"]),
        run("chest_xray", "modern_all", 0.95, recipe="modern"),
        run("chest_xray", "modern_last_block", 0.7, recipe="modern", trainable=["block5"]),
    ]
    study = evaluate_study("s", fits)
    found = answers(evaluate_study("first", runs()), [study])
    rows = found[found.question == MODERN]
    expected = {
        "modern recipe instead of the talk's": ("modern_all", "imagenet_all"),
        "modern recipe: freeze blocks 1 to 4": ("modern_last_block", "modern_all"),
    }
    assert list(rows.index) == list(expected)
    for row, models in zip(rows.to_dict("records"), expected.values(), strict=True):
        pair = find_pair(study.tables.pairs, "chest_xray", *models)
        assert pair
        assert (row["verdict"], row["macro F1"], row["place"]) == ("estimate only", difference(pair), ", 32 px")
    assert ", 32 px" not in answers(study).to_string()
    assert list(front([study], found).index[-2:]) == ["modern recipe instead of the talk's", "freeze blocks 1 to 4"]


def test_the_most_important_block_is_that_of_most_methods() -> None:
    fits = runs(0.6, 0.95)
    for rising, methods in ((True, 4), (False, 3)):
        study = dataclasses.replace(evaluate_study("s", fits), layers=[found_layers(rising=rising)])
        table = front([study], answers(study))
        cell = table.loc[IMPORTANT, "chest X-rays"]
        assert cell == f"**block5 (the last)**\n{methods} of 4 methods, one network"
        assert (table.loc[LAYERS] == "").all()
        assert list(table.index)[2:4] == [LAYERS, IMPORTANT]
    sized = [dataclasses.replace(fit, record={**fit.record, "image_size": 64}) for fit in fits]
    larger = dataclasses.replace(study, runs=sized)
    table = front([larger, evaluate_study("all", lattice(32))], answers(larger))
    assert str(table.loc[IMPORTANT, "chest X-rays"]).endswith(" of 5 methods, 32 and 64 px")


def lattice(count: int) -> list[Run]:
    """Networks that train the last `count` of the 32 subsets of the blocks."""
    subsets = [list(blocks) for size in range(6) for blocks in itertools.combinations(BLOCKS, size)]
    return [
        run("chest_xray", f"s{number:02}", 0.6 + 0.05 * len(blocks), trainable=blocks or "head")
        for number, blocks in list(enumerate(subsets))[-count:]
    ]


def test_estimates_of_what_a_block_adds_are_beside_the_exact_values_of_another_study() -> None:
    studies = [evaluate_study(name, lattice(count)) for name, count in (("some", 31), ("all", 32))]
    page = build_page([*studies, evaluate_study("few", runs())])
    captions = re.findall(r"Chest X-rays. (\d+) of 32 subsets. .*?\((\w+)\)</a></figcaption>", page)
    assert captions == [("31", "some"), ("32", "all")]
    assert page.count('<td data-label="subsets">31 of 32<') == 5
    assert page.count('<td data-label="subsets">32 of 32<') == 15  # with the pairs


def test_the_values_of_the_complete_lattice_replace_its_table_of_pairs() -> None:
    for count, shown in ((31, True), (32, False)):
        sections = dict(beyond_the_talk(evaluate_study("s", lattice(count)), "chest_xray"))
        assert (LATTICE in sections) == shown


def test_only_the_complete_lattice_names_the_most_important_block() -> None:
    for count, named in ((31, False), (32, True)):
        study = evaluate_study("s", [*runs(), *lattice(count)])
        assert len(values_of(study, "chest_xray"))
        assert (IMPORTANT in front([study], answers(study)).index) == named


def test_a_data_set_is_described_as_in_the_first_folder() -> None:
    fits = [run("mine", "cnn_random", 0.7), run("mine", "imagenet_all", 0.9)]
    entry = {"meanings": {}, "group": "patient", "licence": "CC0", "citation": "us"}
    studies = [
        dataclasses.replace(evaluate_study(name, fits), custom={"mine": {**entry, "title": f"scans of {name}"}})
        for name in ("A", "B")
    ]
    page = build_page(studies)
    assert "scans of A" in page
    assert "scans of B" not in page


def test_seconds_that_the_notes_mention_are_not_compared() -> None:
    study = evaluate_study("s", runs())
    assert "Macro F1 against training time" in build_page([study])
    noted = dataclasses.replace(study, notes=["Seconds cannot be compared."])
    assert "Macro F1 against training time" not in build_page([noted])


def test_what_only_a_larger_study_can_answer_is_drawn() -> None:
    fits = [
        run("chest_xray", "imagenet_all", 0.9),
        run("chest_xray", "imagenet_last_block", 0.9, trainable=["block5"]),
        run("chest_xray", "imagenet_head", 0.8, trainable="head"),
        run("chest_xray", "imagenet_all_caffe", 0.9, scaling="caffe"),
        run("chest_xray", "imagenet_all_10", 0.7, fraction=0.1),
    ]
    small = build_page([evaluate_study("s", fits)])
    assert "How many blocks to train" in small
    assert "Transfer and the size of the training set" not in small
    assert "scaling: caffe" in small
    large = build_page([evaluate_study("s", [*fits, run("chest_xray", "imagenet_all_5", 0.6, fraction=0.05)])])
    assert "Transfer and the size of the training set" in large
    assert "<figcaption></figcaption>" not in large
    assert "<caption><span></span></caption>" not in large


def test_the_page_says_what_else_a_reader_has_to_know() -> None:
    study = dataclasses.replace(evaluate_study("s", runs(0.6, 0.95)), notes=["Two machines & one clock."])
    page = build_page([study])
    assert "<li>Two machines &amp; one clock.</li>" in page
    assert "NORMAL: no finding; PNEUMONIA: bacterial or viral pneumonia." in page
    assert re.search(
        r"at most \d+ epochs and ended after \d+ epochs without a lower validation loss \(none of 2 fits", page
    )
    assert "About these runs" in page
    assert "About these runs" not in build_page([evaluate_study("s", study.runs)])


def test_leakage_is_shown_by_class() -> None:
    study = evaluate_study("s", runs())
    same = {"dataset": "chest_xray", "model": "m", "class": MICRO, "interval": "groups"}
    macro = {**same, "class": MACRO, "images": "all"}
    leak = pd.DataFrame(
        [
            {**macro, "difference": 0.02, "low": -0.06, "high": 0.08},
            {**macro, "model": "worse", "difference": -0.2, "low": -0.3, "high": -0.1},
            {**same, "images": "shared", "difference": 0.04, "low": 0.01, "high": 0.07},
            {**same, "images": "others", "difference": 0.0, "low": -0.01, "high": 0.01},
        ]
    )
    page = build_page([dataclasses.replace(study, leakage=leak)])
    assert "F1 when the training set contains other images of the test patients" in page


def test_the_values_of_the_complete_lattice_are_one_of_the_ways() -> None:
    def page(count: int, model: str) -> str:
        layers = found_layers(rising=True)
        layers.record["model"] = model
        return build_page([dataclasses.replace(evaluate_study("s", lattice(count)), layers=[layers])])

    way = "macro F1 added by training it (Shapley value)"
    assert way in page(32, "imagenet_all")
    assert way not in page(31, "imagenet_all")
    assert way not in page(32, "s31")  # the lattice is of networks from ImageNet weights, not of this one


def test_every_way_of_splitting_is_put_into_words() -> None:
    assert set(SPLITS) == {("group", "keep"), *((by, leak) for by in ("image", "given") for leak in LEAKAGE_WORDS)}
    by_group = SPLITS[SplitRule("group", "keep")].format("patients")
    assert f"split by group ({by_group})" in build_page([evaluate_study("s", runs())])


def test_every_table_and_figure_has_a_chapter() -> None:
    shown = {name for chapter in CHAPTERS for name in (*chapter.tables, *chapter.figures, *chapter.folded)}
    captioned = (PROJECT / "src/medtransfer/report/templates/captions.html.j2").read_text()
    captions = set(re.findall(r'name == "(\w+)"', captioned))
    elsewhere = {"intervals", "claims", "power", "provenance", "external"}  # they have places of their own
    assert captions - shown == elsewhere
    assert set(FIGURES) <= shown <= captions


def test_what_the_first_study_lacks_comes_from_the_next() -> None:
    small = [run("chest_xray", "imagenet_all", 0.9)]
    second = [*runs(), run("chest_xray", "imagenet_all_caffe", 0.9, scaling="caffe")]
    page = build_page([evaluate_study("first", small), evaluate_study("second", second)])
    (recipes,) = re.findall(r"Other recipes.*?<caption>.*?href=\"#(\w+)\"", page, flags=re.DOTALL)
    assert recipes == "second"
    assert page.count("Averages, ranking") == 1


def test_a_clinician_is_shown_the_network_that_is_best_on_the_validation_images_of_all_folders() -> None:
    def study(name: str, right: float, seeds: int, split: str = "group") -> Study:
        fits = with_seeds([run("chest_xray", "imagenet_all", right)], seeds)
        return evaluate_study(
            name, [dataclasses.replace(fit, record={**fit.record, "split_by": split}) for fit in fits]
        )

    others = [study("better", 0.9, 3), study("one_run", 0.99, 1), study("leaking", 0.99, 3, "image")]
    page = build_page([study("first", 0.7, 3), *others])
    (clinic,) = re.findall(r"What can a clinician expect.*?</section>", page, flags=re.DOTALL)
    for caption in ("Each class against all others", "ROC curves", "Confusion matrices"):
        assert re.findall(rf"{caption}.*?href=\"#(\w+)\"", clinic, flags=re.DOTALL)[:1] == ["better"], caption


def test_scores_on_the_published_test_images_stand_beside_ours_of_the_same_size() -> None:
    def study(name: str, split: str, size: int, *models: str) -> Study:
        fits = with_seeds([run("chest_xray", model, 0.9) for model in models], 2)
        about = {"split_by": split, "image_size": size}
        return evaluate_study(name, [dataclasses.replace(fit, record={**fit.record, **about}) for fit in fits])

    ours = [study("large", "group", 224, "imagenet_all"), study("small", "group", 64, "imagenet_all", "cnn_random")]
    published = study("published", "given", 64, "imagenet_all", "imagenet_head")
    page = build_page([*ours, published])
    (chapter,) = re.findall(r'<section id="published">.*?</section>', html.unescape(page), flags=re.DOTALL)
    assert re.findall(r'<th scope="col">(.*?)</th>', chapter) == [
        "model",
        "64 px, split by group",
        "64 px, split by the data set's publishers",
    ]
    assert re.findall(r'<th scope="row">(.*?)</th>', chapter) == ["imagenet_all"]  # the only one in both
    assert chapter.count("] *") == 2  # two seeds are too few for an interval over training runs
    assert "(0.94)" not in chapter  # the talk's, on other test images
    assert '<section id="published">' not in build_page(ours)


def test_the_page_is_one_file_with_an_alternative_text_for_each_picture() -> None:
    class Reader(HTMLParser):
        pictures: list[dict[str, str | None]] = []  # noqa: RUF012
        links: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            if tag == "img":
                self.pictures.append(given)
            self.links += [str(given[key]) for key in ("src", "href") if key in given]

    reader = Reader()
    page = build_page([evaluate_study("first", runs()), evaluate_study("second", runs())])
    assert "<figcaption></figcaption>" not in page
    assert "<caption><span></span></caption>" not in page
    reader.feed(page)
    assert len(reader.pictures) == 1 + 6  # in front, and of the first study
    assert all(len(picture["alt"] or "") > 20 for picture in reader.pictures)
    assert all(
        link.startswith(("data:image/png;base64,", "#")) or (PROJECT / "reports" / link.partition("#")[0]).is_file()
        for link in reader.links
    )


def test_names_of_the_data_cannot_put_markup_into_the_page() -> None:
    named = [run("<script>x</script>", "cnn_random", 0.7), run("<script>x</script>", "imagenet_all", 0.9)]
    layers = found_layers(rising=True)
    layers.record.update(dataset="<script>x</script>", model="<script>x</script>")
    page = build_page([dataclasses.replace(evaluate_study("s", named), layers=[layers])])
    assert "<script" not in page
    assert html.escape("<script>x</script>") in page


def test_what_is_said_of_the_talks_data_is_not_said_of_ones_own() -> None:
    named = [run("mine", "cnn_random", 0.7), run("mine", "imagenet_all", 0.9)]
    entry: dict[str, Any] = {"title": "My scans", "group": "person", "licence": "CC0", "citation": "Us, 2026"}
    entry["meanings"] = {"NORMAL": "no finding of ours"}
    own = dataclasses.replace(
        evaluate_study("s", named), custom={"mine": entry, "unused": {**entry, "title": "No scans"}}
    )
    words = ("HAM10000", "chest X-rays", "Guangzhou", "patients", "The talk's F1", "224 px")
    page, both = build_page([own]), build_page([own, evaluate_study("first", runs())])
    assert [word for word in words if word in page] == []
    assert "licence CC0, citation Us, 2026. Each group is a person" in page
    assert "No scans" not in page
    assert "NORMAL: no finding of ours." in page
    assert [word for word in words if word not in both] == ["HAM10000"]
    assert "My scans and chest X-rays" in both
    assert "licence CC0" not in build_page([evaluate_study("first", runs())])


def test_text_and_ground_differ_enough_in_light_and_dark() -> None:
    style = (PROJECT / "src/medtransfer/report/templates/page.html.j2").read_text()
    blocks = re.findall(r":root \{([^}]*)\}", style)
    assert len(blocks) == 2
    for block in blocks:
        color = dict(re.findall(r"--(\w+): (#\w+)", block))
        for text in ("text", "accent", "warn"):
            for ground in ("paper", "soft"):
                assert contrast(color[text], color[ground]) >= 4.5, (text, ground)  # WCAG 2.1, level AA


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours (WCAG 2.1)."""

    def luminance(color: str) -> float:
        digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
        parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)
