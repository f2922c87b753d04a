"""prepare: a raw data set → artifacts/prepared/<dataset>."""

import logging
import time

from medtransfer.core.dvc import check_params_unchanged, check_unchanged, warn_of_another_version
from medtransfer.core.errors import check_known
from medtransfer.core.files import atomic_folder
from medtransfer.core.layout import DATA, PREPARED
from medtransfer.core.params import Params, Split
from medtransfer.core.run_record import note_of
from medtransfer.data.custom import dataset_of
from medtransfer.data.preparation import LEFT_OUT, prepare_dataset

log = logging.getLogger(__name__)

TOLERATED = 0.25  # of a part's size, as its relative error


def prepare(params: Params, dataset: str) -> None:
    """Prepare one data set; a UserError if it is unknown, unusable or changed since DVC recorded it."""
    check_known("params.yaml: datasets", dataset, params.datasets)
    warn_of_another_version()
    check_unchanged(DATA)
    about, begin = dataset_of(dataset, params), time.perf_counter()
    with atomic_folder(PREPARED / dataset) as folder:
        done = prepare_dataset(about, DATA / dataset, params.datasets[dataset], folder)
        check_params_unchanged(params, f"datasets.{dataset}")
    images, group, total = done["images"], done["group"], sum(done["images"].values())
    speed = total / (time.perf_counter() - begin)
    _warn_of_uneven_parts(dataset, params.datasets[dataset].split, images)
    print(f"{about.title}: {total} images at {done['image_size']} px, {speed:.0f} per second")
    if note := note_of(done):
        print(note)
    print(", ".join(f"{count} {part}" for part, count in images.items() if count or part != LEFT_OUT))
    others = ""
    if group != "image":
        shared = done["test_images_sharing_a_group"]
        print(f"{shared} of {images['test']} test images share a {group} with training or validation images")
        others = f" ({done['test_images_with_a_near_duplicate_of_another_group']} of another {group})"
    print(
        "near-duplicates (duplicates.csv): "
        f"{done['test_images_with_a_near_duplicate']} of {images['test']} test images have one in training or "
        f"validation{others}, {done['validation_images_with_a_near_duplicate']} of {images['validation']} validation "
        "images have one in training"
    )
    if done["converted"]:
        print("converted: " + ", ".join(f"{count} × {kind}" for kind, count in done["converted"].items()))
    if "white_level" in done:
        reason = "bits in params.yaml" if "bits" in done else "the bits of the largest value in the data set"
        print(f"files with 16 bits: {done['white_level']:,} becomes white ({reason})")


def _warn_of_uneven_parts(name: str, split: Split, images: dict[str, int]) -> None:
    """Warn if a part differs from what params.yaml asks for, as where one patient has most of the images."""
    divided = {part: count for part, count in images.items() if part != LEFT_OUT}
    for part, asked in (("validation", split.validation), ("test", split.test)):
        share = images[part] / sum(divided.values())
        if split.by == "group" and asked and abs(share / asked - 1) > TOLERATED:
            log.warning(
                "%s: %.0f%% of the images are %s images, params.yaml has %.0f%%: some groups have too many images for "
                "an even split; see samples.csv",
                name, 100 * share, part, 100 * asked,
            )  # fmt: skip
