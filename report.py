"""A run to look at: report.html, one file with all pictures, which also lie in the run's report/.

Its scores are those of val.csv: the kept model's answers to the validation photos, as predict.py would give them.
"""

from __future__ import annotations

import html
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

import checkpoint
import metrics
import plots
import record
from config import Config
from explain import Explainer, ExplainError, reasons_sheet
from page import figures, image, section, table, write_page
from photos import SIDES, read_named
from pictures import contact_sheet
from prepare import photos_of
from text import decimals
from trust import CAUTION
from views import crop_view

WORST, SUREST = 9, 18  # mistakes shown


def write_report(folder: Path, data: Path | None = None) -> Path:
    """Returns RUN/report.html. data: where the photos are now, if they have moved. Raises ValueError where RUN is not a finished run, or
    its photos are gone."""
    record.check_finished(folder, "val.csv", "photos.csv", "log.csv", "config.json")
    (val, probs, labels), photos = record.read_answers(folder / "val.csv"), record.read_photos(folder)
    classes = val.columns[2:].tolist()
    if data:
        if not data.exists():
            raise record.RunError(f"--data {data}: no such folder. Give the one that the photos are in now.")
        photos, found = photos_of(folder, data, named=True)
        val["image"] = val.image.map(dict(zip(photos.path, found.path, strict=True)))
    if not any(os.path.isfile(photo) for photo in val.image):
        raise record.RunError(f"{folder}: none of its {len(val)} validation photos is where it was ({val.image[0]}). Put them back, or "
                              f"say where they are now: python -m tools.report {folder} --data FOLDER")
    log = pd.read_csv(folder / "log.csv")
    log["grad_norm"] = log.get("grad_norm")  # runs of before it was logged
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = settings["config"]
    inside = folder / "report"
    inside.mkdir(exist_ok=True)

    def drawn(name: str, draw, *arguments, alt: str) -> str:
        draw(inside / f"{name}.png", *arguments)
        return image(inside / f"{name}.png", alt)

    sam = (config["sam_start"] * config["epochs"], config["sam_every"]) if config["rho"] else None
    sides = pd.crosstab(photos.label, photos.side[photos.side != ""])
    sides = sides[[side for side in SIDES if side in sides]]
    counts, by_class = metrics.confusion(probs, labels), metrics.per_class(probs, labels)
    best, epochs = checkpoint.load(folder / "best.pt"), log.epoch.max()
    kept = best.get("kept", "one of these")  # a run of an earlier day does not say
    since = " Since it was scored, its head has learnt from the validation photos too." if best["refit"] else ""
    shares = [[decimals(share, 3) for share in row[:3]] + [f"{row[3]:.0f}"] for row in by_class]
    about = f"{folder.name} · {settings['device']}, {settings['precision'].replace('no', 'fp32')} · {CAUTION}"
    changed = {k: v for k, v in config.items() if Config().to_dict().get(k) != v}
    write_page(
        folder / "report.html", f"{config['model']} on {Path(config['data']).name}",
        f'<p class="quiet">{html.escape(about)}</p>',
        figures({"accuracy": f"{metrics.accuracy(probs, labels):.1%}", "macro-F1": f"{metrics.macro_f1(probs, labels):.3f}",
                 "log loss": f"{metrics.log_loss(probs, labels):.3f}",
                 "calibration error": f"{metrics.calibration_error(probs, labels):.3f}",
                 "photos judged": str(len(labels)), "minutes": f"{log.minutes.max():.1f}"}),
        section("Training", f"{'Each epoch. ' if epochs else ''}Kept as best.pt: {kept}.{since}",
                drawn("curves", plots.curves, log, sam, alt="curves of loss, accuracy, rate and gradient norm") if epochs else ""),
        section("Confusion, photos", "Rows are the truth, columns the answer.",
                drawn("confusion", plots.confusion, counts, classes, False, alt="confusion matrix, counts")),
        section("Confusion, percent", "The same as shares of each row, so that rare classes can be read.",
                drawn("confusion_share", plots.confusion, counts, classes, True, alt="confusion matrix, shares")),
        section("Classes", "Photos judged in brackets; the weakest class below.",
                drawn("classes", plots.class_scores, by_class, classes, alt="precision, recall and F1 of each class"),
                table(pd.DataFrame(shares, columns=["precision", "recall", "F1", "photos"]).assign(genus=classes)
                      [["genus", "precision", "recall", "F1", "photos"]].rename(columns={"genus": "class"}))),
        section("Can its probabilities be believed?", "Below the diagonal it is surer than it is right. How sure it is was fitted to "
                "these photos.",
                drawn("calibration", plots.calibration, probs, labels, alt="reliability diagram")),
        *mistakes(folder / "best.pt", val.image.tolist(), labels, probs, classes, drawn),
        section("Photos of each class", "What it learnt from and was judged by.",
                drawn("balance", plots.balance, sides, alt="photos of each class")),
        section("A training batch", "As the model sees it: augmented and mixed, the share of each class below.",
                image(folder / "batch.png", "a training batch") if (folder / "batch.png").is_file() else ""),
        section("Settings", "Those that are not the defaults first; then all, and the versions.",
                *(table(pd.DataFrame(part.items(), columns=["knob", "value"])) for part in (changed, config)),
                table(pd.DataFrame(settings["versions"].items(), columns=["package", "version"]))))
    return folder / "report.html"


def mistakes(best: Path, paths: list[str], labels: np.ndarray, probs: np.ndarray, classes: list[str], drawn) -> list[str]:
    """Two sections: where the truth got the least probability, with heat maps, and where a wrong answer got the most."""
    answers = probs.argmax(1)
    mistaken = np.flatnonzero(answers != labels)
    wrong = np.array([i for i in mistaken if os.path.isfile(paths[i])], int)
    if not len(mistaken):
        return [section("Mistakes", f"None: all {len(labels)} photos got the right answer.")]
    if not len(wrong):
        return [section("Mistakes", f"{len(mistaken)}, and none of these photos is where it was.")]
    worst = wrong[np.argsort(probs[wrong, labels[wrong]])][:WORST]
    surest = wrong[np.argsort(-probs[wrong].max(1))][:SUREST]

    def captions(rows) -> list[str]:
        return [f"{classes[answers[i]]} {probs[i].max():.0%}\ntruth: {classes[labels[i]]} {probs[i, labels[i]]:.1%}" for i in rows]

    try:
        explainer = Explainer(best, refit=False)  # what gave the answers of val.csv
        pairs = [explainer(read_named(paths[i], explainer.min_side), answers[i]) for i in worst]
        text, sheet = "The truth got the least probability. The heat shows what spoke for the wrong answer.", reasons_sheet
    except ExplainError as error:
        pairs, text, sheet = squares(paths, worst), f"The truth got the least probability. Without heat maps: {error}.", contact_sheet
    return [section("Worst mistakes", text, drawn("worst", sheet, pairs, captions(worst), alt="worst mistakes")),
            section("Surest mistakes", f"The answer was wrong and got the most probability; {len(mistaken)} mistakes in all.",
                    drawn("surest", contact_sheet, squares(paths, surest), captions(surest), 6, alt="surest mistakes"))]


def squares(paths: list[str], rows: np.ndarray) -> list[np.ndarray]:
    return [crop_view(read_named(paths[i], 256), 256, 1.0) for i in rows]
