"""Loader processes: what happens to them, and to what they hand over, is told in one sentence and never waited for."""

import os
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from stages.data import open_split
from stages.errors import CannotWrite, UserError, WorkerLost
from stages.loading import attended, batches
from stages.models import Classifier
from tests.conftest import REPOSITORY

# Longer than any of these takes; a run that is cut off by it hangs.
PATIENCE_SECONDS = 20


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    def hangs(number: int, frame: Any) -> None:
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(PATIENCE_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def loaded(transform: Any, collate: Any = None, **options: Any) -> list[Any]:
    data = {"format": "dominoes", "root": str(REPOSITORY / "data/dominoes"), "train_size": 20, "val_size": 12}
    model = Classifier(torch.nn.Identity(), transform, {"name": "x"}, collate=collate)
    chosen = {"batch_size": 4, "workers": 1, "device": torch.device("cpu"), **options}
    with attended():
        return list(batches(open_split("val", **data), model, **chosen))


def ones(image: Any) -> torch.Tensor:
    return torch.ones(3)


def named(samples: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"a": torch.stack(samples), "b": torch.stack(samples)}


@pytest.mark.parametrize("collate", [None, named])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("room", [0, 2, 5])
def test_shared_memory_that_is_full(collate: Any, skips: bool, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the 64 MB that Docker gives: a batch, or what comes with it, has no room."""
    share, shared = torch.UntypedStorage._share_fd_cpu_, []

    def full(storage: torch.UntypedStorage) -> Any:
        # In the loader process, which starts as a copy of this one.
        if not storage.is_shared():
            shared.append(storage)
            if len(shared) > room:
                raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")
        return share(storage)

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    skipped: list[UserError] = []
    with pytest.raises(CannotWrite, match=r"^/dev/shm: .*has no room .*No space left .*; set workers: 0 or .*--shm-size"):
        loaded(ones, collate, skipped=skipped if skips else None)
    assert skipped == []


# PyTorch takes down what it has not yet made.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_shared_memory_without_room_for_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.multiprocessing.Queue", full)
    with pytest.raises(CannotWrite, match=r"^/dev/shm: shared memory has no room"):
        loaded(ones)


def test_a_batch_that_cannot_be_put_together_needs_no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(storage: torch.UntypedStorage) -> Any:
        raise RuntimeError("No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    sizes = iter(range(100))
    with pytest.raises(UserError, match="the samples of a batch cannot be put together"):
        loaded(lambda image: torch.ones(next(sizes)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_loader_process_that_is_killed(number: signal.Signals) -> None:
    here = os.getpid()

    def killed(image: Any) -> torch.Tensor:
        if os.getpid() != here:
            os.kill(os.getpid(), number)
        return torch.ones(3)

    with pytest.raises(WorkerLost, match=r"^workers: a loader process has ended .*DataLoader worker .*; set fewer workers"):
        loaded(killed)


def test_more_loader_processes_than_cores_are_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(loaded(ones, workers=2)) == 3
