"""The passes: the compiled loops and PyTorch's blocks agree, for each way in which features are stored."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stages import passes
from stages.artifacts import Metadata, read
from stages.eliminate import eliminate
from stages.errors import BadValues, MissingFile, WrongArtifact
from stages.identify import assess, identify
from stages.logistic import cross_entropy
from stages.neutralize import neutralize
from stages.passes import best, blocks, compiled, group_means, group_sums, nearest, predict
from stages.rows import BLOCK_ROWS, Rows
from tests.conftest import Golden, planted

TYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Whether passes take the compiled loops, whatever the size, in two threads; columns are many, however few."""

    def choose(take: bool) -> None:
        monkeypatch.setattr(passes, "KERNEL_VALUES", 0 if take else 1 << 62)
        monkeypatch.setattr(passes, "threads", lambda: 2)
        monkeypatch.setattr(passes, "COLUMNS", 16)

    return choose


def drawn(samples: int = 2500, width: int = 37, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Features with values from subnormal to large, and labels."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(samples, width, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    features[:, 0] *= 1e-6
    features[:, 1] *= 1e3
    features[torch.arange(samples), 2 + labels] += 2
    return features, labels


def parts(features: torch.Tensor) -> Rows:
    """The same in three parts, of which one lies within a block and one is empty of whole blocks."""
    return Rows(features.split([1300, 1, len(features) - 1301]))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("split", [False, True])
def test_compiled_loops_agree_with_blocks(loops: Callable[[bool], None], dtype: torch.dtype, split: bool) -> None:
    features, labels = drawn()
    stored = features.to(dtype)
    given = parts(stored) if split else stored
    exact = stored.to(torch.float64)
    generator = torch.Generator().manual_seed(1)
    heads = [(torch.randn(5, 37, generator=generator), torch.randn(5, generator=generator)) for _ in range(2)]
    centers = torch.randn(5, 37, generator=generator)
    weights = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    found = []
    for take in (False, True):
        loops(take)
        assert compiled(given) is take
        groups = torch.where(labels == 3, -1, labels)
        sums = group_sums(given, groups, 5)
        expected = torch.stack([exact[groups == group].sum(dim=0) for group in range(5)])
        torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-3)
        weighted = group_sums(given, groups, 5, weights=weights)
        expected = torch.stack([weights[groups == group] @ exact[groups == group] for group in range(5)])
        torch.testing.assert_close(weighted, expected, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(group_means(given, labels, 5)[4], exact[labels == 4].mean(dim=0).float())
        for classes, (weight, bias) in zip(best(given, heads, what=""), heads, strict=True):
            assert torch.equal(classes, (exact @ weight.double().T + bias).argmax(dim=1))
        assert torch.equal(predict(given, *heads[0]), best(given, heads, what="")[0])
        assert torch.equal(nearest(given, centers), torch.cdist(exact, centers.double()).argmin(dim=1))
        found.append(eliminate(given, labels, centers, steps=12))
        rows, shares = torch.tensor([0, 1299, 1300, 1301, 2499, 7, 7]), torch.linspace(0.5, 2, 7, dtype=torch.float64)
        loss, gradient = cross_entropy(given, labels, rows, shares, *heads[0])
        weight, bias = (tensor.double().requires_grad_() for tensor in heads[0])
        each = torch.nn.functional.cross_entropy(exact[rows] @ weight.T + bias, labels[rows], reduction="none")
        (each * shares).sum().backward()
        assert loss == pytest.approx(float((each * shares).sum().detach()), rel=1e-5)
        assert weight.grad is not None and bias.grad is not None
        torch.testing.assert_close(gradient[:, :-1], weight.grad, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(gradient[:, -1], bias.grad, rtol=1e-4, atol=1e-5)
    for name in ("scale", "shift", "loss"):
        torch.testing.assert_close(getattr(found[0], name), getattr(found[1], name), rtol=1e-5, atol=1e-6)


def test_compiled_loops_give_the_golden_numbers(loops: Callable[[bool], None], golden: Golden) -> None:
    loops(True)
    found = identify(golden["features"], golden["labels"])
    assert torch.equal(found.minority, golden["minority"])
    torch.testing.assert_close(found.centroids, golden["centroids"], atol=1e-5, rtol=0)
    centers = neutralize(golden["features"], golden["labels"], golden["minority"])
    torch.testing.assert_close(centers, golden["centers"], atol=1e-5, rtol=0)
    learned = eliminate(
        golden["features"], golden["labels"], golden["centers"], steps=int(golden.numbers["eliminate_steps"])
    )
    torch.testing.assert_close(learned.scale, golden["scale"], atol=1e-4, rtol=0)
    torch.testing.assert_close(learned.shift, golden["shift"], atol=1e-4, rtol=0)


def test_a_sample_on_its_center_pulls_nowhere(loops: Callable[[bool], None]) -> None:
    # x + 1e-6 - center is zero for the first sample at the start.
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    centers = features + 1e-6
    for take in (False, True):
        loops(take)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in vars(eliminate(features, torch.tensor([0, 1]), centers, steps=2)).values())  # fmt: skip # noqa: E501


def test_the_verdict_reads_the_minority_alone(loops: Callable[[bool], None]) -> None:
    """The rest's means come from the centroids: as if all cells had been averaged."""
    made = planted(samples=600, width=10)
    found = identify(made["features"], made["labels"])
    said = []
    for take in (False, True):
        loops(take)
        said.append(assess(made["features"], made["labels"], found))
    assert said[0].mirror == pytest.approx(said[1].mirror, abs=2e-6)
    rest = [made["features"][(made["labels"] == c) & (found.nearest == c)].double().mean(dim=0) for c in (0, 1)]
    drawn = [made["features"][(made["labels"] == c) & (found.nearest != c)].double().mean(dim=0) for c in (0, 1)]
    a, b = drawn[0] - rest[1], drawn[1] - rest[0]
    line = torch.nn.functional.normalize(rest[1] - rest[0], dim=0)
    across = [vector - (vector @ line) * line for vector in (a, b)]
    cosine = torch.nn.functional.cosine_similarity
    assert said[0].mirror == pytest.approx(float(cosine(a, b, dim=0) + 0.3 * cosine(*across, dim=0)), abs=1e-4)


def test_equal_scores_go_to_the_first_class(loops: Callable[[bool], None]) -> None:
    features = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    points = torch.tensor([[9.0, 9, 9, 9], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    for take in (False, True):
        loops(take)
        # Points 1 and 2 are one, and so are 3 and 4.
        assert set(nearest(features, points).tolist()) == {1, 3}


def test_float64_decides_where_float32_cannot(loops: Callable[[bool], None]) -> None:
    """Rows far from zero and near the border of the classes: float32 sums are off by more than what tells them apart."""
    generator = torch.Generator().manual_seed(0)
    features = 1e6 + torch.randn(4000, 24, generator=generator)
    weight = torch.randn(3, 24, generator=generator, dtype=torch.float64)
    bias = -(features.double() @ weight.T).mean(dim=0)
    exact = (features.double() @ weight.T + bias).argmax(dim=1)
    assert exact.bincount(minlength=3).min() > 500
    for take in (False, True):
        loops(take)
        assert torch.equal(best(features, [(weight, bias)], what="")[0], exact)


def test_float64_features_stay_out_of_the_loops(loops: Callable[[bool], None]) -> None:
    loops(True)
    features, labels = drawn(samples=600)
    wide = features.double()
    assert compiled(features) and not compiled(wide)
    torch.testing.assert_close(group_sums(wide, labels, 5), group_sums(features, labels, 5), rtol=1e-5, atol=1e-3)


def test_float32_sums_begin_anew_at_the_same_samples_wherever_a_share_begins() -> None:
    """Of a share that begins between multiples of CHUNK, too: cut at one, it adds up the same bits."""
    from stages import kernels

    assert passes.UNIT % kernels.CHUNK == 0, "threads begin at multiples of CHUNK"
    features, labels = drawn(samples=700)
    x, numbers = features.numpy(), labels.numpy()
    scale, offsets = np.full(37, 1.1, np.float32), np.random.RandomState(0).randn(5, 37).astype(np.float32)
    cut = kernels.CHUNK - 100
    for cuts in ((0, 700), (0, cut, 700)):
        added, pulled, distance = np.zeros((5, 37)), np.zeros((2, 37)), 0.0
        for start, stop in pairwise(cuts):
            part = slice(start, stop)
            kernels.sums(x[part], 100 + start, numbers[part], added)
            distance += kernels.pull(x[part], 100 + start, numbers[part], scale, offsets, 1 / 700, pulled)
        if stop - start == 700:
            whole = added, pulled, distance
    assert np.array_equal(whole[0], added) and np.array_equal(whole[1], pulled)
    assert whole[2] == pytest.approx(distance, rel=1e-14)


def test_where_nothing_compiled_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only image and a user without a home: numba then finds no place for its cache."""
    from numba.core import caching

    from stages import kernels

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    loop = kernels._loop(kernels.sums.py_func)
    features, labels = drawn(samples=300)
    added = np.zeros((5, 37))
    loop(features.numpy(), 0, labels.numpy(), added)
    torch.testing.assert_close(torch.from_numpy(added), group_sums(features, labels, 5), rtol=1e-5, atol=1e-2)


# ---------------------------------------------------------------------------------------------------------------- rows


def test_rows_are_a_tensor_in_parts() -> None:
    features, _ = drawn()
    given = parts(features)
    assert given.shape == features.shape and torch.equal(given.tensor(), features)
    picked = torch.tensor([2499, 0, 1300, 1299, 1301, 0])
    assert torch.equal(given.take(picked), features[picked])
    inner = Rows(given.parts, 1200, 1400)
    assert torch.equal(inner.tensor(), features[1200:1400]) and torch.equal(inner.take(picked[1:2]), features[1200:1201])
    assert torch.equal(torch.cat([rows for (rows,) in blocks(given)]), features)
    assert max(len(rows) for (rows,) in blocks(given)) <= BLOCK_ROWS


def test_every_process_computes_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a pass is worth the compiled loops is told by all samples, not by a share that happens to be larger."""
    whole = Rows([torch.ones(9 * BLOCK_ROWS, 500)])
    monkeypatch.setattr(passes, "KERNEL_VALUES", 9 * BLOCK_ROWS * 500)
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        said.append((len(whole.share()), compiled(whole.share())))
    assert said == [(4 * BLOCK_ROWS, True), (5 * BLOCK_ROWS, True)]


def shards(folder: Path, tensors: dict[str, torch.Tensor], sizes: list[int]) -> Path:
    """Write features in shards and their index, as other programs would; returns the index."""
    import json

    names = [f"val-{part + 1:05}-of-{len(sizes):05}.safetensors" for part in range(len(sizes))]
    pieces = {key: tensor.split(sizes) for key, tensor in tensors.items()}
    for part, name in enumerate(names):
        save_file({key: split[part].contiguous() for key, split in pieces.items()}, folder / name)
    index = folder / "val.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {f"features.{at}": name for at, name in enumerate(names)}}))
    return index


def test_shards_are_one_file(tmp_path: Path) -> None:
    made = {**planted(samples=3000), "ids": torch.arange(3000)}
    index = shards(tmp_path, made, [1500, 7, 1493])
    save_file(made, tmp_path / "whole.safetensors")
    whole = read("features", tmp_path / "whole.safetensors")
    for path in (index, tmp_path / "val.safetensors"):
        held = read("features", path)
        assert held.sizes == whole.sizes and held.names == whole.names
        for name in held.names:
            assert torch.equal(held[name], whole[name])
        assert held.fingerprint == whole.fingerprint
    assert read("features", tmp_path / "val-00002-of-00003.safetensors").sizes["n"] == 7, "each shard is a features file"
    changed = {**made, "features": made["features"] + (torch.arange(3000) == 2999).unsqueeze(1)}
    assert read("features", shards(tmp_path, changed, [1500, 7, 1493])).fingerprint != whole.fingerprint


def test_shards_that_do_not_fit(tmp_path: Path) -> None:
    made = planted(samples=30)
    index = shards(tmp_path, made, [10, 10, 10])
    second = tmp_path / "val-00002-of-00003.safetensors"
    save_file({"features": torch.ones(10, 9), "labels": torch.zeros(10, dtype=torch.int64)}, second)
    with pytest.raises(WrongArtifact, match="'features' has 9 features"):
        read("features", index)
    save_file({"features": torch.ones(10, 8).half(), "labels": torch.zeros(10, dtype=torch.int64)}, second)
    with pytest.raises(WrongArtifact, match=r"stored as torch\.float16"):
        read("features", index)
    save_file({"features": torch.ones(10, 8)}, second)
    with pytest.raises(WrongArtifact, match="holds no tensor 'labels'"):
        read("features", index)
    values = torch.ones(10, 8)
    values[4, 2] = torch.nan
    save_file({"features": values, "labels": torch.zeros(10, dtype=torch.int64)}, second)
    with pytest.raises(BadValues, match=r"val-00002.*in 1 of 30 rows, the first of them row 4"):
        read("features", index)
    save_file({"features": torch.ones(10, 8), "labels": torch.zeros(12, dtype=torch.int64)}, second)
    with pytest.raises(WrongArtifact, match=r"val-00002.*'labels' has 12 values, and 'features' 10 rows"):
        read("features", index)
    third = tmp_path / "val-00003-of-00003.safetensors"
    save_file({"features": torch.ones(10, 8), "labels": torch.zeros(8, dtype=torch.int64)}, third)
    with pytest.raises(WrongArtifact, match=r"val-00002.*'labels' has 12 values, and 'features' 10 rows"):
        read("features", index)
    shards(tmp_path, made, [10, 10, 10])
    save_file({"features": torch.ones(10, 8), "labels": torch.zeros(10, dtype=torch.int64)}, second)
    assert "attributes" not in read("features", index).names
    with pytest.raises(WrongArtifact, match=r"val-00002.*holds no tensor 'attributes'"):
        read("features", index, attributes=True)
    for what, own in (("class names", {"class_names": ["b", "a"]}), ("inputs", {"inputs": {"model": "sha256:1"}})):
        metadata = Metadata(stage="extract", kind="features", **own).to_strings()
        save_file({"features": torch.ones(10, 8), "labels": torch.zeros(10, dtype=torch.int64)}, second, metadata)
        with pytest.raises(WrongArtifact, match=rf"val-00002\S+: is of other {what} than \S+val-00001"):
            read("features", index)
    second.unlink()
    with pytest.raises(MissingFile, match="val-00002"):
        read("features", index)
    for text in ("{", "[]", '{"weight_map": {}}', '{"weight_map": {"features": "../other.safetensors"}}'):
        index.write_text(text)
        with pytest.raises(WrongArtifact, match="index"):
            read("features", index)


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_not_finite_is_found_in_every_type(tmp_path: Path, dtype: torch.dtype) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        features = torch.ones(20, 3)
        features[7, 1] = value
        save_file({"features": features.to(dtype), "labels": torch.arange(20) % 2}, tmp_path / "val.safetensors")
        with pytest.raises(BadValues, match="in 1 of 20 rows, the first of them row 7"):
            read("features", tmp_path / "val.safetensors")
