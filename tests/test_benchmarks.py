"""benchmarks/: docs/method.md holds what was measured, and the sets are what they say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks import method, pools, sets
from benchmarks.pools import POOLS, SHAPES, Pool
from benchmarks.sets import FeatureSet, draw
from stages.data import dominoes


def test_the_page_s_tables_are_the_committed_results() -> None:
    lines = [json.loads(line) for line in method.RESULTS.read_text().splitlines()]
    page = method.DOCS.read_text(encoding="utf-8")
    for (begin, end), written in ((method.SUMMARY, method.summary(lines)), (method.RESULTS_TABLES, method.tables(lines))):
        assert page.split(begin)[1].split(end)[0].strip() == written.strip()


def test_there_are_sets_of_every_kind() -> None:
    assert len({pool.name for pool in POOLS}) == len(POOLS)
    for role in ("tune", "report"):
        chosen = [pool for pool in POOLS if pool.role == role and pool.shape is None]
        assert {len(pool.classes) for pool in chosen} == {2, 4, 5, 10}
        assert {pool.kind for pool in chosen} == {"resnet18", "efficientnet", "minilm"}
        assert {pool.biased for pool in chosen} == {True, False}
    assert {pool.shape for pool in POOLS if pool.role == "fresh"} == {None, *SHAPES}
    main = {(part.pool.name, part.bias) for name, part in method.sets() if name == "main"}
    assert len(main) >= 40


@pytest.fixture
def pool(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """A pool of 800 random features, as if it were cached; column 0 numbers the rows."""
    folder = tmp_path_factory.mktemp("cache")
    labels = torch.arange(800) % 2
    attributes = torch.arange(800) // 2 % 2
    features = torch.arange(800.0).unsqueeze(1).repeat(1, 3)
    made = {"features": features, "labels": labels, "attributes": attributes}
    for name in ("val", "test"):
        save_file(made, folder / f"{name}.safetensors")
    save_file({"weight": torch.eye(2, 3), "bias": torch.zeros(2)}, folder / "head.safetensors")
    monkeypatch.setattr(sets, "make", lambda _: folder)
    sets._loaded.cache_clear()
    return Pool("planted", "tune", "resnet18", 0.9, ("a", "b"), (0, 1))


def test_a_draw_is_of_its_bias_size_and_imbalance(pool: Pool) -> None:
    drawn = draw(FeatureSet(pool, 0.9, 200))
    assert len(drawn.labels) == 200 and drawn.labels.bincount().tolist() == [100, 100]
    assert float((drawn.labels == drawn.attributes).double().mean()) == pytest.approx(0.9)
    rows = drawn.features[:, 0].long()
    assert len(rows.unique()) == 200 and torch.equal(rows % 2, drawn.labels)
    assert torch.equal(draw(FeatureSet(pool, 0.9, 200)).features, drawn.features)
    assert not torch.equal(draw(FeatureSet(pool, 0.9, 200, seed=1)).features, drawn.features)
    uneven = draw(FeatureSet(pool, 0.75, 120, imbalance=5.0)).labels.bincount().tolist()
    assert uneven == [100, 20]


def test_a_pool_with_a_shape_is_drawn_whole(pool: Pool) -> None:
    drawn = draw(FeatureSet(replace(pool, shape="waterbirds"), 0.0, 0))
    rows = drawn.features[:, 0].long()
    assert sorted(rows.tolist()) == list(range(800)) and torch.equal(rows % 2, drawn.labels)
    assert torch.equal(rows // 2 % 2, drawn.attributes)
    assert not torch.equal(draw(FeatureSet(replace(pool, shape="waterbirds"), 0.0, 0, seed=1)).labels, drawn.labels)


def test_dominoes_have_the_shape_s_group_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    def contents(path: Path) -> np.ndarray:
        each = 1000 if path.name.startswith("t10k") else 6000
        return np.zeros((10 * each, 2, 2), np.uint8) if "images" in path.name else np.repeat(np.arange(10), each)

    monkeypatch.setattr(dominoes, "read_idx", contents)
    pool = next(pool for pool in POOLS if pool.name == "celeba-3")
    train, val, test = (pools._in_groups(pool, name) for name in ("train", "val", "test"))
    for split, counts in ((train, SHAPES["celeba"][0]), (val, SHAPES["celeba"][1]), (test, [[450, 450], [450, 450]])):
        assert split.attributes is not None
        groups = np.bincount(2 * split.labels + split.attributes)
        assert groups.tolist() == [count for row in counts for count in row]
        assert len(set(split.ids.tolist())) == len(split)
    assert not set(train.ids.tolist()) & set(val.ids.tolist())


def test_label_noise_flips_labels_alone(pool: Pool) -> None:
    clean, noisy = (draw(FeatureSet(pool, 0.9, 200, noise=noise)) for noise in (0.0, 0.2))
    assert torch.equal(clean.features, noisy.features) and torch.equal(clean.attributes, noisy.attributes)
    assert 0.1 < float((clean.labels != noisy.labels).double().mean()) < 0.3


def test_worst_group_by_hand(pool: Pool) -> None:
    """A head that always says class 0 is wrong on both groups of class 1."""
    drawn = draw(FeatureSet(pool, 0.9, 200))
    always = (torch.zeros(2, 3), torch.tensor([1.0, 0.0]))
    assert drawn.worst_group(*always) == 0.0 and drawn.mean(*always) == 0.5
