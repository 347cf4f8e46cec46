"""Several processes: shares, sums and rows over all of them, and what is left of a run when one of them ends."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stages import distributed
from stages.artifacts import read
from stages.errors import BadValues, WorkerLost

# Longer than any of these takes; a run that is cut off by it hangs.
PATIENCE_SECONDS = 60


def together(processes: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns, or the exception it raises, in each of several processes; None where one ends without."""

    def run(rank: int, connection: Connection) -> None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        try:
            distributed.start(torch.device("cpu"))
            connection.send(work())
        except Exception as error:
            connection.send(error)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Forked, for a new Python would import torch once more in each.
    context = multiprocessing.get_context("fork")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("WORLD_SIZE", str(processes)), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
            patch.setenv(name, value)
        pipes = [context.Pipe(duplex=False) for _ in range(processes)]
        started = [context.Process(target=run, args=(rank, pipe[1])) for rank, pipe in enumerate(pipes)]
        for process in started:
            process.start()
    results: list[Any] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    for receiver, sender in pipes:
        sender.close()
        try:
            results.append(receiver.recv() if receiver.poll(max(0.0, deadline - time.monotonic())) else "hangs")
        except EOFError:
            results.append(None)
    for process in started:
        process.kill()
        process.join()
    return results


# -------------------------------------------------------------------------------------------------------- one process


def test_alone_everything_is_one_s_own() -> None:
    assert (distributed.rank(), distributed.local_rank(), distributed.size()) == (0, 0, 1)
    assert distributed.share(1000, 256) == (0, 1000)
    rows = torch.arange(3.0)
    assert distributed.summed(rows) is rows and distributed.rows_of_all(rows) is rows
    assert distributed.gathered("a") == ["a"] and distributed.count(3) == 3
    distributed.start(torch.device("cpu"))
    distributed.wait()


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("samples", "unit"), [(0, 4), (1, 4), (4, 4), (5, 4), (1000, 4), (1001, 256), (7, 1)])
def test_shares_cover_all_samples_once(processes: int, samples: int, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    end = 0
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        start, stop = distributed.share(samples, unit)
        assert start == end and (start % unit == 0 or start == samples)
        assert stop - start <= -(-samples // unit // processes) * unit + unit, "no process has a unit more than its part"
        end = stop
    assert end == samples


def test_for_a_while_a_process_can_work_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    with distributed.alone():
        assert (distributed.rank(), distributed.size(), distributed.share(100, 1)) == (0, 1, (0, 100))
        with distributed.alone():
            pass
        assert distributed.size() == 1
    assert (distributed.rank(), distributed.size(), distributed.share(100, 1)) == (3, 4, (75, 100))


# ------------------------------------------------------------------------------------------------------------ several


@pytest.mark.parametrize("processes", [2, 4])
def test_sums_values_and_counts_are_over_all(processes: int) -> None:
    def work() -> tuple[list[float], list[Any], int, int]:
        mine = torch.full((2,), 1.0 + distributed.rank(), dtype=torch.float64)
        total = distributed.summed(mine)
        assert total is mine
        distributed.wait()
        return total.tolist(), distributed.gathered({"rank": distributed.rank()}), distributed.count(2), distributed.rank()

    total = processes * (processes + 1) / 2
    everyone = [{"rank": rank} for rank in range(processes)]
    assert together(processes, work) == [([total, total], everyone, 2 * processes, rank) for rank in range(processes)]


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("samples", [0, 3, 10, 17])
def test_rows_of_all_are_the_rows(processes: int, samples: int) -> None:
    """By rank, with shares of different sizes and, where there are fewer blocks than processes, empty ones."""
    whole = torch.arange(samples * 3.0).view(samples, 3)
    flags = torch.arange(samples) % 3 == 0

    def work() -> tuple[bool, bool, bool]:
        start, stop = distributed.share(samples, 4)
        rows, marked = distributed.rows_of_all(whole[start:stop]), distributed.rows_of_all(flags[start:stop])
        numbers = distributed.rows_of_all(torch.arange(start, stop))
        return torch.equal(rows, whole), torch.equal(marked, flags), torch.equal(numbers, torch.arange(samples))

    assert together(processes, work) == [(True, True, True)] * processes


@pytest.mark.parametrize("bad", [(3,), (2900,), (2900, 3)])
def test_every_process_names_the_first_bad_row(bad: tuple[int, ...], tmp_path: Path) -> None:
    """By its number in the file, whichever process has met it."""
    features = torch.randn(3000, 2)
    features[list(bad)] = torch.inf
    save_file({"features": features, "labels": torch.arange(3000) % 2}, tmp_path / "val.safetensors")
    for said in together(2, lambda: read("features", tmp_path / "val.safetensors")):
        assert isinstance(said, BadValues)
        assert f"in {len(bad)} of 3000 rows, the first of them row {min(bad)}" in str(said)


@pytest.mark.parametrize("how", ["killed", "leaves"])
@pytest.mark.parametrize("processes", [2, 4])
def test_a_process_that_ends_ends_the_others(processes: int, how: str) -> None:
    """In the middle of a loop of sums, long before a timeout, with a sentence."""

    def work() -> str:
        try:
            for step in range(1_000_000):
                if step == 50 and distributed.rank() == processes - 1:
                    if how == "leaves":
                        os._exit(0)
                    os.kill(os.getpid(), signal.SIGKILL)
                distributed.summed(torch.ones(1000))
        except WorkerLost as error:
            assert str(error).startswith(
                f"process {distributed.rank()} of {processes}: another process of this run has ended"
            )
            assert "\n" not in str(error) and ".cc" not in str(error), str(error)
            return "noticed"
        raise AssertionError("never noticed")

    assert together(processes, work) == ["noticed"] * (processes - 1) + [None]


def test_a_failure_of_one_s_own_is_not_the_others() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), distributed._lost():
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(WorkerLost, match="Connection closed by peer"), distributed._lost():
        raise RuntimeError("[its/source/file.cc:545] Connection closed by peer [127.0.0.1]:9640")


@pytest.mark.parametrize("operation", ["gathered", "rows_of_all", "wait"])
def test_every_operation_notices(operation: str) -> None:
    def work() -> str:
        if distributed.rank() == 0:
            # Both have joined by then.
            time.sleep(1)
            os._exit(0)
        with pytest.raises(WorkerLost) as caught:
            argument = {"gathered": ["x"], "rows_of_all": [torch.ones(2)], "wait": []}[operation]
            getattr(distributed, operation)(*argument)
        return str(caught.value)

    dead, said = together(2, work)
    assert dead is None and "has ended or cannot be reached" in said
