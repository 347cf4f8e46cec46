"""Devices by name, threads and loader workers by machine, determinism."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.encoding import compute_dtype
from stages.errors import BadParameter
from stages.loading import worker_count
from stages.runtime import begin, cores, quota, reproducible, resolve_device, thread_count, threads


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
    for count, processes, workers in ((1, 1, 1), (2, 1, 1), (4, 1, 3), (64, 1, 16), (16, 4, 3), (8, 8, 1)):
        monkeypatch.setattr("stages.loading.cores", lambda count=count: count)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert worker_count("auto") == workers, "the processes of a machine share its cores"


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert compute_dtype("auto", cpu) == torch.float32 and compute_dtype("bfloat16", cpu) == torch.bfloat16
    for supported, chosen in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, supported=supported, **__: supported)
        assert compute_dtype("auto", gpu) == chosen


# -------------------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 8),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "3,2"}, 3),
        ({"OMP_NUM_THREADS": "what"}, 8),
        ({"OMP_NUM_THREADS": "3", "NSF_THREADS": "5"}, 5),
        ({"NSF_THREADS": "5"}, 5),
        ({"NSF_THREADS": ""}, 8),
        ({"LOCAL_WORLD_SIZE": "4"}, 2),
        ({"LOCAL_WORLD_SIZE": "16"}, 1),
        # torchrun sets 1 where nobody has set anything, for several processes alone.
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}, 2),
        ({"LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}, 1),
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "3"}, 3),
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1", "NSF_THREADS": "1"}, 1),
    ],
)
def test_thread_count(environment: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.runtime.cores", lambda: 8)
    for name in ("NSF_THREADS", "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert thread_count() == expected


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", " ", "1 2", "1025"])
def test_a_wrong_number_of_threads(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSF_THREADS", value)
    with pytest.raises(BadParameter, match=r"^NSF_THREADS: '.*' is no number of threads; set it to a whole number from 1"):
        begin("cpu")


def test_begin_sets_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        for count in (3, 1):
            monkeypatch.setenv("NSF_THREADS", str(count))
            assert begin("cpu") == torch.device("cpu") and threads() == torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


def test_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.runtime._read", lambda path: "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    for limit, expected in ((1e6, 12), (4.0, 4), (2.5, 2), (0.1, 1), (3.7, 3)):
        monkeypatch.setattr("stages.runtime.quota", lambda limit=limit: limit)
        assert cores() == expected


def test_hyperthreads_of_a_core_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def siblings(path: Path) -> str:
        cpu = int(path.parts[5].removeprefix("cpu"))
        return f"{cpu % 4},{cpu % 4 + 4}"

    monkeypatch.setattr("stages.runtime._read", siblings)
    monkeypatch.setattr("stages.runtime.quota", lambda: 1e6)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 5}, raising=False)
    assert cores() == 2


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"}, 2),
        # A container that sees the host's path: its own group is the top.
        ("0::/host/docker/1", {"cpu.max": "200000 100000"}, 2),
        ("4:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 0.5),
        ("4:cpu,cpuacct:/h", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("1:cpu:/x", {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"}, 1),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("2:memory:/\n0::/", {"unified/cpu.max": "300000 100000"}, 3),
        ("2:cpuset:/", {"cpuset/cpu.cfs_quota_us": "100000", "cpuset/cpu.cfs_period_us": "100000"}, None),
        ("0::/", {"cpu.max": "nonsense"}, None),
        ("", {}, None),
    ],
)
def test_quota(own: str, files: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    found = quota(tmp_path / "groups", tmp_path / "own")
    assert found == expected if expected is not None else found > 10_000


# ---------------------------------------------------------------------------------------------------------- determinism


def test_reproducible_for_the_time_of_a_block() -> None:
    before = torch.random.get_rng_state()
    drawn = []
    for _ in range(2):
        with reproducible(3):
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn) and torch.equal(torch.random.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()


def test_reproducible_starts_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that PyTorch cannot use counts its GPUs all the same."""

    def never(*_: Any) -> None:
        raise AssertionError("CUDA is started")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    for name, value in (("device_count", lambda: 2), ("get_rng_state", never), ("set_rng_state", never)):
        monkeypatch.setattr(torch.cuda, name, value)
    with reproducible(0):
        assert torch.rand(1) >= 0


def test_reproducible_as_far_as_it_goes() -> None:
    """Training a model whose layers have no deterministic form on a GPU warns, and goes on."""
    with reproducible(0, strict=False):
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("name", "expected"), [("cuda:1", [1]), ("cpu", [])])
def test_the_gpu_that_was_asked_for_is_the_current_one(
    name: str, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events are recorded on the current GPU, whichever one computes."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    assert begin(name) == torch.device(name) and chosen == expected


def test_reproducible_does_without_pytorch_s_compiler() -> None:
    """Whose import takes longer than most stages."""
    code = """
import sys, torch
from stages.runtime import reproducible
with reproducible(0):
    torch.ones(3).sum()
assert not {"torch._inductor", "torch._dynamo"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


FAULTS = """
import resource
from stages.runtime import keep_freed_memory
keep_freed_memory()
def faults():
    held = [bytearray(20 << 20) for _ in range(3)]
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(-faults() + [faults() for _ in range(9)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other habits")
def test_freed_memory_is_kept_unless_the_environment_says_otherwise() -> None:
    """Pages fetched anew by nine rounds of 60 MiB: all of them (30 a round where they are huge) or, kept, next to none."""

    def faults(**environment: str) -> int:
        usual = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        return int(subprocess.check_output([sys.executable, "-c", FAULTS], env=usual | environment))

    assert faults() < 100 < 9 * 30 <= faults(MALLOC_ARENA_MAX="4")
