"""BatchNorm that keeps its statistics, folded into the convolution before it: the same numbers in fewer trips through memory."""

from __future__ import annotations

from collections import Counter
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, pad_same
from torch import nn
from torch.overrides import TorchFunctionMode


@torch.no_grad()
def fold_batchnorm(model: nn.Module, image: torch.Tensor) -> int:
    """Wherever a convolution's output goes to a BatchNorm and nowhere else, and while that one is in eval mode, from now on

        s (conv(x, W) - mean) + b = conv(x, s W) + (b - s mean),   s = gamma / sqrt(var + eps)

    so that normalising, and its gradient, cost as much as the weights are large, not the photo's activations. Parameters,
    their gradients and state_dict() stay what they were. image (1, 3, H, W): shows who hands what to whom. Returns how many were folded.
    """
    convs = [m for m in model.modules() if type(m) in (nn.Conv2d, Conv2dSame) and m.padding_mode == "zeros"]
    norms = [m for m in model.modules() if type(m) in (nn.BatchNorm2d, BatchNormAct2d) and m.affine and m.track_running_stats]
    made, met, calls = {}, [], Counter()                          # id of an output: (convolution, the output, so that its id stays its own)

    def noted(conv: nn.Module, _, output: torch.Tensor) -> None:
        made[id(output)] = conv, output
        calls[conv] += 1

    def asked(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        calls[norm] += 1
        if id(inputs[0]) in made:
            met.append((norm, id(inputs[0])))

    hooks = [*(conv.register_forward_hook(noted) for conv in convs), *(norm.register_forward_pre_hook(asked) for norm in norms)]
    with _Uses(made) as uses:
        model.eval()(image)
    for hook in hooks:
        hook.remove()
    pairs = [(made[output][0], norm) for norm, output in met if uses.count[output] == 1]
    pairs = [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1]
    for conv, norm in pairs:                                      # partials, as a copy of the model copies what they hold
        conv.forward, norm.forward = partial(_folded, conv, norm), partial(_rest, norm)
        if isinstance(getattr(norm, "act", None), nn.SiLU):
            norm.act.inplace = False                              # in place it would keep a copy of what it overwrites, for the gradient
    return len(pairs)


class _Uses(TorchFunctionMode):
    """Within, counts the operations that take a tensor that is in `made`, by its id."""

    def __init__(self, made: dict[int, tuple]):
        super().__init__()
        self.made, self.count = made, Counter()

    def __torch_function__(self, operation, types, args=(), kwargs=None):
        if operation.__name__ not in ("__get__", "dim"):          # to look at a shape is no use
            taken = [part for given in args for part in (given if isinstance(given, (list, tuple)) else [given])]
            self.count.update(id(part) for part in taken if id(part) in self.made)
        return operation(*args, **(kwargs or {}))


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
