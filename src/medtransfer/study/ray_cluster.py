"""Ray: join a cluster, or start one on this machine."""

import logging
import os
import signal
import socket
from dataclasses import dataclass

import ray

from medtransfer.core.errors import UserError, shortened
from medtransfer.core.hardware import SHARED_GPU
from medtransfer.core.layout import in_project
from medtransfer.core.params import WEIGHTS_VARIABLE, Params
from medtransfer.tracking.mlflow_store import store_uri


@dataclass(frozen=True)
class Needs:
    """The resources of one fit, and how often Ray retries it after its worker or node has died."""

    cpus: int
    gpus: float
    memory_gb: float
    retries: int


def join_ray(params: Params, needs: Needs, local: bool) -> None:
    """Join the cluster that RAY_ADDRESS or `ray start` names, or start Ray here; check that a node is large enough."""
    address = "local" if local else os.environ.get("RAY_ADDRESS", "auto")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = {"runtime_env": {"env_vars": fit_environment(params, needs)}, "include_dashboard": False}
    stop, answers = signal.getsignal(signal.SIGTERM), False
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host:
            socket.create_connection((host, port), timeout=10).close()  # Ray itself keeps trying for minutes
            answers = True
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, ValueError) as error:
        if local:
            raise UserError(
                f"Ray does not start here ({shortened(error)}); if a path is too long, set RAY_TMPDIR to a short one, "
                "such as /tmp"
            ) from None
        if answers:
            raise UserError(
                f"the Ray cluster at {address} answers, but it refuses this process ({shortened(error)}); if it asks "
                "for a token, copy ~/.ray/auth_token from its first machine and set RAY_AUTH_MODE=token"
            ) from None
        raise UserError(
            f"no Ray cluster answers at {address} ({shortened(error)}); start one (`ray start --head`) and name it in "
            "RAY_ADDRESS, or use only this machine with --local"
        ) from None
    signal.signal(signal.SIGTERM, stop)  # Ray replaces the handler
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": needs.memory_gb * 1e9}
    if not any(all(node.get(key, 0) >= value for key, value in asked.items()) for node in nodes):
        raise UserError(
            f"no node has {_describe(asked)} for a fit; the nodes have {'; '.join(map(_describe, nodes))}; lower "
            "--cpus, --gpus or --memory-gb"
        )


def _describe(node: dict[str, float]) -> str:
    return f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU, {node.get('memory', 0) / 1e9:.1f} GB"


def fit_environment(params: Params, needs: Needs) -> dict[str, str]:
    """Return the environment variables of a fit, the same on every node."""
    prefixes = ("KERAS_", "MLFLOW_", "MEDTRANSFER_", "TF_", "JAX_", "XLA_")
    variables = {key: value for key, value in os.environ.items() if key.startswith(prefixes)}
    if weights := variables.get(WEIGHTS_VARIABLE) or params.weights.file:
        variables[WEIGHTS_VARIABLE] = str(in_project(weights))
    if not needs.gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ""  # since Ray 2.60, a task without GPUs sees all of its node's
    return variables | {
        "MLFLOW_TRACKING_URI": store_uri(),
        "TF_NUM_INTRAOP_THREADS": str(needs.cpus),
        "TF_NUM_INTEROP_THREADS": "1",
        **SHARED_GPU,
    }
