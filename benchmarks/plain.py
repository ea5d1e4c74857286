"""The peer that a person would write by hand: a plain fp32 PyTorch loop over our decoder.

Same decoder, same initial weights, same grains in the same order, same schedule. Gradients add up
in `.grad`, `clip_grad_norm_` takes the norm, `torch.optim.AdamW` (fused) updates. It is as quick
as we can make it: the summed loss is differentiated, and the mean is taken once a step.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from atoll.model import Model
from atoll.modeling import initial
from atoll.modeling.decoder import Decoder
from atoll.recipe import Recipe
from atoll.training.scalars import learning_rate


class PlainLoop:
    """One model and its optimizer; `step` trains on the grains of one step."""

    def __init__(self, recipe: Recipe, model: Model) -> None:
        self.recipe = recipe
        self.decoder = Decoder(model)
        initial.fill(self.decoder, recipe.seed)
        spec = recipe.optimizer
        matrices = [p for p in self.decoder.parameters() if p.dim() > 1]
        vectors = [p for p in self.decoder.parameters() if p.dim() <= 1]
        self.parameters = [*matrices, *vectors]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": spec.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=spec.lr,
            betas=(spec.beta1, spec.beta2),
            eps=spec.eps,
            fused=True,
        )
        self.num_steps = 0

    def step(self, grains: Iterable[np.ndarray]) -> float:
        """One optimizer step; the mean loss in nats a token."""
        total, num_tokens = 0.0, 0
        for tokens in grains:
            loss = self.decoder.loss(torch.from_numpy(tokens))
            loss.backward()
            total += loss.item()
            num_tokens += tokens.shape[0] * (tokens.shape[1] - 1)
        self.update(num_tokens)
        return total / num_tokens

    def update(self, num_tokens: int) -> None:
        """Mean, norm, clip, AdamW."""
        self.num_steps += 1
        recipe = self.recipe
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_mul_(gradients, 1.0 / num_tokens)
        if recipe.optimizer.clip > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters, recipe.optimizer.clip)
        rate = learning_rate(
            self.num_steps,
            lr=recipe.optimizer.lr,
            schedule=recipe.schedule,
            total_steps=recipe.total_steps(),
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def validation_loss(self, batches: Iterable[np.ndarray]) -> float:
        """Mean loss in nats a token without gradients."""
        total, num_tokens = 0.0, 0
        with torch.no_grad():
            for tokens in batches:
                total += self.decoder.loss(torch.from_numpy(tokens)).item()
                num_tokens += tokens.shape[0] * (tokens.shape[1] - 1)
        return total / num_tokens
