"""Collected results: the runs and params.yaml in a folder that `collect` made."""

from pathlib import Path

from pydantic import BaseModel, Field, ValidationError, model_validator

from medtransfer.analysis.runs import Run, read_run
from medtransfer.core.errors import UserError, quoted, unknown
from medtransfer.core.files import is_partial
from medtransfer.core.layout import PARAMS, run_name
from medtransfer.core.params import CatalogueEntry, Split, one_line, parse_yaml
from medtransfer.core.run_record import RECORD, find_fits, read_record, warn_of_leftovers


class _Dataset(BaseModel):
    split: Split
    catalogue: CatalogueEntry | None = None


class _Models(BaseModel):
    train: list[str]
    transfer: list[str] = Field(default_factory=list)


class CollectedParams(BaseModel):
    """The parts of collected results' params.yaml that are read."""

    datasets: dict[str, _Dataset]
    baselines: list[str]
    study: dict[str, _Models]

    @model_validator(mode="after")
    def _study_known_datasets(self) -> "CollectedParams":
        for name in self.study:
            if name not in self.datasets:
                raise ValueError(unknown("study", name, self.datasets))
        return self


def analysis_command(record: Path) -> str:
    """Return the command that writes <kind>/<data set>/<model>-seed<k>/<kind>.json, where kind is layers or gradcam."""
    model, _, seed = record.parent.name.rpartition("-seed")
    return f"medtransfer {quoted(record.stem, record.parent.parent.name, model, '--seed', seed)}"


def read_collected_params(folder: Path) -> CollectedParams:
    """Read params.yaml of collected results; a UserError if it is missing or is not the file of a study."""
    path = folder / PARAMS
    try:
        return CollectedParams.model_validate(parse_yaml(path.read_text(encoding="utf-8"), path))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; restore it, or collect the fits again") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}; restore it") from None
    except ValidationError as error:
        raise UserError(f"{one_line(path, error)}; expected the params.yaml of these fits") from None


def read_collected(folder: Path) -> list[Run]:
    """Return the runs of collected results, in the order of their params.yaml; there must be some."""
    for path in sorted((folder / "runs").glob("*/*/")):
        if not is_partial(path):
            _check_complete(path)
    fits = find_fits(folder / "runs")
    if not fits:
        raise UserError(f"{folder / 'runs'}: no finished fit; run `dvc repro`, or name a folder under results/")
    params = read_collected_params(folder)
    order = [
        (dataset, model)
        for dataset, models in params.study.items()
        for model in (*params.baselines, *models.train, *models.transfer)
    ]
    warn_of_leftovers(folder / "runs", order)
    runs = [_read_in_place(fit) for fit in fits]

    def rank(run: Run) -> tuple[int, str, int]:
        key = (run.dataset, run.model)
        return order.index(key) if key in order else len(order), run.model, run.seed

    return sorted(runs, key=rank)


def _check_complete(fit: Path) -> None:
    for file in (RECORD, "predictions.csv", "history.csv"):
        if not (fit / file).exists() and (file != "history.csv" or read_record(fit)["kind"] == "network"):
            raise UserError(f"{fit / file}: not found; restore the file, or remove this folder")


def _read_in_place(fit: Path) -> Run:
    """Read a fit, which must be in its own folder: a copy elsewhere would count as another seed, model or data set."""
    run = read_run(fit)
    own = Path(run.dataset, run_name(run.model, run.seed))
    if fit.parts[-2:] != own.parts:
        raise UserError(f"{fit / RECORD}: belongs to {own}, not to this folder; move or remove it")
    return run
