"""AdamW whose every operation is one correctly rounded IEEE operation, so that unlike chips agree.

With q the exchanged integers of a tensor and the scalars of `scalars.UpdateScalars`
(Loshchilov & Hutter 2019, decoupled weight decay, with bias correction):

    g = float(q) * scale
    m = flush(m * beta1 + g * (1 - beta1))
    v = flush(v * beta2 + (g * g) * (1 - beta2))
    w = flush(w * decay - (m * step_size) / (sqrt(v * inverse_correction2) + eps))

Each line is separate mul, add, sub, tensor/tensor div, square root and int -> fp32 conversion: no
`alpha=` (a fused multiply-add on some chips), no lerp or addcmul, no division by a scalar
(compilers turn it into a product), and the square root comes from the backend, which knows how to
round it. `flush` turns |x| <= 2**-96 into +0 by compare-and-select, because chips treat denormals
differently: what enters an operation is zero or so large that a denormal intermediate result cannot
reach the state. Work goes block by block on the host, so that a block's ~20 operations stay in the
cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from atoll.training.accumulator import blocks
from atoll.training.scalars import UpdateScalars

FLUSH_BELOW = 2.0**-96


def flush_(x: Tensor) -> Tensor:
    """Replace every |x| <= 2**-96 by +0, in place."""
    if x.device.type == "cpu":
        return torch.ops.aten.hardshrink.out(x, FLUSH_BELOW, out=x)
    return x.copy_(torch.nn.functional.hardshrink(x, FLUSH_BELOW))


class AdamW:
    """Moments of all tensors, and the exact update.

    Tensors of two or more dimensions decay; vectors (the norms' gains) do not. `square_root`
    returns the correctly rounded fp32 root on the tensors' device.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], *, square_root: Callable[[Tensor], Tensor]
    ) -> None:
        self.weights = dict(weights)
        self.moment1 = {name: torch.zeros_like(w) for name, w in weights.items()}
        self.moment2 = {name: torch.zeros_like(w) for name, w in weights.items()}
        self._square_root = square_root

    @torch.no_grad()
    def update(self, name: str, integers: Tensor, *, scale: float, scalars: UpdateScalars) -> None:
        """Update one tensor from its exchanged integers (flat, int32 or int64)."""
        weight = self.weights[name]
        decay = scalars.decay if weight.dim() > 1 else None
        first = self.moment1[name].view(-1)
        second = self.moment2[name].view(-1)
        flat = weight.view(-1)
        for offset, block in blocks(integers):
            piece = slice(offset, offset + block.numel())
            self._update_block(
                flat[piece], first[piece], second[piece], block, scale, decay, scalars
            )

    def _update_block(
        self,
        w: Tensor,
        m: Tensor,
        v: Tensor,
        integers: Tensor,
        scale: float,
        decay: float | None,
        s: UpdateScalars,
    ) -> None:
        g = integers.to(torch.float32).mul_(scale)
        flush_(m.mul_(s.beta1).add_(g * s.one_minus_beta1))
        flush_(v.mul_(s.beta2).add_(g.mul_(g).mul_(s.one_minus_beta2)))
        root = self._square_root(v * s.inverse_correction2).add_(s.eps)
        change = (m * s.step_size).div_(root)
        if decay is not None:
            w.mul_(decay)
        flush_(w.sub_(change))
