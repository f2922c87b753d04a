"""explain: one test image → the first layer's activations with ImageNet and with random weights."""

import keras
import numpy as np

from medtransfer.core.dvc import check_params_unchanged
from medtransfer.core.files import atomic_folder
from medtransfer.core.layout import ACTIVATIONS
from medtransfer.core.params import Params
from medtransfer.core.prepared import read_dataset
from medtransfer.models import vgg16
from medtransfer.models.weights import imagenet_weights


def explain(params: Params, dataset: str) -> None:
    """Write activations.npz: image (size, size, 3) and its id, imagenet and random (size, size, 64), float32.

    The weights are the networks' initial ones; the random ones are drawn from the first seed.
    """
    images, samples, description = read_dataset(params, dataset)
    row = int(np.flatnonzero(samples.split == "test")[0])
    image = np.asarray(images[row])
    model = vgg16.build_vgg16(description["image_size"], len(description["classes"]), params.train, params.seeds[0])
    layer = keras.Model(model.inputs, model.get_layer("block1_conv1").output)
    activations = {"random": layer.predict(image[None], verbose=0)[0].astype(np.float32)}
    vgg16.set_base_weights(model, imagenet_weights(params.weights.file))
    activations["imagenet"] = layer.predict(image[None], verbose=0)[0].astype(np.float32)
    check_params_unchanged(params, "seeds", "train.precision", "train.scaling", "weights")
    with atomic_folder(ACTIVATIONS / dataset) as folder:
        np.savez_compressed(folder / "activations.npz", image=image, id=samples.id[row], **activations)
