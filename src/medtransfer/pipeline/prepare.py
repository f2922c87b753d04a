"""prepare: a raw data set → artifacts/prepared/<dataset>."""

import time

from medtransfer.core.dvc import check_params_unchanged, check_unchanged, warn_of_another_version
from medtransfer.core.errors import check_known
from medtransfer.core.files import atomic_folder
from medtransfer.core.layout import DATA, PREPARED
from medtransfer.core.params import Params
from medtransfer.data.custom import dataset_of
from medtransfer.data.preparation import prepare_dataset


def prepare(params: Params, dataset: str) -> None:
    """Prepare one data set.

    Raises
    ------
    UserError
        params.yaml has no such data set, or the raw data are not what was recorded or cannot be prepared.
    """
    check_known("params.yaml: datasets", dataset, params.datasets)
    warn_of_another_version()
    check_unchanged(DATA)
    begin = time.perf_counter()
    with atomic_folder(PREPARED / dataset) as folder:
        done = prepare_dataset(dataset_of(dataset, params), DATA / dataset, params.datasets[dataset], folder)
        check_params_unchanged(params, f"datasets.{dataset}")
    speed = sum(done["images"].values()) / (time.perf_counter() - begin)
    shared, tested = done["test_images_sharing_a_group"], done["images"]["test"]
    kind = "SYNTHETIC " if done["synthetic"] else ""
    print(
        f"{kind}{done['title']}: {sum(done['images'].values())} images at {done['image_size']} px, {speed:.0f} a second"
    )
    of_another = ""
    if done["group"] != "image":
        print(f"{shared} of {tested} test images share a {done['group']} with training or validation images")
        others = done["test_images_with_a_near_duplicate_of_another_group"]
        of_another = f" ({others} of them of another {done['group']})"
    print(
        f"near-duplicates: {done['test_images_with_a_near_duplicate']} of {tested} test images have the same picture "
        f"in training or validation{of_another}, {done['validation_images_with_a_near_duplicate']} of "
        f"{done['images']['validation']} validation images have it in training (duplicates.csv)"
    )
    if done["converted"]:
        print("converted: " + ", ".join(f"{count} × {kind}" for kind, count in done["converted"].items()))
