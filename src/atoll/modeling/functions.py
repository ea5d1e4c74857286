"""The parts of the decoder whose gradient is derived by hand, as torch.autograd.Function.

What they are: the plain formulas of the Llama family, arranged so that few bytes move beside the
matrix products. What they save for the backward pass is stated in each docstring, with the
derivative. They use common aten operations only, write in place only into memory they made
themselves, and draw no random number. What they are not: kernels of a vendor.

d_x stands for the gradient of the loss by x; shape suffixes as in decoder.py, N = B*T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_LOGITS_IN_FLIGHT = 1 << 23
"""Numbers of the logits buffer: 32 MiB in fp32, so that a large vocabulary needs little memory."""
_MIN_CHUNK = 256
"""Tokens below which the head's matrix products become slow."""


class RMSNorm(torch.autograd.Function):
    """(x, norm(x)) with norm(x) = x / sqrt(mean(x^2) + eps) * weight, over the last dimension.

    x is handed through so that the gradient of the residual stream, d_through, is added in the
    same pass. With r = 1/sqrt(mean(x^2) + eps):
        d_weight = sum over tokens of d_norm * x * r
        d_x      = d_through + r weight d_norm - x r^3 mean(weight * d_norm * x)
    Saves x, weight and r. Formula: Zhang and Sennrich 2019.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        root = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, root)
        ctx.set_materialize_grads(False)
        return x.view_as(x), (x * root).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_through: Tensor | None, d_norm: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        if d_norm is None:
            return d_through, None, None
        x, weight, root = ctx.saved_tensors
        product = (d_norm * x).flatten(0, -2)
        d_weight = torch.mv(product.t(), root.flatten())
        pull = torch.mv(product, weight).view_as(root).mul_(root.pow(3)).div_(-x.shape[-1])
        scaled = torch.mul(d_norm, weight, out=product.view_as(x))
        d_x = scaled.mul_(root) if d_through is None else torch.addcmul(d_through, scaled, root)
        return d_x.addcmul_(x, pull), d_weight, None


class Projections(torch.autograd.Function):
    """x [N, C] times the transpose of each weight [out, C]; the gradients of x add up in place.

    d_weight = d_y^T x;  d_x = sum of d_y weight. Saves x and the weights.
    """

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x_NC, *weights)
        return tuple(torch.mm(x_NC, weight.t()) for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, ...]:
        x_NC, *weights = ctx.saved_tensors
        d_x_NC = torch.mm(d_outputs[0], weights[0])
        for d_y, weight in zip(d_outputs[1:], weights[1:], strict=True):
            d_x_NC.addmm_(d_y, weight)
        return d_x_NC, *(torch.mm(d_y.t(), x_NC) for d_y in d_outputs)


class SwiGLU(torch.autograd.Function):
    """y = (silu(x G^T) * (x U^T)) D^T for x [N, C]; G, U [F, C]; D [C, F].

    With a = x G^T, u = x U^T, s = silu(a), h = s u, and d_h = d_y D:
        d_D = d_y^T h;  d_u = d_h s;  d_a = d_h u silu'(a);  d_x = d_a G + d_u U
        d_G = d_a^T x;  d_U = d_u^T x
    Saves x, a and u; h is computed again. Formula: Shazeer 2020.
    """

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        a_NF = torch.mm(x_NC, gate.t())
        u_NF = torch.mm(x_NC, up.t())
        ctx.save_for_backward(x_NC, gate, up, down, a_NF, u_NF)
        return torch.mm(F.silu(a_NF).mul_(u_NF), down.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_NC: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x_NC, gate, up, down, a_NF, u_NF = ctx.saved_tensors
        s_NF = F.silu(a_NF)
        d_down = torch.mm(d_y_NC.t(), s_NF * u_NF)
        d_h_NF = torch.mm(d_y_NC, down)
        d_u_NF = s_NF.mul_(d_h_NF)
        d_a_NF = d_h_NF.mul_(u_NF)
        torch.ops.aten.silu_backward.grad_input(d_a_NF, a_NF, grad_input=d_a_NF)
        d_x_NC = torch.mm(d_a_NF, gate).addmm_(d_u_NF, up)
        return d_x_NC, torch.mm(d_a_NF.t(), x_NC), torch.mm(d_u_NF.t(), x_NC), d_down


class TiedEmbedding(torch.autograd.Function):
    """(rows of weight [V, C] at tokens [N], weight), for an embedding that is also the head.

    The weight is handed through to its one other user, the head, so that its dense gradient
    arrives here and the rows of the embedding are added to it in place: a second [V, C] array,
    its zeros and its addition are saved. d_weight = d_head; d_weight[tokens[n]] += d_x[n].
    """

    @staticmethod
    def forward(ctx: Any, weight_VC: Tensor, tokens_N: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens_N)
        return weight_VC.index_select(0, tokens_N), weight_VC.view_as(weight_VC)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_x_NC: Tensor, d_head_VC: Tensor) -> tuple[Tensor, None]:
        (tokens_N,) = ctx.saved_tensors
        return d_head_VC.index_add_(0, tokens_N, d_x_NC), None


class CrossEntropy(torch.autograd.Function):
    """The SUM over tokens of -log softmax(x W^T)[target], for x [N, C], W [V, C], targets [N].

    The logits are made a chunk of tokens at a time and turn in place into their own gradient,
        d_logits = softmax(logits) - onehot(target);  d_x = d_logits W;  d_W = d_logits^T x,
    so that no [N, V] array outlives the forward pass. Saves d_x and d_W (as large as x and W),
    and allows one backward pass. With ``want_gradient`` False it computes the loss alone.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, want_gradient: bool
    ) -> Tensor:
        num_tokens, vocab = x_NC.shape[0], weight_VC.shape[0]
        step = min(num_tokens, max(_MIN_CHUNK, _LOGITS_IN_FLIGHT // vocab))
        buffer = x_NC.new_empty(step, vocab)
        exact = torch.promote_types(x_NC.dtype, torch.float32)
        losses_N = x_NC.new_empty(num_tokens, dtype=exact)
        d_x_NC = torch.empty_like(x_NC) if want_gradient else None
        d_weight_VC = torch.empty_like(weight_VC) if want_gradient else None
        for first in range(0, num_tokens, step):
            part = slice(first, min(first + step, num_tokens))
            logits = torch.mm(x_NC[part], weight_VC.t(), out=buffer[: part.stop - first])
            losses_N[part] = _cross_entropy_in_place(logits, targets_N[part])
            if d_x_NC is not None and d_weight_VC is not None:
                torch.mm(logits, weight_VC, out=d_x_NC[part])
                beta = 0 if first == 0 else 1
                d_weight_VC.addmm_(logits.t(), x_NC[part], beta=beta)
        ctx.gradients = (d_x_NC, d_weight_VC)
        return losses_N.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_x_NC, d_weight_VC = ctx.gradients
        assert d_x_NC is not None, "CrossEntropy: no gradient was wanted, or a second backward"
        ctx.gradients = (None, None)
        # On the host a look at the factor is free and nearly always saves two passes.
        if d_loss.device.type != "cpu" or d_loss.item() != 1.0:
            d_x_NC.mul_(d_loss)
            d_weight_VC.mul_(d_loss)
        return d_x_NC, d_weight_VC, None, None


def _cross_entropy_in_place(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return the loss of each row; ``logits_NV`` becomes softmax(logits) - onehot(target).

    The largest logit m has probability exp(m) / sum(exp), so log sum exp = m - log p(m): exact
    enough also where the target's own probability rounds to nothing.
    """
    column_N1 = targets_N.unsqueeze(1)
    target_N1 = logits_NV.gather(1, column_N1)
    largest_N1 = logits_NV.amax(1, keepdim=True)
    torch.softmax(logits_NV, 1, out=logits_NV)
    log_total_N1 = largest_N1 - logits_NV.amax(1, keepdim=True).log_()
    logits_NV.scatter_(1, column_N1, logits_NV.gather(1, column_N1).sub_(1.0))
    return (log_total_N1 - target_N1).squeeze(1)
