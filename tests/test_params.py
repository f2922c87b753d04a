"""params.yaml is refused with one line that names the key, what was found and what is allowed."""

import shutil
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from conftest import PROJECT
from medtransfer.core.errors import UserError
from medtransfer.core.params import BLOCKS, Params, parse_params, read_params


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = (PROJECT / "params.yaml").read_text()
    assert old in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  epochs: 8",
            "  epochs: 8\n  lerning_rate: 1",
            "train.lerning_rate: unknown key; did you mean learning_rate? allowed here: augment,",
        ),
        (
            "  recipe: talk",
            "  recipe: [talk]",
            "train.recipe: found ['talk'] (list), input should be 'talk' or 'modern'",
        ),
        ("  epochs: 8", "  epochz: 8", "train.epochz: unknown key; did you mean epochs? allowed here: augment,"),
        ("  epochs: 8", "  epochs: ten", "train.epochs: found 'ten' (str), input should be a valid integer"),
        (
            "  epochs: 8",
            "  schedule: cosin\n  epochs: 8",
            "train.schedule: found 'cosin' (str), input should be 'none', 'co",
        ),
        (
            "  epochs: 8",
            "  weight_decay: 0.1\n  epochs: 8",
            "train: weight_decay: 0.1 is for optimizer: adamw, not adam",
        ),
        ("  epochs: 8", "  warmup: 2\n  epochs: 8", "train: warmup: 2 is for schedule: cosine, not none"),
        ("  epochs: 8", "  head_first: 8\n  epochs: 8", "must be less than epochs, which is 8"),
        ("  epochs: 8", "  augment: {mixup: 0.001}\n  epochs: 8", "train: augment.mixup is 0.001; expected 0 or"),
        (
            "trainable: [block5]}\n  imagenet_first_block",
            "trainable: [block5], augment: {mixup: 0.2}, balance: class_weights}\n  imagenet_first_block",
            "configurations.imagenet_last_block: augment.mixup mixes labels",
        ),
        (
            "trainable: [block5]}\n  imagenet_first_block",
            "trainable: [block5], augment: {crp: 0.2}}\n  imagenet_first_block",
            "configurations.imagenet_last_block.augment.crp: unknown key; did you mean crop?",
        ),
        ("  epochs: 8", "  epochs: 0", "train.epochs: found 0 (int), input should be greater than or equal to 1"),
        ("  batch_size: 16\n", "", "train.batch_size: missing"),
        (
            "precision: auto",
            "precision: float16",
            "train.precision: found 'float16' (str), input should be 'float32'",
        ),
        (
            "[block1, block5]",
            "[block1, block6]",
            "configurations.imagenet_first_last.trainable: found ['block1', 'block6']",
        ),
        ("trainable: head", "trainable: []", "must be 'all', 'head' or a list of different blocks"),
        ("by: group, validation: 0.2", "by: patient, validation: 0.2", "datasets.ham10000.split.by: found 'patient'"),
        ("validation: 0.2, test: 0.2", "validation: 0.5, test: 0.5", "validation + test is 1; expected less than 1"),
        ("validation: 0.2, test: 0.2", "validation: 0.2, test: 0.3", "equal folds"),
        (
            "by: group, validation: 0.2, test: 0.2, seed: 0",
            "by: group, validation: 0.2, test: 0.2, seed: 0, leakage: remove",
            "leakage: remove is for by: image; a split by group has no leakage",
        ),
        ("- imagenet_head", "- imagenet_heads", "'imagenet_heads' is unknown; choose one of cnn_random"),
        ("ham10000/imagenet_all", "ham10000/other", "'ham10000/other' is not trained by this study"),
        (
            "ham10000/imagenet_all",
            "chest_xray/ham10000_all",
            "'chest_xray/ham10000_all' starts from a finished run itself",
        ),
        ("train: [cnn_random, imagenet_all]", "train: [ham10000_all]", "list it under study.chest_xray.transfer"),
        ("image_size: 32", "image_size: 16", "datasets.ham10000.image_size: found 16 (int)"),
        ("seeds: [0]", "seeds: []", "seeds: found [] (list)"),
        ("seeds: [0]", "seeds: [0", "cannot be read as YAML"),
        ("seeds: [0]", "seeds: [0, 1, 0]", "expected each value once, but 0 occurs 2 times"),
        ("[decision_tree, random_forest]", "[decision_tree, decision_tree]", "baselines: found ['decision_tree'"),
        ("train: [cnn_random, imagenet_all]", "train: [cnn_random, cnn_random]", "study.chest_xray.train: found"),
        ("  cnn_random: {", "  random_forest: {", "this name belongs to a baseline"),
        ("{weights: random,", "{weights: rendom,", "weights: found 'rendom' (str), expected random, imagenet,"),
        (
            "  cnn_random: {",
            "  My Network: {",
            "configurations.My Network: found 'My Network' (str), expected lowercase",
        ),
        ("learning_rate: 1e-3", "learning_rate: fast", "imagenet_head.learning_rate: found 'fast'"),
        ("learning_rate: 1e-3", "learning_rate: .inf", "imagenet_head.learning_rate: found inf"),
        ("learning_rate: 1e-3", "learning_rate: {ham10000: 0}", "learning_rate.ham10000: found 0 (int)"),
        ("learning_rate: 1e-3", "learning_rate: {ham: 0.1}", "'ham' is unknown; choose one of ham10000"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = edited(tmp_path, old, new)
    with pytest.raises(UserError) as caught:
        read_params(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run medtransfer in the project's folder"):
        read_params(tmp_path / "params.yaml")


def test_numbers_are_numbers(params: Params) -> None:
    assert params.train.learning_rate == 1e-4


def test_rates_that_dvc_writes_without_a_point_are_numbers(tmp_path: Path) -> None:
    path = Path(shutil.copy(PROJECT / "params.yaml", tmp_path))
    # As `dvc exp run -S` does.
    apply_overrides(
        str(path), ["+train.learning_rate=3e-5", "+configurations.imagenet_last_block.learning_rate={ham10000: 1e-5}"]
    )
    assert "learning_rate: 3e-05\n" in path.read_text()
    params = read_params(path)
    assert params.train.learning_rate == 3e-5
    assert params.configurations["imagenet_last_block"].settings(params.train, "ham10000").learning_rate == 1e-5


def test_the_values_of_a_configuration_replace_the_common_ones(params: Params) -> None:
    plain = params.configurations["imagenet_last_block"]
    own = plain.model_copy(
        update={"learning_rate": 3e-4, "optimizer": "sgd", "scaling": "caffe", "balance": "sampling", "fraction": 0.1}
    )
    assert plain.settings(params.train, "ham10000") == params.train
    recipe = own.settings(params.train, "ham10000")
    assert (recipe.learning_rate, recipe.scaling, recipe.balance, recipe.fraction) == (3e-4, "caffe", "sampling", 0.1)
    assert recipe.optimizer == "sgd"
    assert recipe.epochs == params.train.epochs


def test_a_value_that_no_network_uses_gets_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    real = (PROJECT / "results" / "params-real.yaml").read_text()  # each network has a rate per data set
    (tmp_path / "params.yaml").write_text(real.replace("train:\n  recipe", "train:\n  learning_rate: 1e-3\n  recipe"))
    for _ in range(2):
        read_params(tmp_path / "params.yaml")
    [warning] = [record.getMessage() for record in caplog.records]
    assert "train.learning_rate: no network uses it" in warning
    caplog.clear()
    read_params(PROJECT / "results" / "params-real.yaml")
    read_params(edited(tmp_path, "  recipe: talk", "  learning_rate: 1e-3\n  recipe: talk"))  # two networks have none
    assert not caplog.records


def test_a_learning_rate_may_depend_on_the_data_set(params: Params, caplog: pytest.LogCaptureFixture) -> None:
    own = params.configurations["imagenet_all"].model_copy(update={"learning_rate": {"ham10000": 3e-4}})
    assert own.settings(params.train, "ham10000").learning_rate == 3e-4
    assert not caplog.records
    assert own.settings(params.train, "chest_xray") == params.train
    assert own.settings(params.train, "chest_xray") == params.train
    [warning] = caplog.records
    assert "no rate for chest_xray" in warning.getMessage()


def test_configurations_name_their_blocks_and_source(params: Params) -> None:
    configurations = params.configurations
    assert configurations["imagenet_all"].blocks == BLOCKS
    assert configurations["imagenet_head"].blocks == ()
    assert configurations["imagenet_first_last"].blocks == ("block1", "block5")
    assert configurations["imagenet_all"].source is None
    assert configurations["ham10000_all"].source == ("ham10000", "imagenet_all")


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n"])
def test_an_empty_file_is_called_empty(text: str) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: empty; (restore|copy) it "):
        parse_params(text, Path("params.yaml"))


def test_a_tilde_in_the_weights_file_is_the_users_home(tmp_path: Path) -> None:
    params = read_params(edited(tmp_path, "  file: null", "  file: ~/vgg16.h5"))
    assert params.weights.file == str(Path.home() / "vgg16.h5")
