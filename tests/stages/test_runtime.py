"""Devices by name, loader workers by machine."""

import os

import pytest
import torch

from stages.errors import BadParameter
from stages.extract import compute_dtype
from stages.loading import worker_count
from stages.runtime import resolve_device


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cpu:"])
def test_a_name_that_is_no_device(name: str) -> None:
    with pytest.raises(BadParameter, match=r"option --device: .* is no device; use auto, cpu, cuda or cuda:INDEX"):
        resolve_device(name)


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(BadParameter, match=r"'cuda:99' is not there: PyTorch sees \d+ CUDA devices"):
        resolve_device("cuda:99")


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda") and resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(BadParameter):
        resolve_device("cuda:2")


def test_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_count(0) == 0 and worker_count(5) == 5
    for cores, workers in ((1, 1), (2, 1), (4, 3), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert worker_count("auto") == workers


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert compute_dtype("auto", cpu) == torch.float32 and compute_dtype("bfloat16", cpu) == torch.bfloat16
    for supported, chosen in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, supported=supported, **__: supported)
        assert compute_dtype("auto", gpu) == chosen
