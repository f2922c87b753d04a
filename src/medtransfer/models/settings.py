"""The settings that a network was built with."""

from typing import Any


def read_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in the Keras description of a VGG16.

    Parameters
    ----------
    config : dict
        `Model.get_config()`, or the `config` in config.json of a .keras file.

    Returns
    -------
    dict
        `dense_units`, `dropout` (one rate, or a list where they differ), `precision`, `scaling` and
        `trainable_layers`, separated by commas.
    """
    layers = {layer["name"]: layer["config"] for layer in config["layers"]}
    rates = sorted({layer["rate"] for name, layer in layers.items() if name.startswith("head_dropout")})
    weighted = [name for name in layers if "_conv" in name or name.startswith(("head_dense", "head_output"))]
    return {
        "dense_units": [layer["units"] for name, layer in layers.items() if name.startswith("head_dense")],
        "dropout": rates[0] if len(rates) == 1 else rates,
        "precision": layers["head_dense1"]["dtype"]["config"]["name"],
        "scaling": "tf" if "scale_to_one" in layers else "caffe",
        "trainable_layers": ",".join(name for name in weighted if layers[name]["trainable"]),
    }
