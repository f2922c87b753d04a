"""prepare: a raw data set → artifacts/prepared/<dataset>."""

import time

from medtransfer.datasets.catalogue import get_dataset
from medtransfer.errors import UserError
from medtransfer.files import whole_folder
from medtransfer.params import Params
from medtransfer.prepare import prepare_dataset
from medtransfer.stages.layout import DATA, PREPARED


def prepare(params: Params, dataset: str) -> None:
    """Prepare one data set."""
    if dataset not in params.datasets:
        raise UserError(f"params.yaml: datasets.{dataset}: missing; there are {', '.join(params.datasets)}")
    begin = time.perf_counter()
    with whole_folder(PREPARED / dataset) as folder:
        done = prepare_dataset(get_dataset(dataset), DATA / dataset, params.datasets[dataset], folder)
    speed = sum(done["images"].values()) / (time.perf_counter() - begin)
    shared, tested = done["test_images_sharing_a_group"], done["images"]["test"]
    kind = "SYNTHETIC " if done["synthetic"] else ""
    print(
        f"{kind}{done['title']}: {sum(done['images'].values())} images at {done['image_size']} px, {speed:.0f} a second"
    )
    print(f"{shared} of {tested} test images share a {done['group']} with training or validation images")
