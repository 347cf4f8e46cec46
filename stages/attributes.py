"""Pseudo-attributes: the class whose spurious attribute each sample seems to carry, from features and class labels alone.

NSF's identify (Li et al., section 3.1) finds samples that a spurious attribute drags across to another class's centroid: a
precise and incomplete minority. Here the same picture is made a model. A sample of class y that carries the attribute of
class a lies at c_y + s_a, its class's place moved by the attribute's shift, with a spread that all samples share. Shifts
that are the same for every class tell an attribute from hard samples, and are learned from all classes together, so that a
dozen samples of a kind are enough. docs/method.md has the measurements.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.logistic import FOLDS, Moments, balanced, by_own_fold, folds, held_out
from stages.passes import blocks, group_means, group_sums
from stages.runtime import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

# How far the spread's covariance is shrunk toward its diagonal, for there are hardly more samples than features.
SHRINKAGE = 0.6
# Rounds at most, and the share of samples below which a round has changed nothing.
ROUNDS = 8
SETTLED = 0.002
# What keeps the equations for c and s solvable, in samples: c + v and s - v say the same, and a name may have no samples.
RIDGE = 1e-6
# The share of samples drawn to another class from which on a classifier of the names takes the model's place: the means of
# classes then lie between the attributes and tell them apart badly, and it has enough to learn from.
PLENTY = 0.1
# How much likelier, in nats a sample out of fold, the features must be under that classifier's names to be taken elsewhere:
# it gives more samples a name of their own, which is likelier by itself.
CLEARLY = 0.02
# Of that classifier: its penalty, its rounds at most, and how much the class's own shares of the names count in the last
# round. None finds more of the minority, all of it is more precise; half the log-odds.
PENALTY = 0.3
CLASSIFIER_ROUNDS = 6
PRIOR = 0.5


@dataclass(frozen=True)
class Naming:
    """What names a sample x of class y: the highest of x @ weight.T + offsets[y].

    Attributes:
        weight: (C, d) float32.
        offsets: (C, C) float32, class x name.
    """

    weight: "Tensor"
    offsets: "Tensor"

    def names(self, rows: "Tensor", labels: "Tensor") -> "Tensor":
        """The names (b,) int64 of rows (b, d) float32 of these classes (b,)."""
        return (rows @ self.weight.T + self.offsets[labels]).argmax(dim=1)


def pseudo_attributes(
    features: "Tensor",
    labels: "Tensor",
    nearest: "Tensor",
    *,
    classes: int,
    scaling: Moments,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple["Tensor", Naming]:
    """The class (n,) int64 whose spurious attribute each sample seems to carry, and what names other samples so.

    No sample has a say in its own name: what names it is learned from the other folds.

    Args:
        features: (n, d) float32.
        labels: (n,) int64 in [0, classes), each class with at least one sample.
        nearest: (n,) int64, the class of the nearest centroid, from `identify`.
        classes: C.
        scaling: moments of the features.
        seed: of the folds.
    """
    classified = _classified(features, labels, nearest, classes, scaling, seed, progress)
    if float((nearest != labels).double().mean()) >= PLENTY:
        return classified
    mixture = _Mixture.of(features, labels, classes, scaling, seed)
    # The nearest centroid's word, and nobody's: from there, c and s are half of each class's mean.
    found = [mixture.settle(start, progress) for start in (nearest, labels)]
    attributes, naming, likely = max(found, key=lambda one: one[2])
    # Where most of the minority lies near its own centroid, only a classifier gets there from the few that do not.
    if mixture.likelihood(classified[0]) > likely + CLEARLY:
        attributes, naming = classified
    return attributes, naming


@dataclass(frozen=True)
class _Mixture:
    """z | y, a ~ N(c_y + s_a, one covariance) of standardised features z, fitted by rounds of naming and averaging.

    Attributes:
        precision: (d, d) float32, the inverse of the covariance around the classes' means, shrunk. Around c_y + s_a it would
            be smaller, and biased: a sample would pull it toward its own name.
    """

    features: "Tensor"
    labels: "Tensor"
    classes: int
    scaling: Moments
    seed: int
    precision: "Tensor"

    @classmethod
    def of(cls, features: "Tensor", labels: "Tensor", classes: int, scaling: Moments, seed: int) -> "_Mixture":
        import torch

        means = (group_means(features, labels, classes) - scaling.mean) / scaling.deviation
        covariance = torch.zeros(features.shape[1], features.shape[1], device=features.device)
        for rows, members in blocks(features, labels):
            # In place, as below: of wide features each block and each (d, d) counts.
            around = (rows - scaling.mean).div_(scaling.deviation).sub_(means[members])
            covariance.addmm_(around.T, around)
        # A feature that does not vary has no say.
        own = (covariance.diagonal() / len(labels)).clamp(min=1e-6)
        covariance *= (1 - SHRINKAGE) / len(labels)
        covariance.diagonal().add_(SHRINKAGE * own)
        torch.linalg.cholesky(covariance.mT, out=covariance.mT)
        return cls(features, labels, classes, scaling, seed, torch.cholesky_inverse(covariance.mT))

    def settle(self, attributes: "Tensor", progress: Progress) -> tuple["Tensor", Naming, float]:
        """Rounds until names stay: the names (n,), the last naming, and how likely the names are."""
        for number in range(ROUNDS):
            progress("find groups", number, ROUNDS + 1)
            # Other folds each round: a sample's mistaken neighbours do not stay the same.
            before = attributes
            attributes, _, _ = self._round(attributes, number)
            if _settled(before, attributes):
                break
        attributes, naming, _ = self._round(attributes, ROUNDS)
        progress("find groups", ROUNDS + 1, ROUNDS + 1)
        return attributes, naming, self.likelihood(attributes)

    def likelihood(self, attributes: "Tensor") -> float:
        """Mean log p(z | y) out of fold, with c, s and shares as these names give them, less a term that all share."""
        # On the same folds, whatever the names.
        return self._round(attributes, ROUNDS + 1)[2]

    def _round(self, attributes: "Tensor", number: int) -> tuple["Tensor", Naming, float]:
        import torch

        fold = folds(len(self.labels), self.seed * (ROUNDS + 2) + number).to(self.labels.device)
        own, moments = self._equations(attributes, fold)
        # Each fold's samples are named by what the others say.
        normal = own.sum(dim=0, keepdim=True) - own
        places = torch.linalg.solve(normal, moments.sum(dim=0, keepdim=True) - moments)
        place, shift = places.split(self.classes, dim=1)
        by_shift, by_place = ((part.float() @ self.precision).double() for part in (shift, place))
        offsets = -(place @ by_shift.mT) - (shift * by_shift).sum(dim=2).unsqueeze(1) / 2
        weight = torch.cat([by_shift, by_place], dim=1) / self.scaling.deviation
        bias = -(weight @ self.scaling.mean.to(torch.float64))
        scores = by_own_fold(self.features, weight.float(), bias.float(), fold).double()
        # log p(z | y, a) + z' P z / 2, in two parts: what the name adds, and what the class alone gives.
        log_shares = _log_shares(self.labels, attributes, self.classes)
        added = scores[:, : self.classes] + offsets[fold, self.labels] + log_shares[self.labels]
        alone = scores[:, self.classes :].gather(1, self.labels.unsqueeze(1)).squeeze(1)
        alone = alone - ((place * by_place).sum(dim=2) / 2)[fold, self.labels]
        likely = float((torch.logsumexp(added, dim=1) + alone).mean())
        levels = offsets.mean(dim=0) + bias[:, : self.classes].mean(dim=0)
        naming = Naming(weight[:, : self.classes].mean(dim=0).float(), (levels + log_shares).float())
        return added.argmax(dim=1), naming, likely

    def _equations(self, attributes: "Tensor", fold: "Tensor") -> tuple["Tensor", "Tensor"]:
        """The normal equations of z = c_y + s_a over each fold: (FOLDS, 2 C, 2 C), (FOLDS, 2 C, d) float64."""
        import torch

        classes, count = self.classes, FOLDS
        cells = (fold * classes + self.labels) * classes + attributes
        sizes = torch.bincount(cells, minlength=count * classes * classes).view(count, classes, classes).double()
        parts = []
        for names, numbers in ((self.labels, sizes.sum(dim=2)), (attributes, sizes.sum(dim=1))):
            sums = group_sums(self.features, fold * classes + names, count * classes).view(count, classes, -1)
            parts.append((sums - numbers.unsqueeze(2) * self.scaling.mean) / self.scaling.deviation)
        upper = torch.cat([torch.diag_embed(sizes.sum(dim=2)), sizes], dim=2)
        lower = torch.cat([sizes.mT, torch.diag_embed(sizes.sum(dim=1))], dim=2)
        normal = torch.cat([upper, lower], dim=1)
        return normal + RIDGE * torch.eye(2 * classes, device=normal.device) / count, torch.cat(parts, dim=1)


def _classified(
    features: "Tensor",
    labels: "Tensor",
    attributes: "Tensor",
    classes: int,
    scaling: Moments,
    seed: int,
    progress: Progress,
) -> tuple["Tensor", Naming]:
    """Names by a logistic regression in which every class x name weighs the same, in rounds.

    So weighed, the label's own features say nothing of the name.
    """
    for number in range(CLASSIFIER_ROUNDS + 1):
        progress("find groups", number, CLASSIFIER_ROUNDS + 1)
        fold = folds(len(labels), seed * (CLASSIFIER_ROUNDS + 2) + number).to(features.device)
        cells = balanced(labels * classes + attributes, classes * classes)
        [logits], heads = held_out(
            features, attributes, cells, fold, classes=classes, penalties=(PENALTY,), scaling=scaling
        )  # fmt: skip
        # The last one only says what the names before it make of the samples.
        if number == CLASSIFIER_ROUNDS:
            break
        before, attributes = attributes, logits.argmax(dim=1)
        if _settled(before, attributes):
            break
    progress("find groups", CLASSIFIER_ROUNDS + 1, CLASSIFIER_ROUNDS + 1)
    log_shares = PRIOR * _log_shares(labels, attributes, classes)
    weight, bias = heads.on_features(scaling)
    naming = Naming(weight.mean(dim=0), (bias.mean(dim=0) + log_shares).float())
    return (logits + log_shares[labels]).argmax(dim=1), naming


def _settled(before: "Tensor", now: "Tensor") -> bool:
    """Whether a round has changed next to no names."""
    return float((now != before).double().mean()) < SETTLED


def _log_shares(labels: "Tensor", attributes: "Tensor", classes: int) -> "Tensor":
    """log of the share of each name in each class, (C, C) float64; half a sample is added to each count."""
    import torch

    counts = torch.bincount(labels * classes + attributes, minlength=classes * classes).view(classes, classes) + 0.5
    return (counts / counts.sum(dim=1, keepdim=True)).double().log()
