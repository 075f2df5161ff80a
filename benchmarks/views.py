"""Eight views against one, decoding included: ours, which are cut before the network, and ttach's, which repeat the whole."""

import tempfile
from pathlib import Path

from benchmarks.answer import a_run
from benchmarks.timing import Options, command, in_turn, row


def ttach_way(run: Path, trained, paths: list[str]):
    """ttach around the same network, as timm makes it, on the same loader; its eight: mirrored or not, turned four ways."""
    import torch
    import ttach

    from dataset import Batches, Photos, make_loader
    from device import to_device
    from trained import load_model
    network = torch.nn.Sequential(load_model(run / "best.pt")[0].to(trained.accelerator.device), torch.nn.Softmax(1))
    network = ttach.ClassificationTTAWrapper(network, ttach.aliases.d4_transform())
    photos = Photos(paths, trained.views, 0, trained.views.min_side)

    @torch.inference_mode()
    def probs() -> torch.Tensor:
        loader = make_loader(photos, Batches(len(paths), trained.batch), workers=-1)  # anew each time, as ours, whose start counts
        return torch.cat([network(to_device(images, trained.accelerator)) for images, _, _ in loader])
    return probs


def measure(options: Options):
    from predict import Predictor
    paths = options.photos(8 if options.small else 64)
    with tempfile.TemporaryDirectory() as folder:
        run = a_run(Path(folder))
        one, eight = (Predictor(run / "best.pt", tta=views, workers=-1) for views in (1, 8))
        times = in_turn({"1": lambda: one.probs(paths), "8": lambda: eight.probs(paths), "theirs": ttach_way(run, one.models[0], paths)},
                        options.repeat)
    yield row("views: ours, 8 / 1", times["8"], times["1"], "<= 8")
    yield row("views: ttach's 8 / ours 8", times["theirs"], times["8"], ">= 1.0")


if __name__ == "__main__":
    command(measure)
