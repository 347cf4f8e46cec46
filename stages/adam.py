"""AdamW without weight decay, which is Adam (Kingma and Ba 2015, algorithm 1): the optimiser of eliminate and update.

Own code rather than torch.optim: making its first optimiser imports PyTorch's compiler, 1.4 s of CPU, which is more than
the whole of a stage at the sizes that most people have. tests/stages/test_adam.py holds the two against each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Adam:
    """Changes `parameters` in place, a step for each call with their gradients, tensors of the same shapes."""

    parameters: "Sequence[Tensor]"
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        import torch

        self._means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    def step(self, gradients: "Sequence[Tensor]") -> None:
        self.steps += 1
        decay, decay_of_squares = self.betas
        # At most what float32 holds: a rate so large diverges, and is to be told so.
        rate = min(self.learning_rate / (1 - decay**self.steps), 3.4e38)
        correction = (1 - decay_of_squares**self.steps) ** 0.5
        for parameter, gradient, mean, square in zip(self.parameters, gradients, self._means, self._squares, strict=True):
            mean.lerp_(gradient, 1 - decay)
            square.mul_(decay_of_squares).addcmul_(gradient, gradient, value=1 - decay_of_squares)
            parameter.addcdiv_(mean, _root(square).div_(correction).add_(self.eps), value=-rate)


def _root(values: "Tensor") -> "Tensor":
    """The square roots; on a CPU NumPy's, for PyTorch's are MKL's, whose second thread then spins on a core for 3 ms."""
    import numpy as np
    import torch

    return torch.from_numpy(np.sqrt(values.numpy())) if values.device.type == "cpu" else values.sqrt()
