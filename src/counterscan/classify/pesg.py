"""PESG, the optimizer of the AUC-margin loss: descent on weights, ascent on alpha (Guo et al. 2020; Yuan et al. 2021).

Proximal epoch stochastic gradient. For weights v (with the loss's a and b among them) and the dual variable alpha:

    g      = clip(dF/dv, -c, c) + epoch_decay (v - v_ref) + weight_decay v
    buffer = (1 - momentum) buffer + momentum g        (the first buffer is g)
    v     <- v - lr buffer
    alpha <- max(0, alpha + lr dF/dalpha)

v_ref is the weights at the start, and at each new stage the mean of the weights over the stage before it.

Momentum is LibAUC's: the share of the NEW gradient. Near 1 it is plain gradient descent; the usual 0.9 is 0.1 here.
Three details differ from LibAUC: v_ref starts at the weights, as the paper has it, not at small random numbers; alpha
follows its own gradient at the point where the weights' was taken, not a formula for version "v2" with a and b already
moved; and gradients of the dual variable arrive averaged over processes like the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from counterscan.errors import InputError


class PESG(Optimizer):
    """Descends on ``params`` and ascends on ``dual``; state and settings are in ``state_dict`` as with any optimizer.

    Args:
        params: tensors or parameter groups to descend on: the network, and the loss's a and b.
        dual: tensors to ascend on, kept >= 0: the loss's alpha.
        lr: step size of both.
        momentum: share of the new gradient in the buffer, in (0, 1]; see the module.
        epoch_decay: pull towards the reference; bounds how far one stage can go.
        weight_decay: pull towards zero.
        clip: largest absolute value of a single gradient entry of ``params``.

    Raises:
        InputError: a value is out of range; names the field.
    """

    def __init__(
        self,
        params: Iterable[Any],
        dual: Iterable[Tensor] = (),
        *,
        lr: float = 0.1,
        momentum: float = 0.9,
        epoch_decay: float = 2e-3,
        weight_decay: float = 1e-5,
        clip: float = 1.0,
    ) -> None:
        for name, value, good in (
            ("lr", lr, lr > 0),
            ("momentum", momentum, 0 < momentum <= 1),
            ("epoch_decay", epoch_decay, epoch_decay >= 0),
            ("weight_decay", weight_decay, weight_decay >= 0),
            ("clip", clip, clip > 0),
        ):
            if not good:
                raise InputError(f"{value} is out of range", field=name)
        given = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        if ascended := list(dual):
            groups = [*groups, {"params": ascended, "dual": True}]
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "epoch_decay": epoch_decay,
            "weight_decay": weight_decay,
            "clip": clip,
            "dual": False,
        }
        super().__init__(groups, defaults)

    @overload
    def step(self, closure: None = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of all variables, from gradients taken at the same point."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if group["dual"]:
                    p.add_(p.grad, alpha=group["lr"]).clamp_(min=0)
                else:
                    self._descend(p, group)
        return loss

    def _descend(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["reference"], state["mean"], state["seen"] = p.clone(), torch.zeros_like(p), 0
        gradient = p.grad.clamp(-group["clip"], group["clip"])  # type: ignore[union-attr]
        gradient.add_(p - state["reference"], alpha=group["epoch_decay"]).add_(p, alpha=group["weight_decay"])
        if "buffer" in state:
            state["buffer"].lerp_(gradient, group["momentum"])
        else:
            state["buffer"] = gradient
        p.sub_(state["buffer"], alpha=group["lr"])
        state["seen"] += 1
        state["mean"].add_(p - state["mean"], alpha=1 / state["seen"])

    @torch.no_grad()
    def next_stage(self, factor: float = 10.0) -> None:
        """Begin a new stage: the reference becomes the mean of the weights over the last one, the step size shrinks.

        Args:
            factor: what the step size is divided by (a schedule's base rate as well); 1 leaves it.
        """
        for group in self.param_groups:
            for name in ("lr", "initial_lr"):
                if name in group:
                    group[name] /= factor
            for p in group["params"]:
                if state := self.state.get(p):
                    state["reference"].copy_(state["mean"])
                    state["mean"].zero_()
                    state["seen"] = 0
