"""Adam against torch.optim's AdamW without weight decay."""

import torch

from stages.adam import Adam


def test_it_is_torchs_adamw_without_decay() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(5, 7, generator=generator), torch.randn(7, generator=generator)]
    ours = [tensor.clone() for tensor in start]
    theirs = [tensor.clone().requires_grad_() for tensor in start]
    mine, reference = Adam(ours, 0.01), torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.0)
    for step in range(50):
        # Gradients of very different sizes, and zeros.
        gradients = [torch.randn(tensor.shape, generator=generator) * 10.0 ** (step % 7 - 3) for tensor in start]
        gradients[1][0] = 0
        mine.step(gradients)
        for tensor, gradient in zip(theirs, gradients, strict=True):
            tensor.grad = gradient.clone()
        reference.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-6, atol=1e-7)
