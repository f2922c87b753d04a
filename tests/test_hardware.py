"""What `precision: auto` stands for on processors and GPUs with and without bfloat16."""

from pathlib import Path

import pytest

from conftest import PROJECT
from medtransfer import hardware
from medtransfer.audit import _differs
from medtransfer.params import parse_params


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
def test_auto_is_what_the_machine_computes_in(
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


def test_a_processor_that_tells_nothing_has_no_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(hardware, "gpu_capabilities", list)
    assert hardware.native_precision() == "float32"
    assert hardware.processor_has_slow_bfloat16()


def test_no_processor_is_slow_beside_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(hardware, "gpu_capabilities", lambda: [(7, 5)])
    assert not hardware.processor_has_slow_bfloat16()


def test_what_was_fitted_with_auto_agrees_with_what_it_stood_for() -> None:
    assert not _differs({"precision": "auto"}, {"precision": "mixed_bfloat16"})
    assert _differs({"precision": "float32"}, {"precision": "mixed_bfloat16"})
