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

    so that normalising, and its gradient, cost as much as the weights are large, not the photo's activations. Parameters,
    their gradients and state_dict() stay what they were. image (1, 3, H, W): shows who hands what to whom. Returns how many were folded:
    0 as well where another part takes a convolution's output too, and the answer would change.
    """
    made, pairs = {}, {}                                          # {id of an output: (its convolution, it)}, {BatchNorm: convolution}

    def noted(conv: nn.Module, _, output: torch.Tensor) -> None:
        made[id(output)] = conv, output                           # holding the output keeps its id its own

    def met(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if id(inputs[0]) in made:
            pairs[norm] = made[id(inputs[0])][0]

    hooks = [*(module.register_forward_hook(noted) for module in model.modules() if type(module) in (nn.Conv2d, Conv2dSame)),
             *(module.register_forward_pre_hook(met) for module in model.modules() if type(module) in (nn.BatchNorm2d, BatchNormAct2d))]
    before = model.eval()(image)
    for hook in hooks:
        hook.remove()
    for norm, conv in pairs.items():                              # partials, as a copy of the model copies what they hold
        conv.forward, norm.forward = partial(_folded, conv, norm), partial(_rest, norm)
        if isinstance(getattr(norm, "act", None), nn.SiLU):
            norm.act.inplace = False                              # in place it would keep a copy of what it overwrites, for the gradient
    if (model(image) - before).abs().max() > 0.01 * before.abs().max():
        for norm, conv in pairs.items():
            del conv.forward, norm.forward
        return 0
    return len(pairs)


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """In the convolution's place: what the BatchNorm behind it would make of its output."""
    if norm.training:
        return type(conv).forward(conv, x)
    if isinstance(conv, Conv2dSame):
        x = pad_same(x, conv.kernel_size, conv.stride, conv.dilation)
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    return F.conv2d(x, conv.weight * scale.view(-1, 1, 1, 1), torch.addcmul(norm.bias, mean, scale, value=-1),
                    conv.stride, conv.padding, conv.dilation, conv.groups)


def _rest(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """In the BatchNorm's place: what it does beside normalising."""
    if norm.training:
        return type(norm).forward(norm, x)
    return norm.act(norm.drop(x)) if isinstance(norm, BatchNormAct2d) else x
