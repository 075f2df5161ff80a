"""BatchNorm that keeps its statistics, folded into the convolution before it: the same numbers in fewer trips through memory."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, pad_same
from torch import nn


@torch.no_grad()
def fold_batchnorm(model: nn.Module, image: torch.Tensor) -> int:
    """Wherever a convolution's output goes straight to a BatchNorm, and while that one is in eval mode, from now on

        s (conv(x, W) - mean) + b = conv(x, s W) + (b - s mean),   s = gamma / sqrt(var + eps)

    so that normalising, and its gradient, cost as much as the weights are large, not the photos' activations. Parameters,
    their gradients and state_dict() stay what they were. image (1, 3, H, W): shows who hands what to whom. Returns how many were folded.
    """
    made, pairs = {}, {}                                          # {id of an output: (its convolution, it)}, {BatchNorm: convolution}

    def noted(conv: nn.Module, _, output: torch.Tensor) -> None:
        made[id(output)] = conv, output                           # holding the output keeps its id its own

    def met(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if id(inputs[0]) in made:
            pairs[norm] = made[id(inputs[0])][0]

    hooks = [*(module.register_forward_hook(noted) for module in model.modules() if type(module) in (nn.Conv2d, Conv2dSame)),
             *(module.register_forward_pre_hook(met) for module in model.modules() if type(module) in (nn.BatchNorm2d, BatchNormAct2d))]
    model.eval()(image)
    for hook in hooks:
        hook.remove()
    for norm, conv in pairs.items():                              # partials, as a copy of the model copies what they hold
        conv.forward, norm.forward = partial(_scaled, conv, norm), partial(_shifted, norm)
    return len(pairs)


def _scale(norm: nn.BatchNorm2d) -> torch.Tensor:
    return norm.weight * (norm.running_var + norm.eps).rsqrt()


def _scaled(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    if norm.training:
        return type(conv).forward(conv, x)
    if isinstance(conv, Conv2dSame):
        x = pad_same(x, conv.kernel_size, conv.stride, conv.dilation)
    bias = None if conv.bias is None else conv.bias * _scale(norm)
    return F.conv2d(x, conv.weight * _scale(norm).view(-1, 1, 1, 1), bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _shifted(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    if norm.training:
        return type(norm).forward(norm, x)
    x = x.add_((norm.bias - norm.running_mean * _scale(norm)).view(-1, 1, 1))  # in place: the convolution's gradient does not need it
    return norm.act(norm.drop(x)) if isinstance(norm, BatchNormAct2d) else x
