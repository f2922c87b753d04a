"""The meaning of `precision: auto` on processors and GPUs with and without bfloat16."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from conftest import PROJECT
from medtransfer.core import hardware
from medtransfer.core.errors import UserError
from medtransfer.core.params import parse_params
from medtransfer.study.run import default_jobs
from medtransfer.training import device


@pytest.mark.parametrize(
    ("gpus", "flags", "backend", "expected"),
    [
        ([], "fpu avx2", "tensorflow", "float32"),
        ([], "fpu avx512_bf16", "tensorflow", "mixed_bfloat16"),
        ([], "fpu avx512_bf16\nvendor_id\t: GenuineIntel", "tensorflow", "float32"),
        ([], "fpu avx512_bf16 amx_bf16\nvendor_id\t: GenuineIntel", "tensorflow", "mixed_bfloat16"),
        ([], "fpu amx_bf16", "jax", "float32"),
        ([(9, 0)], "fpu avx2", "jax", "mixed_bfloat16"),
        ([(7, 5)], "fpu amx_bf16", "tensorflow", "float32"),
        ([(9, 0), (7, 5)], "fpu", "tensorflow", "float32"),
    ],
)
def test_auto_is_the_precision_of_the_machine(
    gpus: list[tuple[int, int]],
    flags: str,
    backend: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n")
    monkeypatch.setattr(hardware, "gpu_capabilities", lambda: gpus)
    monkeypatch.setenv("KERAS_BACKEND", backend)
    text = (PROJECT / "params.yaml").read_text()
    assert "precision: auto" in text
    assert parse_params(text, Path("params.yaml")).train.precision == expected


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU of compute capability 9.0."""
    for name, answer in (
        ("nvmlInit", None),
        ("nvmlShutdown", None),
        ("nvmlDeviceGetCount", 1),
        ("nvmlDeviceGetHandleByIndex", "gpu"),
        ("nvmlDeviceGetCudaComputeCapability", (9, 0)),
    ):
        monkeypatch.setattr(f"pynvml.{name}", lambda *arguments, answer=answer: answer)  # fmt: skip
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def install(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Pretend that this is the only package from pip."""
    found = [SimpleNamespace(metadata={"Name": package})]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: found)


def test_a_hidden_gpu_does_not_count(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    install(monkeypatch, "jax-cuda12-plugin")
    for visible, expected in (("0", [(9, 0)]), ("", []), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert hardware.gpu_capabilities() == expected


@pytest.mark.parametrize(
    ("backend", "package", "system", "expected"),
    [
        ("tensorflow", "nvidia-cudnn-cu12", None, True),
        ("jax", "jax-cuda12-plugin", None, True),
        ("jax", "nvidia-cudnn-cu12", None, False),
        ("tensorflow", "numpy", "libcudnn.so.9", True),
        ("tensorflow", "numpy", None, False),
    ],
)
def test_a_gpu_counts_only_if_the_backend_finds_nvidias_libraries(
    gpu: None, backend: str, package: str, system: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", backend)
    install(monkeypatch, package)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: system)
    assert hardware.gpu_capabilities() == ([(9, 0)] if expected else [])


@pytest.mark.parametrize(
    ("gigabytes", "cores", "expected"), [(80, 16, 6), (80, 4, 4), (8, 16, 1), (24, 16, 1), (32, 2, 2)]
)
def test_as_many_stages_run_at_once_as_a_gpu_has_memory_for(
    gpu: None, gigabytes: int, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pynvml.nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(total=gigabytes * 10**9))
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    install(monkeypatch, "nvidia-cudnn-cu12")
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert default_jobs() == expected


def refuse(code: int) -> Callable[..., object]:
    def call(*arguments: object) -> object:
        raise pynvml.NVMLError(code)

    return call


@pytest.mark.parametrize("function", ["nvmlDeviceGetCount", "nvmlDeviceGetCudaComputeCapability"])
def test_a_lost_gpu_does_not_count(gpu: None, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"pynvml.{function}", refuse(pynvml.NVML_ERROR_GPU_IS_LOST))
    assert hardware.installed_gpus() == []


@pytest.mark.parametrize(
    ("visible", "package", "cause"),
    [
        (None, "nvidia-cudnn-cu12", "TF_CPP_MIN_LOG_LEVEL=0"),
        ("0", "nvidia-cudnn-cu12", "CUDA_VISIBLE_DEVICES=0"),
        (None, "numpy", "pip install --editable '.[gpu]'"),
    ],
)
def test_the_cpu_instead_of_a_gpu_is_a_warning_and_auto_is_the_cpus(
    gpu: None,
    visible: str | None,
    package: str,
    cause: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    install(monkeypatch, package)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setattr(device, "accelerators", list)
    monkeypatch.setenv("MEDTRANSFER_REQUIRE_GPU", "1")
    with pytest.raises(UserError, match="MEDTRANSFER_REQUIRE_GPU") as refused:
        device.check_gpu()
    assert cause in str(refused.value)
    monkeypatch.delenv("MEDTRANSFER_REQUIRE_GPU")
    device.check_gpu()
    (line,) = caplog.messages
    assert cause in line
    assert hardware.gpu_capabilities() == []
    device.check_gpu()
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("platforms", ["none", "cuda"])
def test_jax_platforms_that_name_no_device_here_are_refused(platforms: str) -> None:
    if platforms == "cuda" and hardware.installed_gpus():
        pytest.skip("there is a GPU")
    code = "from medtransfer.cli import app; import keras; app.cli = lambda **_: keras.ops.zeros(1); app.main()"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": platforms}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"medtransfer: JAX_PLATFORMS: found {platforms!r}, which JAX cannot use here")


def test_without_a_gpu_there_is_no_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("pynvml.nvmlInit", refuse(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    monkeypatch.setattr(device, "accelerators", list)
    device.check_gpu()
    assert caplog.messages == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    device.check_gpu()
    assert "nvidia-smi" in caplog.messages[0]


def test_an_unknown_processor_has_no_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(hardware, "gpu_capabilities", list)
    assert hardware.native_precision() == "float32"
    assert hardware.processor_has_slow_bfloat16()


def test_with_a_gpu_the_processor_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(hardware, "gpu_capabilities", lambda: [(7, 5)])
    assert not hardware.processor_has_slow_bfloat16()
