"""What `update.solver: auto` costs at CelebA's validation size, 19,867 x 2,048 float32: seconds, passes and memory.

    python -m benchmarks.cost [--threads N]

Random features with a planted attribute that is hard to tell, so that the search for groups takes its rounds. Aimed at: at
most 60 s on 2 cores, and 2.5 x the features' memory. One pure read pass stands beside the seconds, to compare machines by.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence

import torch

from stages.auto import repair

SAMPLES, WIDTH = 19_867, 2_048


def planted() -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """(features, labels, base head): 15 % of class 1, an attribute that agrees with the label for 90 %."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(SAMPLES, generator=generator) < 0.15).long()
    attributes = torch.where(torch.rand(SAMPLES, generator=generator) < 0.9, labels, 1 - labels)
    features = torch.randn(SAMPLES, WIDTH, generator=generator).abs_()
    features[:, :40].add_(0.3 * (2 * attributes - 1).unsqueeze(1))
    features[:, 40:400].add_(0.05 * (2 * labels - 1).unsqueeze(1))
    weight = torch.zeros(2, WIDTH)
    weight[1, :40] = 1.0
    return features, labels, (weight, torch.tensor([0.0, float(-features[:, :40].sum(dim=1).mean())]))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args(arguments).threads)
    # What the first optimiser of a process loads (torch's compiler among it) is no cost of the method.
    torch.optim.LBFGS([torch.zeros(1, requires_grad=True)])
    features, labels, base = planted()
    passes = []
    for _ in range(5):
        started = time.perf_counter()
        features.sum()
        passes.append(time.perf_counter() - started)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ticks: list[str] = []
    started = time.perf_counter()
    done = repair(features, labels, base, force=True, progress=lambda what, now, total: ticks.append(what))
    seconds = time.perf_counter() - started
    size = features.numel() * 4
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    result = {
        "threads": torch.get_num_threads(), "seconds": round(seconds, 1), "read_pass_ms": round(min(passes) * 1e3, 1),
        "in_read_passes": round(seconds / min(passes)), "rounds": ticks.count("find groups"),
        "memory_over_features": round((size + grown) / size, 2), "verdict": done.verdict.bias,
    }  # fmt: skip
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
