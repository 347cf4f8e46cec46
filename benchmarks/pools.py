"""Real features with a planted bias: ERM models trained on `../shared/data`, and the features of their held-out samples.

A `Pool` is one trained model and its features of a validation pool, in which every class x attribute group is large, of a
balanced test split, and of the training split. `benchmarks.sets` draws validation splits of any bias and size from it.
Deterministic, and cached in `benchmarks/cache` (or $NSF_BENCHMARK_CACHE): all of them take three hours on 2 cores, once.

    python -m benchmarks.pools [NAME ...]     # make these, or all
"""

import csv
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages import models
from stages.artifacts import Metadata
from stages.data import Split, dominoes, open_split
from stages.encoding import cut, encoded, head_tensors
from stages.outputs import outputs
from stages.runtime import reproducible, resolve_device
from stages.train import train

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("NSF_BENCHMARK_CACHE", REPOSITORY / "benchmarks/cache"))
DATA = Path(os.environ.get("NSF_BENCHMARK_DATA", REPOSITORY.parent / "shared/data"))

# Raised when the pools would come out otherwise: it is part of the cached files' names.
VERSION = 1


@dataclass(frozen=True)
class Pool:
    """How one pool is made.

    Attributes:
        name: of the cached folder, and in tables.
        role: "tune" for pools that rules and constants may be chosen on, "report" for those that results are told of,
            "fresh" for those that were made last (docs/method-choices.md says before which choice).
        kind: "resnet18" (Dominoes, trained from scratch), "efficientnet" (Dominoes, a linear head trained on frozen
            ImageNet features) or "minilm" (sentences, fine-tuned).
        bias: share of each class's training samples whose attribute agrees with the class.
        classes: items of Fashion-MNIST, or "positive" and "negative".
        attributes: digits, one a class; or sources of sentences, two.
        seed: of the pairing, the initialisation and the order of samples.
        train, val, test: how many samples.
        second: whether every image carries a second attribute, a bar at its left or right edge that agrees with the
            class as often as the digit does, drawn on its own.
        shape: the benchmark whose group sizes it has in place of a bias, see SHAPES. Two attributes, whatever the classes;
            a class of "coat+dress" holds both items; and the validation pool is the validation split.
    """

    name: str
    role: str
    kind: str
    bias: float
    classes: tuple[str, ...]
    attributes: tuple[Any, ...]
    seed: int = 0
    train: int = 4000
    val: int = 6000
    test: int = 2000
    second: bool = False
    shape: str | None = None

    @property
    def biased(self) -> bool:
        """Whether attribute and class go together in training."""
        return self.shape != "rare" and (self.shape is not None or self.bias > 1 / len(self.classes))

    def group_sizes(self, split: str) -> np.ndarray:
        """Of a pool with a shape, how many samples of each class and attribute the split holds, (C, 2)."""
        assert self.shape is not None
        train, val = (np.array(counts) for counts in SHAPES[self.shape])
        of_group = OF_GROUP_TEXT if self.kind == "minilm" else OF_GROUP
        return {"train": train, "val": val, "test": np.full(train.shape, of_group)}[split]

    @property
    def folder(self) -> Path:
        return CACHE / f"v{VERSION}-{self.name}"


def _pair(
    name: str, role: str, bias: float, items: Sequence[str], digits: Sequence[int], seed: int = 0, **more: Any
) -> Pool:
    return Pool(name, role, "resnet18", bias, tuple(items), tuple(digits), seed, **more)


def _text(name: str, role: str, bias: float, sources: tuple[str, str], seed: int, val: int = 1600) -> Pool:
    return Pool(name, role, "minilm", bias, ("positive", "negative"), sources, seed, 1000, val, 400)


def _shaped(name: str, role: str, shape: str, items: Sequence[str], digits: Sequence[int], seed: int) -> Pool:
    return Pool(name, role, "resnet18", 0.0, tuple(items), tuple(digits), seed, shape=shape)


# Group sizes, class x attribute, of train and val: those of Waterbirds (Sagawa et al. 2020), of which val holds both
# attributes of a class alike, and the proportions of CelebA's blond hair x gender (one class holds both alike), MultiNLI's
# negations (three classes, two attributes) and CivilComments' mention of any identity. The last is CelebA's without a bias.
SHAPES: Mapping[str, tuple[list[list[int]], list[list[int]]]] = {
    "waterbirds": ([[3498, 184], [56, 1057]], [[467, 466], [133, 133]]),
    "celeba": ([[3520, 3280], [1120, 68]], [[1720, 1670], [575, 36]]),
    "multinli": ([[1680, 320], [1955, 45], [1943, 57]], [[1120, 210], [1305, 29], [1295, 38]]),
    "civilcomments": ([[4400, 2690], [380, 530]], [[2200, 1345], [190, 265]]),
    # Of as many sentences as there are.
    "waterbirds-text": ([[1749, 92], [28, 528]], [[233, 233], [66, 66]]),
    "civilcomments-text": ([[1100, 672], [95, 132]], [[550, 336], [47, 66]]),
    "rare": ([[3400, 3400], [594, 594]], [[1695, 1695], [305, 306]]),
}
# Test samples of each group of these.
OF_GROUP = 450
OF_GROUP_TEXT = 150

FOUR = {"train": 6000, "val": 16000, "test": 4000}
FIVE = {"train": 7500, "val": 20000, "test": 5000}
TEN = {"train": 12000, "val": 40000, "test": 10000}
# Sentences of the rarest group are few.
TEXT = {"train": 1600, "val": 2000, "test": 800}

POOLS: tuple[Pool, ...] = (
    # Two look-alike classes, from no bias to almost total bias.
    _pair("coat-dress-99", "tune", 0.99, ("coat", "dress"), (0, 1)),
    _pair("sandal-sneaker-98", "tune", 0.98, ("sandal", "sneaker"), (2, 7)),
    _pair("pullover-coat-97", "tune", 0.97, ("pullover", "coat"), (3, 8)),
    _pair("shirt-pullover-90", "tune", 0.90, ("shirt", "pullover"), (1, 7)),
    _pair("coat-dress-50", "tune", 0.50, ("coat", "dress"), (0, 1)),
    _pair("shirt-tshirt-50", "tune", 0.50, ("shirt", "t-shirt"), (4, 9)),
    _pair("bag-sneaker-70", "tune", 0.70, ("bag", "sneaker"), (5, 6)),
    # Classes so far apart that even a biased model errs on few.
    _pair("bag-dress-95", "tune", 0.95, ("bag", "dress"), (2, 9), 3),
    _pair("sandal-bag-98", "tune", 0.98, ("sandal", "bag"), (1, 5), 3),
    _pair("trouser-tshirt-97", "tune", 0.97, ("trouser", "t-shirt"), (3, 8), 3),
    _pair("four-95-b", "tune", 0.95, ("trouser", "bag", "sneaker", "sandal"), (2, 4, 6, 9), 3, **FOUR),
    # What the rules that keep the base head were set anew on.
    _pair("shirt-coat-98", "tune", 0.98, ("shirt", "coat"), (2, 6), 4),
    _pair("tshirt-pullover-95", "tune", 0.95, ("t-shirt", "pullover"), (4, 7), 4),
    _pair("dress-shirt-90", "tune", 0.90, ("dress", "shirt"), (1, 5), 4),
    _pair("pullover-shirt-50", "tune", 0.50, ("pullover", "shirt"), (3, 6), 4),
    _pair("four-97-c", "tune", 0.97, ("sneaker", "shirt", "dress", "bag"), (0, 2, 5, 8), 4, **FOUR),
    _pair("four-95-c", "tune", 0.95, ("sandal", "ankle-boot", "trouser", "t-shirt"), (1, 4, 7, 9), 4, **FOUR),
    _pair("five-20-b", "tune", 0.20, ("coat", "shirt", "sandal", "bag", "sneaker"), (0, 3, 5, 6, 9), 4, **FIVE),
    _pair("two-attributes-95", "tune", 0.95, ("t-shirt", "shirt"), (2, 7), 4, second=True),
    # Several look-alike classes without a bias.
    _pair("four-25-d", "tune", 0.25, ("shirt", "dress", "pullover", "trouser"), (0, 2, 5, 9), 8, **FOUR),
    _pair("four-25-e", "tune", 0.25, ("t-shirt", "dress", "coat", "bag"), (1, 3, 6, 8), 8, **FOUR),
    _pair("four-25-f", "tune", 0.25, ("sandal", "pullover", "ankle-boot", "shirt"), (2, 3, 4, 7), 8, **FOUR),
    _pair("five-20-c", "tune", 0.20, ("t-shirt", "pullover", "dress", "shirt", "ankle-boot"), (1, 5, 6, 8, 9), 8, **FIVE),
    _pair("five-20-d", "tune", 0.20, ("pullover", "coat", "dress", "sandal", "sneaker"), (0, 2, 4, 7, 8), 8, **FIVE),
    _pair("five-20-e", "tune", 0.20, ("t-shirt", "coat", "shirt", "trouser", "bag"), (0, 1, 3, 6, 9), 8, **FIVE),
    _pair("sneaker-boot-99", "report", 0.99, ("sneaker", "ankle-boot"), (3, 5), 1),
    _pair("tshirt-dress-99", "report", 0.99, ("t-shirt", "dress"), (0, 6), 1),
    _pair("pullover-shirt-98", "report", 0.98, ("pullover", "shirt"), (1, 9), 1),
    _pair("sandal-boot-98", "report", 0.98, ("sandal", "ankle-boot"), (4, 8), 1),
    _pair("coat-shirt-97", "report", 0.97, ("coat", "shirt"), (0, 1), 1),
    _pair("trouser-dress-97", "report", 0.97, ("trouser", "dress"), (2, 3), 2),
    _pair("tshirt-shirt-95", "report", 0.95, ("t-shirt", "shirt"), (6, 9), 2),
    _pair("coat-pullover-90", "report", 0.90, ("coat", "pullover"), (5, 8), 2),
    _pair("bag-shirt-95", "report", 0.95, ("bag", "shirt"), (0, 4), 2),
    _pair("pullover-coat-50", "report", 0.50, ("pullover", "coat"), (1, 7), 1),
    _pair("sandal-sneaker-50", "report", 0.50, ("sandal", "sneaker"), (0, 1), 2),
    _pair("tshirt-pullover-50", "report", 0.50, ("t-shirt", "pullover"), (2, 8), 1),
    _pair("shirt-coat-60", "report", 0.60, ("shirt", "coat"), (3, 7), 2),
    # More classes.
    _pair("four-97", "tune", 0.97, ("t-shirt", "pullover", "dress", "coat"), (0, 1, 2, 3), **FOUR),
    _pair("four-25", "tune", 0.25, ("t-shirt", "pullover", "coat", "shirt"), (4, 5, 6, 7), **FOUR),
    _pair("five-97", "tune", 0.97, ("sandal", "sneaker", "ankle-boot", "bag", "dress"), (0, 1, 2, 3, 4), **FIVE),
    _pair("four-97-b", "report", 0.97, ("trouser", "dress", "coat", "shirt"), (5, 6, 7, 8), 1, **FOUR),
    _pair("four-95", "report", 0.95, ("sandal", "sneaker", "ankle-boot", "bag"), (1, 3, 5, 7), 2, **FOUR),
    _pair("four-25-b", "report", 0.25, ("dress", "coat", "sandal", "sneaker"), (0, 2, 4, 6), 1, **FOUR),
    _pair("five-97-b", "report", 0.97, ("t-shirt", "trouser", "pullover", "dress", "coat"), (5, 6, 7, 8, 9), 1, **FIVE),
    _pair("five-20", "report", 0.20, ("t-shirt", "trouser", "pullover", "dress", "coat"), (0, 1, 2, 3, 4), 2, **FIVE),
    _pair("ten-97", "tune", 0.97, dominoes.ITEMS, range(10), **TEN),
    _pair("ten-95", "report", 0.95, dominoes.ITEMS, (3, 1, 4, 0, 5, 9, 2, 6, 8, 7), 1, **TEN),
    _pair("ten-10", "report", 0.10, dominoes.ITEMS, (9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 2, **TEN),
    # Sentences: the source gives the sentiment away.
    Pool("movie-editorial-95", "tune", "minilm", 0.95, ("positive", "negative"), ("movie", "editorial"), **TEXT),
    _text("tweet-product-95", "report", 0.95, ("tweet", "product"), 1),
    _text("movie-tweet-90", "report", 0.90, ("movie", "tweet"), 2, val=1500),
    _text("editorial-product-95", "report", 0.95, ("editorial", "product"), 1),
    Pool("movie-editorial-50", "tune", "minilm", 0.50, ("positive", "negative"), ("movie", "editorial"), 1, **TEXT),
    _text("tweet-product-50", "report", 0.50, ("tweet", "product"), 2),
    _text("movie-product-95", "tune", 0.95, ("movie", "product"), 4),
    _text("tweet-editorial-90", "tune", 0.90, ("tweet", "editorial"), 4, val=1500),
    _text("product-tweet-50", "tune", 0.50, ("product", "tweet"), 4),
    # A pretrained encoder, frozen.
    Pool("lite-coat-dress-95", "tune", "efficientnet", 0.95, ("coat", "dress"), (2, 5), 0, 3000, 4000, 2000),
    Pool("lite-pullover-coat-95", "tune", "efficientnet", 0.95, ("pullover", "coat"), (1, 6), 4, 3000, 4000, 2000),
    Pool("lite-shirt-pullover-95", "report", "efficientnet", 0.95, ("shirt", "pullover"), (0, 8), 1, 3000, 4000, 2000),
    # Made after every constant but PLAINLY_BETTER of stages.evidence and the readings of more than two classes was set, and
    # measured before and after either.
    _pair("pullover-dress-97", "fresh", 0.97, ("pullover", "dress"), (0, 9), 5),
    _pair("shirt-dress-95", "fresh", 0.95, ("shirt", "dress"), (4, 6), 5),
    _pair("coat-tshirt-99", "fresh", 0.99, ("coat", "t-shirt"), (1, 3), 5),
    _pair("tshirt-dress-50", "fresh", 0.50, ("t-shirt", "dress"), (2, 5), 5),
    _pair("four-96", "fresh", 0.96, ("t-shirt", "shirt", "sandal", "bag"), (1, 4, 7, 8), 5, **FOUR),
    _text("product-movie-95", "fresh", 0.95, ("product", "movie"), 5),
    _text("editorial-tweet-50", "fresh", 0.50, ("editorial", "tweet"), 5),
    # Made after the readings.
    _pair("four-97-d", "fresh", 0.97, ("pullover", "sandal", "dress", "bag"), (0, 3, 6, 9), 6, **FOUR),
    _pair("five-95", "fresh", 0.95, ("trouser", "coat", "sneaker", "shirt", "ankle-boot"), (1, 2, 4, 7, 8), 6, **FIVE),
    # Made last: what was chosen after them is in docs/method-choices.md.
    _pair("pullover-tshirt-94", "fresh", 0.94, ("pullover", "t-shirt"), (9, 3), 7),
    _pair("boot-sneaker-96", "fresh", 0.96, ("ankle-boot", "sneaker"), (6, 1), 7),
    _pair("shirt-dress-97", "fresh", 0.97, ("shirt", "dress"), (8, 0), 7),
    _pair("dress-coat-50", "fresh", 0.50, ("dress", "coat"), (5, 7), 7),
    _pair("shirt-pullover-50", "fresh", 0.50, ("shirt", "pullover"), (0, 4), 7),
    _pair("four-95-d", "fresh", 0.95, ("t-shirt", "dress", "shirt", "sneaker"), (3, 5, 6, 8), 7, **FOUR),
    _pair("four-25-c", "fresh", 0.25, ("pullover", "coat", "bag", "ankle-boot"), (1, 2, 7, 9), 7, **FOUR),
    # Made after the bounds of more than two classes were set anew on tune's look-alike ones.
    _pair("four-25-g", "fresh", 0.25, ("t-shirt", "shirt", "ankle-boot", "bag"), (0, 4, 6, 9), 9, **FOUR),
    _pair("five-20-f", "fresh", 0.20, ("dress", "shirt", "coat", "sneaker", "ankle-boot"), (1, 2, 3, 5, 8), 9, **FIVE),
    _pair("four-96-b", "fresh", 0.96, ("pullover", "dress", "sneaker", "bag"), (1, 3, 7, 8), 9, **FOUR),
    _pair("five-95-b", "fresh", 0.95, ("t-shirt", "coat", "trouser", "sandal", "ankle-boot"), (0, 2, 5, 6, 9), 9, **FIVE),
    # The group sizes of the benchmarks that people know. What stages.auto does of a class that is neglected, and where a
    # classifier takes the mixture's place, was chosen on tune's; the others were made then.
    _shaped("waterbirds-1", "tune", "waterbirds", ("coat", "dress"), (0, 1), 30),
    _shaped("waterbirds-2", "tune", "waterbirds", ("shirt", "pullover"), (4, 9), 31),
    _shaped("celeba-1", "tune", "celeba", ("coat+dress", "shirt"), (2, 7), 32),
    _shaped("celeba-2", "tune", "celeba", ("sandal+bag", "sneaker"), (3, 8), 33),
    _shaped("multinli-1", "tune", "multinli", ("t-shirt", "pullover", "dress"), (5, 6), 34),
    _shaped("multinli-2", "tune", "multinli", ("coat", "shirt", "bag"), (1, 9), 35),
    _shaped("civilcomments-1", "tune", "civilcomments", ("t-shirt+trouser", "shirt"), (0, 5), 37),
    # One more with CelebA's; and with as many rare samples, but no attribute that goes with them, for what a neglected class
    # is repaired by.
    _shaped("celeba-5", "tune", "celeba", ("pullover+coat", "shirt"), (0, 3), 62),
    _shaped("rare-1", "tune", "rare", ("coat+dress", "shirt"), (2, 7), 64),
    _shaped("rare-2", "tune", "rare", ("t-shirt+pullover", "shirt"), (1, 4), 65),
    _shaped("waterbirds-3", "fresh", "waterbirds", ("t-shirt", "dress"), (3, 8), 41),
    _shaped("waterbirds-4", "fresh", "waterbirds", ("sneaker", "ankle-boot"), (0, 6), 42),
    _shaped("celeba-3", "fresh", "celeba", ("pullover+shirt", "t-shirt"), (5, 9), 43),
    _shaped("celeba-4", "fresh", "celeba", ("ankle-boot+bag", "sandal"), (1, 4), 44),
    _shaped("multinli-3", "fresh", "multinli", ("pullover", "coat", "dress"), (2, 8), 45),
    _shaped("multinli-4", "fresh", "multinli", ("sneaker", "sandal", "ankle-boot"), (0, 7), 46),
    _shaped("civilcomments-3", "fresh", "civilcomments", ("coat+trouser", "dress"), (3, 6), 47),
    _shaped("civilcomments-4", "fresh", "civilcomments", ("sneaker+bag", "ankle-boot"), (1, 5), 48),
    Pool(
        "waterbirds-text", "fresh", "minilm", 0.0, ("positive", "negative"), ("movie", "editorial"), 51,
        shape="waterbirds-text",
    ),
    Pool(
        "civilcomments-text", "fresh", "minilm", 0.0, ("positive", "negative"), ("movie", "product"), 52,
        shape="civilcomments-text",
    ),
    # Made after other biases had taken the place of plain retraining for a neglected class.
    _shaped("celeba-6", "fresh", "celeba", ("sneaker+sandal", "ankle-boot"), (2, 9), 61),
    _shaped("celeba-7", "fresh", "celeba", ("t-shirt+dress", "shirt"), (6, 8), 63),
    _shaped("rare-3", "fresh", "rare", ("sandal+bag", "sneaker"), (3, 8), 66),
    # Made after more than two classes had come to be searched from the base head's doubts.
    _pair("four-96-c", "fresh", 0.96, ("coat", "sandal", "t-shirt", "trouser"), (0, 3, 5, 8), 71, **FOUR),
    _pair("five-95-c", "fresh", 0.95, ("dress", "bag", "shirt", "sneaker", "pullover"), (1, 4, 6, 7, 9), 72, **FIVE),
    # What a repair that is dear and the training split's say were set on.
    _pair("pullover-coat-50-b", "tune", 0.50, ("pullover", "coat"), (0, 1), 101, val=4000),
    _pair("shirt-tshirt-50-b", "tune", 0.50, ("shirt", "t-shirt"), (3, 5), 102, val=4000),
    _pair("pullover-shirt-50-b", "tune", 0.50, ("pullover", "shirt"), (6, 9), 103, val=4000),
    _pair("coat-shirt-50", "tune", 0.50, ("coat", "shirt"), (9, 3), 104, val=4000),
    _pair("tshirt-dress-50-b", "tune", 0.50, ("t-shirt", "dress"), (2, 3), 105, val=4000),
    _pair("dress-coat-50-b", "tune", 0.50, ("dress", "coat"), (5, 7), 106, val=4000),
    _pair("sandal-sneaker-50-b", "tune", 0.50, ("sandal", "sneaker"), (8, 1), 107, val=4000),
    _pair("sneaker-boot-50", "tune", 0.50, ("sneaker", "ankle-boot"), (1, 5), 108, val=4000),
    _pair("tshirt-pullover-50-b", "tune", 0.50, ("t-shirt", "pullover"), (4, 5), 109, val=4000),
    _pair("dress-shirt-50", "tune", 0.50, ("dress", "shirt"), (7, 9), 110, val=4000),
    _pair("pullover-dress-50", "tune", 0.50, ("pullover", "dress"), (0, 3), 111, val=4000),
    _pair("bag-shirt-50", "tune", 0.50, ("bag", "shirt"), (3, 7), 112, val=4000),
    _pair("sandal-boot-50", "tune", 0.50, ("sandal", "ankle-boot"), (6, 7), 113, val=4000),
    _pair("coat-tshirt-50", "tune", 0.50, ("coat", "t-shirt"), (9, 1), 114, val=4000),
    _pair("trouser-dress-50", "tune", 0.50, ("trouser", "dress"), (2, 5), 115, val=4000),
    _pair("pullover-coat-70", "tune", 0.70, ("pullover", "coat"), (5, 7), 401, val=5000),
    _pair("shirt-tshirt-80", "tune", 0.80, ("shirt", "t-shirt"), (8, 0), 402, val=5000),
    _pair("pullover-shirt-90", "tune", 0.90, ("pullover", "shirt"), (1, 3), 403, val=5000),
    _pair("coat-shirt-95", "tune", 0.95, ("coat", "shirt"), (4, 6), 404, val=5000),
    _pair("tshirt-dress-70", "tune", 0.70, ("t-shirt", "dress"), (7, 9), 405, val=5000),
    _text("movie-editorial-50-b", "tune", 0.50, ("movie", "editorial"), 201),
    _text("movie-editorial-90", "tune", 0.90, ("movie", "editorial"), 221, val=1500),
    _text("product-tweet-50-b", "tune", 0.50, ("product", "tweet"), 202),
    _text("product-tweet-90", "tune", 0.90, ("product", "tweet"), 222, val=1500),
    _text("movie-product-50", "tune", 0.50, ("movie", "product"), 203),
    _text("movie-product-90", "tune", 0.90, ("movie", "product"), 223, val=1500),
    _text("tweet-editorial-50", "tune", 0.50, ("tweet", "editorial"), 204),
    _text("tweet-editorial-90-b", "tune", 0.90, ("tweet", "editorial"), 224, val=1500),
    _text("editorial-product-50", "tune", 0.50, ("editorial", "product"), 205),
    # Made after these.
    _pair("pullover-shirt-50-c", "fresh", 0.50, ("pullover", "shirt"), (4, 8), 501),
    _pair("coat-pullover-50", "fresh", 0.50, ("coat", "pullover"), (2, 3), 502),
    _pair("shirt-tshirt-50-c", "fresh", 0.50, ("shirt", "t-shirt"), (0, 7), 503),
    _pair("sneaker-sandal-50", "fresh", 0.50, ("sneaker", "sandal"), (1, 6), 504),
    _text("product-tweet-50-c", "fresh", 0.50, ("product", "tweet"), 511),
    _text("tweet-movie-50", "fresh", 0.50, ("tweet", "movie"), 512),
    _text("editorial-product-50-b", "fresh", 0.50, ("editorial", "product"), 513),
    # Seeds and pairs of their own, and models that are biased a little: what showed that the minority of these may be the
    # hard part of the true one, and what plain retraining mends was set on.
    _pair("coat-pullover-92", "tune", 0.92, ("coat", "pullover"), (3, 6), 601, val=5000),
    _pair("shirt-coat-90", "tune", 0.90, ("shirt", "coat"), (7, 1), 602, val=5000),
    _pair("tshirt-shirt-97", "tune", 0.97, ("t-shirt", "shirt"), (0, 5), 603, val=5000),
    _pair("dress-tshirt-95", "tune", 0.95, ("dress", "t-shirt"), (8, 4), 604, val=5000),
    _pair("sandal-sneaker-95", "tune", 0.95, ("sandal", "sneaker"), (2, 9), 605, val=5000),
    _pair("boot-sandal-90", "tune", 0.90, ("ankle-boot", "sandal"), (6, 7), 606, val=5000),
    _pair("pullover-shirt-95", "tune", 0.95, ("pullover", "shirt"), (1, 4), 607, val=5000),
    _pair("shirt-tshirt-85", "tune", 0.85, ("shirt", "t-shirt"), (9, 2), 608, val=5000),
    _text("product-tweet-95", "tune", 0.95, ("product", "tweet"), 611, val=1400),
    _text("movie-editorial-90-b", "tune", 0.90, ("movie", "editorial"), 612, val=1500),
    _text("tweet-movie-95", "tune", 0.95, ("tweet", "movie"), 613),
    _text("editorial-product-90", "tune", 0.90, ("editorial", "product"), 614, val=1500),
    _pair("sandal-boot-85", "tune", 0.85, ("sandal", "ankle-boot"), (3, 0), 701, val=4000),
    _pair("sneaker-boot-90", "tune", 0.90, ("sneaker", "ankle-boot"), (2, 8), 702, val=4000),
    _pair("bag-dress-90", "tune", 0.90, ("bag", "dress"), (5, 4), 703, val=4000),
    _pair("trouser-dress-90", "tune", 0.90, ("trouser", "dress"), (9, 7), 704, val=4000),
    _pair("sandal-sneaker-90", "tune", 0.90, ("sandal", "sneaker"), (1, 3), 705, val=4000),
    _pair("pullover-dress-85", "tune", 0.85, ("pullover", "dress"), (6, 2), 706, val=4000),
    _pair("boot-sandal-95", "tune", 0.95, ("ankle-boot", "sandal"), (8, 5), 707, val=4000),
    _pair("tshirt-dress-85", "tune", 0.85, ("t-shirt", "dress"), (0, 9), 708, val=4000),
    _pair("coat-dress-80", "tune", 0.80, ("coat", "dress"), (4, 1), 709, val=4000),
    _pair("bag-coat-90", "tune", 0.90, ("bag", "coat"), (7, 6), 710, val=4000),
    _pair("sneaker-sandal-80", "tune", 0.80, ("sneaker", "sandal"), (9, 0), 711, val=4000),
    _pair("trouser-coat-85", "tune", 0.85, ("trouser", "coat"), (2, 5), 712, val=4000),
    # Made after that, biased a little, too.
    _pair("tshirt-coat-85", "fresh", 0.85, ("t-shirt", "coat"), (1, 8), 721, val=4000),
    _pair("boot-bag-90", "fresh", 0.90, ("ankle-boot", "bag"), (2, 4), 722, val=4000),
    _pair("sandal-sneaker-80", "fresh", 0.80, ("sandal", "sneaker"), (5, 7), 723, val=4000),
    _pair("dress-pullover-90", "fresh", 0.90, ("dress", "pullover"), (0, 6), 724, val=4000),
    # Two attributes at once.
    _pair("two-attributes-97", "report", 0.97, ("coat", "dress"), (0, 1), 3, second=True),
)  # fmt: skip

SOURCES = {
    "movie": "movieReviewSnippets",
    "editorial": "nytEditorialSnippets",
    "product": "amazonReviewSnippets",
    "tweet": "tweets",
}


def make(pool: Pool) -> Path:
    """The pool's folder: features of train, val and test, and head.safetensors; made where it is not there yet.

    With a `second` attribute, the attributes number the four combinations.
    """
    if not (pool.folder / "head.safetensors").exists():
        with outputs() as files, reproducible(pool.seed):
            splits, classifier = {"resnet18": _resnet18, "efficientnet": _efficientnet, "minilm": _minilm}[pool.kind](pool)
            device = resolve_device()
            encode, head, _ = cut(classifier, splits["val"], device)
            for name in ("train", "val", "test"):
                features = _features(encode, classifier, splits[name], device)
                tensors = {
                    "features": features,
                    "labels": torch.from_numpy(splits[name].labels),
                    "attributes": torch.from_numpy(splits[name].attributes),
                }
                files.artifact("features", pool.folder / f"{name}.safetensors", tensors, Metadata())
            weight, bias = head_tensors(head)
            files.artifact("head", pool.folder / "head.safetensors", {"weight": weight, "bias": bias}, Metadata())
    return pool.folder


def _features(encode: Any, classifier: models.Classifier, split: Split, device: torch.device) -> torch.Tensor:
    batches = encoded(
        encode, classifier, split, batch_size=256, workers=0, device=device, dtype=torch.float32, what=""
    )  # fmt: skip
    return torch.cat([features.cpu() for features, _ in batches])


def _dominoes(pool: Pool) -> dict[str, Split]:
    if pool.shape is not None:
        return {name: _in_groups(pool, name) for name in ("train", "val", "test")}
    classes = len(pool.classes)
    # A pool of more than two classes holds half of each class with its own attribute: enough for any bias above a half,
    # and for a balanced draw.
    options: Mapping[str, Any] = {
        "root": str(DATA), "items": pool.classes, "digits": pool.attributes, "seed": pool.seed, "train_size": pool.train,
        "val_size": pool.val, "test_size": pool.test, "train_bias": pool.bias, "val_bias": 0.5, "test_bias": 1 / classes,
    }  # fmt: skip
    splits = {name: dominoes.read(name, **options) for name in ("train", "val", "test")}
    if pool.second:
        return {name: _with_bar(split, pool, name) for name, split in splits.items()}
    return splits


def _in_groups(pool: Pool, split: str) -> Split:
    """Dominoes with the pool's group sizes; train and val share no item and no digit."""
    counts, train, val = (pool.group_sizes(name) for name in (split, "train", "val"))
    random = np.random.RandomState([pool.seed, ("train", "val", "test").index(split)])
    digits, of_digit = dominoes.by_class(DATA, "MNIST", split, pool.attributes, int(train.sum()), int(val.sum()))
    of_class = []
    for label, name in enumerate(pool.classes):
        kinds = [dominoes.ITEMS.index(item) for item in name.split("+")]
        cut = int(train[label].sum()), int(val[label].sum())
        items, of_kind = dominoes.by_class(DATA, "FashionMNIST", split, kinds, *cut)
        # As many of each kind.
        members = random.permutation(np.concatenate([kind[: min(map(len, of_kind))] for kind in of_kind]))
        if counts[label].sum() > len(members):
            raise SystemExit(
                f"benchmarks.pools: {pool.name} asks for {counts[label].sum()} images of {name}, and there are "
                f"{len(members)}."
            )
        of_class.append(members)
    attributes = [np.repeat(np.arange(counts.shape[1]), sizes) for sizes in counts]
    pairs = random.permutation(dominoes.paired(of_class, of_digit, attributes, random))
    return dominoes.composed(DATA, split, items, digits, pairs, class_names=pool.classes, attributes=pool.attributes)


def _with_bar(split: Split, pool: Pool, name: str) -> Split:
    """The split with a bright bar at the left (0) or right (1) edge; attributes become digit + 2 * bar."""
    random = np.random.RandomState([pool.seed, 7, len(name)])
    agrees = random.rand(len(split)) < {"train": pool.bias}.get(name, 0.5)
    bars = np.where(agrees, split.labels, 1 - split.labels)
    return replace(split, attributes=split.attributes + 2 * bars, load=_Bar(split.load, bars))


@dataclass(frozen=True)
class _Bar:
    load: Callable[[int], Any]
    bars: np.ndarray

    def __call__(self, position: int) -> Any:
        image = self.load(position).copy()
        left = 25 if self.bars[position] else 0
        image.paste((255, 255, 255), (left, 0, left + 3, 56))
        return image


def _resnet18(pool: Pool) -> tuple[dict[str, Split], models.Classifier]:
    splits = _dominoes(pool)
    classifier = models.build(
        source="torchvision", architecture="resnet18", weights=None, image_size=[56, 28], classes=len(pool.classes)
    )
    # The demo's recipe.
    train(classifier, splits["train"], epochs=3, batch_size=32, learning_rate=0.003)
    return splits, classifier


def _efficientnet(pool: Pool) -> tuple[dict[str, Split], models.Classifier]:
    sys.path.insert(0, str(REPOSITORY / "demos/image"))
    splits = _dominoes(pool)
    classifier = models.build(source="callable", function="backbone:efficientnet_lite0", classes=len(pool.classes))
    device = resolve_device()
    encode, head, _ = cut(classifier, splits["train"], device)
    x = _features(encode, classifier, splits["train"], device)
    y = torch.from_numpy(splits["train"].labels)
    # A linear probe as people train it: AdamW, a little weight decay.
    layer = head.cpu()
    updates = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(50):
        for rows in torch.randperm(len(x)).split(64):
            loss = torch.nn.functional.cross_entropy(layer(x[rows]), y[rows])
            updates.zero_grad()
            loss.backward()
            updates.step()
    head.to(device)
    return splits, classifier


def _minilm(pool: Pool) -> tuple[dict[str, Split], models.Classifier]:
    encoder = CACHE / "encoder"
    if not encoder.exists():
        sys.path.insert(0, str(REPOSITORY / "demos/text"))
        import_module("unpack_encoder").main(encoder)
    table = CACHE / f"{pool.name}.csv"
    _sentences(pool, table)
    options: Mapping[str, Any] = {"format": "csv", "file": str(table), "text_column": "text", "attribute_column": "source",
                                  "class_names": list(pool.classes), "attribute_names": list(pool.attributes)}  # fmt: skip
    splits = {name: open_split(name, **options) for name in ("train", "val", "test")}
    classifier = models.build(source="transformers", name=str(encoder), classes=2, max_length=64)
    # The text demo's recipe.
    train(classifier, splits["train"], epochs=3, batch_size=32, optimizer="adamw", learning_rate=5e-5,
          weight_decay=0.01, schedule="linear")  # fmt: skip
    return splits, classifier


def _sentences(pool: Pool, table: Path) -> None:
    """Sentences with a clear mean rating (at least 0.5 from zero), no sentence in two splits."""
    random = np.random.RandomState([pool.seed, 11])
    found: dict[tuple[int, int], list[str]] = {}
    for number, source in enumerate(pool.attributes):
        path = DATA / f"sentiment/{SOURCES[source]}_GroundTruth.txt"
        for line in path.read_text(encoding="latin-1").splitlines():
            _, rating, text = line.split("\t")
            if abs(float(rating)) >= 0.5 and text.strip():
                found.setdefault((int(float(rating) < 0), number), []).append(text.strip())
    rows: list[tuple[str, int, int, str]] = []
    for sentences in found.values():
        random.shuffle(sentences)
    for name, size, bias in (("test", pool.test, 0.5), ("val", pool.val, 0.7), ("train", pool.train, pool.bias)):
        for (label, source), sentences in sorted(found.items()):
            if pool.shape is not None:
                count = int(pool.group_sizes(name)[label, source])
            else:
                count = round(size / 2 * (bias if label == source else 1 - bias))
            for _ in range(count):
                rows.append((sentences.pop(), label, source, name))
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label", "source", "split"])
        writer.writerows(rows)


def main(names: Sequence[str]) -> None:
    unknown = set(names) - {pool.name for pool in POOLS}
    if unknown:
        raise SystemExit(f"benchmarks.pools: no pool is named {', '.join(sorted(unknown))}.")
    for pool in POOLS:
        if not names or pool.name in names:
            started = time.monotonic()
            make(pool)
            sys.stderr.write(f"{pool.name}: {time.monotonic() - started:.0f} s\n")


if __name__ == "__main__":
    main(sys.argv[1:])
