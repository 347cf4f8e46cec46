"""The mixture behind pseudo-attributes: a sample of class y with the attribute of class a lies at c_y + s_a.

Its class's place moved by the attribute's shift, with a spread that all samples share. Shifts that are the same for every
class tell an attribute from hard samples, and are learned from all classes together, so that a dozen samples of a kind are
enough. docs/method.md, "Completing the minority", has the measurements.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stages.identify import Identified, assess
from stages.logistic import FOLDS, LEAST_CELL, RARITY, Moments, balanced, by_own_fold, folds, held_out
from stages.passes import blocks, group_means, group_sums
from stages.runtime import Progress

if TYPE_CHECKING:
    from torch import Tensor

# How far the spread's covariance is shrunk toward its diagonal, for there are hardly more samples than features.
SHRINKAGE = 0.6
# From so many times as many features as samples on, no (d, d) matrix is made of it.
WIDE = 4
# Rounds at most, and the share of samples below which a round has changed nothing.
ROUNDS = 8
SETTLED = 0.002
# A feature that does not vary has no say.
LEAST_VARIANCE = 1e-6
# What keeps the equations for c and s solvable, in samples: c + v and s - v say the same, and a name may have no samples.
RIDGE = 1e-6
# Among candidates the likeliest is taken, less what speaks against one attribute for all classes: the nats a sample that are
# lost where other classes' shifts take the place of a class's own, and a mirror (`identify.assess`) above PLAIN_MIRROR.
TRANSFER = 0.5
MIRROR = 0.4
PLAIN_MIRROR = -0.8
# Of the head that is repaired with names, whose errors may lead to better ones.
REPAIR_PENALTY = 3.0
# Classes are held out one by one up to this many, then in as many groups.
CLASS_GROUPS = 10


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


class _Precision(Protocol):
    """The inverse of the shrunk covariance, (d, d)."""

    def times(self, vectors: "Tensor") -> "Tensor":
        """vectors (..., d) float32, times it."""


@dataclass(frozen=True)
class Full:
    """All of it: (d, d) float32."""

    matrix: "Tensor"

    def times(self, vectors: "Tensor") -> "Tensor":
        return vectors @ self.matrix


@dataclass(frozen=True)
class Wide:
    """Of far more features than samples: D^-1 - D^-1 Z' K^-1 Z D^-1 (Woodbury), K = n / (1 - s) + Z D^-1 Z'.

    Attributes:
        around: Z (n, d) float32, the samples around their classes' means.
        diagonal: D (d,), s times the features' variances.
        inverse: K^-1 (n, n).
    """

    around: "Tensor"
    diagonal: "Tensor"
    inverse: "Tensor"

    @classmethod
    def of(cls, around: "Tensor") -> "Wide":
        import torch

        diagonal = SHRINKAGE * around.square().mean(dim=0).clamp(min=LEAST_VARIANCE)
        within = (around / diagonal) @ around.T
        within.diagonal().add_(len(around) / (1 - SHRINKAGE))
        return cls(around, diagonal, torch.cholesky_inverse(torch.linalg.cholesky(within)))

    def times(self, vectors: "Tensor") -> "Tensor":
        scaled = vectors / self.diagonal
        return scaled - (scaled @ self.around.T) @ self.inverse @ self.around / self.diagonal


@dataclass(frozen=True)
class Mixture:
    """z | y, a ~ N(c_y + s_a, one covariance) of standardised features z, fitted by rounds of naming and averaging.

    Attributes:
        precision: the inverse of the covariance around the classes' means, shrunk. Around c_y + s_a it would be smaller, and
            biased: a sample would pull it toward its own name.
        centroids: (C, d) float32, of the features as they are.
        evenness: a sample of a class x name cell of k has k^-evenness of a say in c and s.
    """

    features: "Tensor"
    labels: "Tensor"
    classes: int
    scaling: Moments
    seed: int
    precision: "_Precision"
    centroids: "Tensor"
    evenness: float = 0.0

    @classmethod
    def of(cls, features: "Tensor", labels: "Tensor", classes: int, scaling: Moments, seed: int) -> "Mixture":
        import torch

        centroids = group_means(features, labels, classes)
        # In place, as below: of wide features each block and each (d, d) counts. The sign does not, for all are products.
        around = (centroids[members].sub_(rows).div_(scaling.deviation) for rows, members in blocks(features, labels))
        if features.shape[1] >= WIDE * len(labels):
            return cls(features, labels, classes, scaling, seed, Wide.of(torch.cat(list(around))), centroids)
        covariance = torch.zeros(features.shape[1], features.shape[1], device=features.device)
        for rows in around:
            covariance.addmm_(rows.T, rows)
        own = (covariance.diagonal() / len(labels)).clamp(min=LEAST_VARIANCE)
        covariance *= (1 - SHRINKAGE) / len(labels)
        covariance.diagonal().add_(SHRINKAGE * own)
        # In place, a factor and then the inverse: LAPACK wants the columns in a row.
        columns = covariance.mT
        torch.linalg.cholesky(columns, out=columns)
        torch.cholesky_inverse(columns, out=columns)
        return cls(features, labels, classes, scaling, seed, Full(columns), centroids)

    def nearness(self) -> "Tensor":
        """How near each sample is to the classes' centroids: less its distances, (n, C)."""
        import torch

        # As products, distances would take three times a block; and small results between large ones would keep the
        # memory of those, freed or not.
        result = torch.empty(len(self.labels), self.classes, device=self.features.device)
        for rows, out in blocks(self.features, result):
            torch.neg(torch.cdist(rows, self.centroids, compute_mode="donot_use_mm_for_euclid_dist"), out=out)
        return result

    def settle(self, attributes: "Tensor", progress: Progress) -> tuple["Tensor", Naming]:
        """Rounds until names stay: the names (n,) and the last naming."""
        for number in range(ROUNDS):
            progress("find groups", number, ROUNDS + 1)
            # Other folds each round: a sample's mistaken neighbours do not stay the same.
            before = attributes
            attributes, _, _ = self._round(attributes, number)
            if settled(before, attributes):
                break
        attributes, naming, _ = self._round(_aligned(attributes, self.labels, self.classes), ROUNDS)
        progress("find groups", ROUNDS + 1, ROUNDS + 1)
        return attributes, naming

    def merit(self, attributes: "Tensor") -> float:
        """What candidates are compared by: the likelihood, and whether the shifts are those of one spurious attribute.

        A cluster that some class happens to have makes its features likelier too; no other class's shift explains it.
        """
        found = Identified(self.centroids, attributes, attributes != self.labels)
        mirror = assess(self.features, self.labels, found).mirror or 0.0
        mirrored = -max(PLAIN_MIRROR, min(0.0, mirror))
        return self.likelihood(attributes) + TRANSFER * min(0.0, self.transfer(attributes)) + MIRROR * mirrored

    def transfer(self, attributes: "Tensor") -> float:
        """Mean log p(z | y), with shifts from other classes alone, less that without any attribute."""
        import torch

        groups = min(self.classes, CLASS_GROUPS)
        part = self.labels % groups
        _, shift = self._told_by_others(attributes, part, groups)
        counts = counts_of(self.labels, attributes, self.classes).double()
        sizes = counts.sum(dim=1, keepdim=True)
        means = ((self.centroids - self.scaling.mean) / self.scaling.deviation).double()
        # c_y puts the class's own mean where it is, whatever its names.
        place = means - torch.einsum("ya,gad->gyd", counts / sizes, shift)
        added, alone, _, _ = self._scores(place, shift, part, log_shares_of(self.labels, attributes, self.classes))
        without = (
            (sizes.flatten() / len(self.labels)) @ (self.precision.times(means.float()).double() * means).sum(dim=1) / 2
        )
        return float((torch.logsumexp(added, dim=1) + alone).mean() - without)

    def mistaken(self, attributes: "Tensor") -> "Tensor":
        """What a head that is repaired with these names says of each sample out of fold, (n,).

        Where the names were not the spurious attribute's, the head leans on it all the more, and errs on its minority.
        """
        weights = balanced(self.labels * self.classes + attributes, self.classes**2, RARITY)
        fold = folds(len(self.labels), self.seed).to(self.labels.device)
        [logits], _ = held_out(
            self.features, self.labels, weights, fold,
            classes=self.classes, penalties=(REPAIR_PENALTY,), scaling=self.scaling,
        )  # fmt: skip
        return logits.argmax(dim=1)

    def likelihood(self, attributes: "Tensor") -> float:
        """Mean log p(z | y) out of fold, with c, s and shares as these names give them, less a term that all share."""
        # On the same folds, whatever the names.
        return self._round(attributes, ROUNDS + 1)[2]

    def _round(self, attributes: "Tensor", number: int) -> tuple["Tensor", Naming, float]:
        import torch

        fold = folds(len(self.labels), self.seed * (ROUNDS + 2) + number).to(self.labels.device)
        place, shift = self._told_by_others(attributes, fold, FOLDS)
        log_shares = log_shares_of(self.labels, attributes, self.classes)
        added, alone, weight, levels = self._scores(place, shift, fold, log_shares)
        likely = float((torch.logsumexp(added, dim=1) + alone).mean())
        naming = Naming(weight.mean(dim=0).float(), (levels.mean(dim=0) + log_shares).float())
        return added.argmax(dim=1), naming, likely

    def _scores(
        self, place: "Tensor", shift: "Tensor", part: "Tensor", log_shares: "Tensor"
    ) -> tuple["Tensor", "Tensor", "Tensor", "Tensor"]:
        """log p(z, a | y) + z' P z / 2 in two terms, what the name adds (n, C) and what the class alone gives (n,).

        And what the first comes from: x @ weight.T + levels[y] + log_shares[y] of each part, (P, C, d), (P, C, C).

        Args:
            place, shift: (P, C, d) float64, c and s as samples of each part are to see them.
            part: (n,) int64 in [0, P).
            log_shares: (C, C).
        """
        import torch

        by_shift, by_place = (self.precision.times(where.float()).double() for where in (shift, place))
        offsets = -(place @ by_shift.mT) - (shift * by_shift).sum(dim=2).unsqueeze(1) / 2
        weight = torch.cat([by_shift, by_place], dim=1) / self.scaling.deviation
        bias = -(weight @ self.scaling.mean.to(torch.float64))
        scores = by_own_fold(self.features, weight.float(), bias.float(), part).double()
        added = scores[:, : self.classes] + offsets[part, self.labels] + log_shares[self.labels]
        alone = scores[:, self.classes :].gather(1, self.labels.unsqueeze(1)).squeeze(1)
        alone = alone - ((place * by_place).sum(dim=2) / 2)[part, self.labels]
        return added, alone, weight[:, : self.classes], offsets + bias[:, : self.classes].unsqueeze(1)

    def _told_by_others(self, attributes: "Tensor", part: "Tensor", count: int) -> tuple["Tensor", "Tensor"]:
        """c and s, (P, C, d) float64 each, as the samples of all other parts give them."""
        import torch

        own, moments = self._equations(attributes, part, count)
        normal = own.sum(dim=0, keepdim=True) - own
        places = torch.linalg.solve(normal, moments.sum(dim=0, keepdim=True) - moments)
        return places[:, : self.classes], places[:, self.classes :]

    def _equations(self, attributes: "Tensor", part: "Tensor", count: int) -> tuple["Tensor", "Tensor"]:
        """The normal equations of z = c_y + s_a over each part of the samples: (P, 2 C, 2 C), (P, 2 C, d) float64.

        A sample counts as its class x name cell's size to the power -evenness says.
        """
        import torch

        classes = self.classes
        cells = (part * classes + self.labels) * classes + attributes
        sizes = torch.bincount(cells, minlength=count * classes * classes).view(count, classes, classes).double()
        weights = None
        if self.evenness:
            each = sizes.sum(dim=0).clamp(min=LEAST_CELL) ** -self.evenness
            sizes, weights = sizes * each, each[self.labels, attributes]
        parts = []
        for names, numbers in ((self.labels, sizes.sum(dim=2)), (attributes, sizes.sum(dim=1))):
            sums = group_sums(self.features, part * classes + names, count * classes, weights=weights)
            sums = sums.view(count, classes, -1)
            parts.append((sums - numbers.unsqueeze(2) * self.scaling.mean) / self.scaling.deviation)
        upper = torch.cat([torch.diag_embed(sizes.sum(dim=2)), sizes], dim=2)
        lower = torch.cat([sizes.mT, torch.diag_embed(sizes.sum(dim=1))], dim=2)
        normal = torch.cat([upper, lower], dim=1)
        return normal + RIDGE * torch.eye(2 * classes, device=normal.device) / count, torch.cat(parts, dim=1)


def _aligned(attributes: "Tensor", labels: "Tensor", classes: int) -> "Tensor":
    """The same groups, with names exchanged as long as that gives more samples their own class's name.

    To the model c_y + s_a names are but numbers; that most of a class carries its own attribute says which is which.
    """
    import torch

    counts = counts_of(labels, attributes, classes).cpu()
    names = torch.arange(classes)
    while True:
        own = counts.diagonal()
        gain = counts + counts.T - own - own.unsqueeze(1)
        best = int(gain.argmax())
        first, second = best // classes, best % classes
        if int(gain[first, second]) <= 0:
            return names.to(attributes.device)[attributes]
        exchanged = torch.arange(classes)
        exchanged[first], exchanged[second] = second, first
        counts = counts[:, exchanged]
        names = exchanged[names]


def settled(before: "Tensor", now: "Tensor") -> bool:
    """Whether a round has changed next to no names."""
    return float((now != before).double().mean()) < SETTLED


def log_shares_of(labels: "Tensor", attributes: "Tensor", classes: int) -> "Tensor":
    """log of the share of each name in each class, (C, C) float64; half a sample is added to each count."""
    counts = counts_of(labels, attributes, classes) + 0.5
    return (counts / counts.sum(dim=1, keepdim=True)).double().log()


def counts_of(labels: "Tensor", attributes: "Tensor", classes: int) -> "Tensor":
    """How many samples of each class carry each name, (C, C) int64."""
    import torch

    return torch.bincount(labels * classes + attributes, minlength=classes * classes).view(classes, classes)
