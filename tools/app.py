"""A page to ask the model from a browser or a phone: `python -m tools.app`, then open the address it prints."""

from __future__ import annotations

import csv
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

import trust
from explain import Explainer, ExplainError, overlay
from photos import PhotoError, read_photo
from predict import Predictor, newest_checkpoint
from text import as_program

MOST, LARGEST, QUEUE = 8, "20mb", 20  # photos of one find, the size of one, questions that may wait
WORDS = {
    "English": {
        "title": f"# Which mushroom is it?\nUp to {MOST} photos of one find. On a phone, tap to take one.",
        "photos": "Photos", "ask": "Ask",
        "answer": "Answer", "heat": "What spoke for it", "none": "Add a photo first.",
        "many": f"More than {MOST} photos: take the best {MOST}.",
        "unknown": "Unknown: it looks like none of the classes. Try a closer photo, one from below.",
        "deadly": "{:.0%} on genera with deadly species: {}.", "poisonous": "{:.0%} on genera with poisonous species: {}.",
        "bad": "{}: {}", "caution": trust.CAUTION},
    "中文": {
        "title": f"# 这是什么蘑菇？\n同一蘑菇的照片，最多 {MOST} 张。手机上点按即可拍照。", "photos": "照片", "ask": "识别",
        "answer": "结果", "heat": "判断依据", "none": "请先添加照片。", "many": f"照片超过 {MOST} 张：请选最好的 {MOST} 张。",
        "unknown": "无法判断：它不像任何可识别的类别。请拍近一些，或拍菌盖下面。",
        "deadly": "{:.0%}的可能属于含有致命种类的属：{}。", "poisonous": "{:.0%}的可能属于含有有毒种类的属：{}。",
        "bad": "{}：{}", "caution": "这只是程序根据照片的猜测：切勿据此食用任何蘑菇。"},
}


@dataclass(frozen=True)
class Options:
    checkpoint: tuple[Path, ...] = ()  # one or many best.pt, .onnx or run folders, averaged; none = the newest under runs/
    host: str = "127.0.0.1"  # this machine alone; 0.0.0.0 = all who can reach it; 20 questions may wait, further ones are refused
    port: int = 7860  # 0 = any that is free


class App:
    """The page's answers. predictor and explainer share their first checkpoint."""

    def __init__(self, checkpoints: tuple[Path, ...]):
        self.predictor = Predictor(*checkpoints)
        try:
            self.explainer = Explainer(self.predictor.paths[0])
        except ExplainError as error:
            print(f"without heat maps: {error}", flush=True)
            self.explainer = None
        with trust.GENERA.open(encoding="utf-8", newline="") as rows:
            self.chinese = {row["genus"]: row["chinese"] for row in csv.DictReader(rows)}

    def answer(self, paths: list[str] | None, language: str) -> tuple[dict[str, float] | None, str, list[np.ndarray]]:
        """Photos of one find → {name: probability}, averaged over those that can be read; words; each and its heat map."""
        words = WORDS[language]
        if not paths or len(paths) > MOST:
            return None, words["many" if paths else "none"], []
        probs, known, errors = self.predictor.answers(paths)
        lines = [words["bad"].format(Path(paths[i]).name, why) for i, why in errors.items()]
        read = [i for i in range(len(paths)) if i not in errors]
        if not read:
            return None, "\n\n".join(lines), []
        mean = probs[read].mean(0)
        likely = [(self.predictor.classes[k], float(mean[k])) for k in mean.argsort()[::-1]]
        if known[read].mean() < self.predictor.limit:
            lines.insert(0, f"**{words['unknown']}**")
        if found := trust.danger(mean, self.predictor.classes, self.predictor.notes):
            kind, share, names = found
            lines.append(f"**{words[kind].format(share, ', '.join(self.local(name, language) for name in names[:3]))}**")
        try:
            pairs = [self.explainer(read_photo(paths[i], self.explainer.min_side), int(mean.argmax())) for i in read if self.explainer]
            pictures = [picture for square, heat in pairs for picture in (square, overlay(square, heat))]
        except (ExplainError, PhotoError):  # a transformer's tokens are no picture: the answer stands without
            pictures = []
        return {self.local(name, language): prob for name, prob in likely}, "\n\n".join([*lines, words["caution"]]), pictures

    def local(self, name: str, language: str) -> str:
        return f"{name} {self.chinese[name]}" if language == "中文" and self.chinese.get(name) else name

    def page(self):
        import gradio as gr
        with gr.Blocks(title="Mushrooms", analytics_enabled=False, delete_cache=(600, 3600)) as page:  # seconds: uploads go within the hour
            english = WORDS["English"]
            language = gr.Radio(list(WORDS), value="English", show_label=False, container=False)
            title = gr.Markdown(english["title"])
            with gr.Row():
                with gr.Column():
                    photos = gr.File(label=english["photos"], file_count="multiple", file_types=["image"], height=200)
                    ask = gr.Button(english["ask"], variant="primary")
                with gr.Column():
                    answer = gr.Label(label=english["answer"], num_top_classes=3)
                    words = gr.Markdown(english["caution"])
                    heat = gr.Gallery(label=english["heat"], columns=2, height="auto", buttons=[])
            gr.on([ask.click, photos.upload], self.answer, [photos, language], [answer, words, heat])

            def translate(chosen: str):
                text = WORDS[chosen]
                return (text["title"], gr.update(label=text["photos"]), text["ask"], gr.update(label=text["answer"], value=None),
                        text["caution"], gr.update(label=text["heat"], value=None))

            language.change(translate, language, [title, photos, ask, answer, words, heat])
        return page.queue(max_size=QUEUE)


def main(options: Options) -> None:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError:
        sys.exit("the page needs the package gradio: pip install -r requirements-extra.txt")
    checkpoints = options.checkpoint or (newest_checkpoint(),)
    print(f"model: {', '.join(map(str, checkpoints))}", flush=True)
    page = App(checkpoints).page()
    try:
        page.launch(
            server_name=options.host, server_port=options.port or None, max_file_size=LARGEST,
            ssr_mode=False,  # a second server, in Node, that has let strangers use its owner's token (CVE-2026-134825)
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]), footer_links=[])  # no fonts from the net
    except (OSError, OverflowError) as error:  # a port of 99999
        raise ValueError(f"the page cannot be opened at {options.host}, port {options.port}: another program has it, or that is no address "
                         "of this machine. Give another --port, or --host.") from error


if __name__ == "__main__":
    as_program(lambda: main(tyro.cli(Options, description=__doc__)))
