"""Make a run's model ready to travel: `python -m tools.publish RUN` fills RUN/model/; `--push USER/NAME` uploads it.

In the folder: best.onnx for predict.py and for programs without torch, and README.md, the model card. Of a run that was trained with
`--covariance 0`, so that timm's classifier can hold its head, also model.safetensors and config.json as timm reads them
(`timm.create_model("hf-hub:USER/NAME", pretrained=True)`, temperature folded into the head).
"""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import timm
import torch
import tyro
from huggingface_hub import HfApi
from timm.models import save_for_hf
from tyro.conf import Positional

import metrics
import record
from answers import no_score_after
from checkpoint import CheckpointError
from files import atomic_file
from text import as_program, decimals
from tools.export import export
from trained import load_model
from views import ANSWER_VIEWS

EXAMPLE = '''\
import json, sys
import numpy as np, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("best.onnx")
about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
photo = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
photo = ImageOps.fit(photo, [about["image_size"]] * 2, Image.Resampling.BOX, bleed=(1 - about["crop"]) / 2)
logits, known = session.run(None, {"images": np.asarray(photo).transpose(2, 0, 1)[None]})
logits = logits[0] / about["temperatures"][0]
probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
print(about["classes"][probs.argmax()], probs.max(), "unknown" if known[0] < about["known_limits"][0] else "")
'''

CARD = """\
---
library_name: {library}
pipeline_tag: image-classification
license: {license}
tags: [image-classification, onnx, fungi]
---
# {title}

Names what is on a photo: one of {classes}. A {model} at {size} x {size} pixels, trained on {learnt} photos.

**Never eat a mushroom because a program named it.** Deadly and edible species share genera, and look alike.
{dangers}

## How good it is

On {judged} photos {unseen}, {views} views averaged: accuracy **{accuracy:.3f}** (standard error {error:.3f}),
macro-F1 {macro_f1:.3f}, log loss {loss:.3f}, calibration error {ece:.3f}.
{since}What was kept, and how sure its answers are, was fitted to the same photos, which flatters a little;
photos of other people and other places are harder.

| class | photos learnt from | photos judged | of these recognised |
| --- | --- | --- | --- |
{rows}

## Limits

It knows no other class: what it was not taught gets the likeliest of its names. `known` (0 to 1), the second output of best.onnx, is low
for photos that show nothing of the kind; a kind near to its own mostly passes. Below, one view of the photo answers.

## Use

{timm}Without torch (`pip install numpy onnxruntime pillow`), photo's path as the argument:

```python
{example}```

Or with the program that made it: `python predict.py photo.jpg --checkpoint best.onnx`.
"""


TIMM = """\
```
import timm
network = timm.create_model("hf-hub:{repo}", pretrained=True)      # logits whose softmax is calibrated
```

"""


def publish(run: Positional[Path], push: str = "", license: str = "other", private: bool = False) -> Path:
    """Fill RUN/model/, and upload it where asked; returns that folder. Raises CheckpointError.

    Args:
        run: a run's folder.
        push: USER/NAME on the Hugging Face hub (log in first: `hf auth login`); none = only the folder.
        license: of the model, as the hub names it; photos and pretrained weights have terms of their own.
        private: seen by you alone.
    """
    record.check_finished(run, "val.csv", "photos.csv")
    model, saved = load_model(run / "best.pt")
    out, timm_reads = run / "model", not saved["cosine"] and not saved["covariance"]
    out.mkdir(exist_ok=True)
    if timm_reads:
        save_for_hf(as_timm(model, saved), out, {"label_names": saved["classes"]}, safe_serialization=True)
    with atomic_file(out / "best.onnx") as file:
        file.write(export(run).read_bytes())
    page, unnamed = out / "README.md", f"USER/{run.resolve().name}"
    new, *others = (card(run, saved, *flags, timm_reads) for flags in ((push or unnamed, license), (push or unnamed, "other"),
                                                                       (unnamed, license), (unnamed, "other")))
    written = page.read_text(encoding="utf-8") if page.exists() else new
    if written not in (new, *others):
        unfit = "" if EXAMPLE in written else " Its example is not the one that reads this best.onnx."
        print(f"{page}: stays as it is, since it was edited, or was written with other flags, or before.{unfit} To have it written anew, "
              "delete it.")
    else:
        with atomic_file(page) as file:
            file.write(new.encode())
    if push:
        try:
            hub = HfApi()
            hub.create_repo(push, private=private, exist_ok=True)
            hub.upload_folder(repo_id=push, folder_path=out)
        except Exception as error:  # every layer below the hub raises its own kind
            raise CheckpointError(f"--push {push}: the hub did not take it ({error}). All is in {out}: log in with `hf auth login`, "
                                  "or upload the folder by hand.") from error
    print(f"{out}: {', '.join(sorted(file.name for file in out.iterdir()))}" + (f"; uploaded to {push}" if push else ""))
    return out


def as_timm(model, saved: dict) -> torch.nn.Module:
    """The same network as timm builds it, with its own classifier in place of our head, divided by the temperature of one view."""
    size = saved["image_size"]
    network = timm.create_model(saved["model"], num_classes=len(saved["classes"]), pretrained_cfg_overlay={
        "input_size": (3, size, size), "crop_pct": saved["crop"]})
    place = network.pretrained_cfg["classifier"]
    theirs = network.state_dict()
    head = {f"{place}.{name}": value / saved["temperatures"][0] for name, value in model.head.state_dict().items()}
    weights = {**model.backbone.state_dict(), **head}
    if weights.keys() != theirs.keys() or any(weights[name].numel() != theirs[name].numel() for name in theirs):
        raise CheckpointError(f"{saved['model']}: timm's classifier is of another kind than our head. Share best.onnx, or best.pt.")
    network.load_state_dict({name: weights[name].view_as(theirs[name]) for name in theirs})  # some are convolutions of 1 x 1
    return network.eval()


def card(run: Path, saved: dict, repo: str, license: str, timm_reads: bool) -> str:
    """The model card: what it is for, on what it was trained, how good it is, where it fails."""
    photos, (_, probs, labels), classes = record.read_photos(run), record.read_answers(run / "val.csv"), saved["classes"]
    names = [plain(name) for name in classes]
    scores, learnt = metrics.scores(probs, labels), photos.label[photos.side == "train"].value_counts()
    rows = [f"| {shown} | {learnt.get(name, 0)} | {judged:.0f} | {decimals(recall, 2)} |"
            for name, shown, (_, recall, _, judged) in zip(classes, names, metrics.per_class(probs, labels), strict=True)]
    dangers = [plain(f"{name}: {note['note']}.") for name, note in saved["notes"].items() if note["danger"] == "deadly"]
    met = no_score_after(saved["config"]["weights"], photos.path[photos.side == "val"])
    return CARD.format(
        unseen=f"({met})" if met else "that it did not learn from",
        views=ANSWER_VIEWS,
        license=license, title=repo.split("/")[-1], classes=", ".join(names), model=saved["model"], size=saved["image_size"],
        since="Since then its head has learnt from these photos too. " if saved["refit"] else "", learnt=learnt.sum(),
        dangers=" ".join(dangers), judged=len(labels), **scores,
        error=np.sqrt(scores["accuracy"] * (1 - scores["accuracy"]) / len(labels)), ece=metrics.calibration_error(probs, labels),
        rows="\n".join(rows), example=EXAMPLE, library="timm" if timm_reads else "onnx", timm=TIMM.format(repo=repo) if timm_reads else "")


def plain(text: str) -> str:
    """For Markdown, which takes tags as they are, and cuts tables at a bar."""
    return html.escape(text).replace("|", "\\|")


if __name__ == "__main__":
    as_program(lambda: tyro.cli(publish, description=__doc__))
