import builtins
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import checkpoint
import photos
import predict
from explain import Explainer, ExplainError
from model import build_model
from photos import read_photo
from predict import Options
from tools import look


def saved(path, model: str, size: int):
    torch.manual_seed(0)
    weights = build_model(model, 3, "none").state_dict()
    checkpoint.save(path, {"model": model, "cosine": 0.0, "classes": ["a", "b", "c"], "image_size": size, "crop": 1.0,
                           "temperatures": [1.0] * 16, "known_limits": [0.0] * 16, "notes": {}, "config": {"augment": 0.5},
                           "weights": weights})
    return path


def test_the_heat_map_is_grad_cam_by_its_formula(tmp_path, rng):
    # Where pooling and a linear head follow the last stage A at once: heat = relu(sum_c w_kc A_c), scaled to 0..1.
    explain = Explainer(saved(tmp_path / "m.pt", "test_resnet", 96))
    photo = rng.integers(0, 256, (96, 96, 3), np.uint8)
    square, heat = explain(photo, 1)
    np.testing.assert_array_equal(square, photo)
    kept = []
    explain.model.backbone.layer4.register_forward_hook(lambda module, inputs, out: kept.append(out.detach()))
    explain.model(torch.from_numpy(photo).permute(2, 0, 1)[None])
    by_hand = torch.einsum("c,chw->hw", explain.model.head.weight[1], kept[0][0]).relu().detach().numpy()
    by_hand = cv2.resize((by_hand - by_hand.min()) / (np.ptp(by_hand) + 1e-7), (96, 96))
    np.testing.assert_allclose(heat, by_hand / by_hand.max(), atol=0.02)
    assert heat.max() == pytest.approx(1, abs=1e-3)


def test_a_backbone_with_channels_last_in_name_too_is_turned(tmp_path, rng):
    explain, seen = Explainer(saved(tmp_path / "m.pt", "test_mambaout", 160)), []
    picture = explain.cam.activations_and_grads.reshape_transform
    explain.cam.activations_and_grads.reshape_transform = lambda maps: seen.append(picture(maps)) or seen[-1]
    explain(rng.integers(0, 256, (160, 160, 3), np.uint8), 0)
    assert {tuple(maps.shape) for maps in seen} == {(1, 64, 5, 5)}


def test_an_export_is_explained_by_what_it_was_made_from(tmp_path, rng):
    saved(tmp_path / "best.pt", "test_resnet", 96)
    photo = rng.integers(0, 256, (96, 96, 3), np.uint8)
    for export in ("best.onnx", "best.int8.onnx"):
        np.testing.assert_array_equal(Explainer(tmp_path / export)(photo, 1)[1], Explainer(tmp_path / "best.pt")(photo, 1)[1])
    (tmp_path / "best.pt").rename(tmp_path / "my.v2.pt")
    assert Explainer(tmp_path / "my.v2.onnx").name == "test_resnet"
    with pytest.raises(ExplainError, match=r"other.onnx: heat maps need other.pt, which is not beside it"):
        Explainer(tmp_path / "other.onnx")


@pytest.mark.parametrize(("model", "size"), [("pit_ti_224", 224), ("mvitv2_tiny", 224), ("coat_tiny", 224)])
def test_a_backbone_that_has_no_heat_map_says_so(tmp_path, rng, model, size):
    """Several tokens at once; a stage that timm names otherwise; one that is not called."""
    with pytest.raises(ExplainError, match=f"{model}: no heat map, .+ Take another --model"):
        Explainer(saved(tmp_path / "m.pt", model, size))(rng.integers(0, 256, (size, size, 3), np.uint8), 0)


def test_tokens_are_no_picture(tmp_path, rng):
    explain = Explainer(saved(tmp_path / "m.pt", "test_vit", 160))
    with pytest.raises(ExplainError, match="test_vit: no heat map, its last stage is not one picture"):
        explain(rng.integers(0, 256, (160, 160, 3), np.uint8), 0)


def test_predict_draws_one_answer_large_and_several_as_a_sheet(run, drawn, tmp_path, capsys):
    best, photos = (run / "best.pt",), sorted(drawn.rglob("*.jpg"))[:4]
    photos[3] = Path(shutil.copy(photos[3], tmp_path / "\udcff.jpg"))  # an old disk's name, which is not UTF-8
    look.augmentations(tuple(photos[3:]), out=tmp_path / "look.png")
    with pytest.raises(ValueError, match="--size 0: use 1 or more."):
        look.augmentations(tuple(photos[3:]), out=tmp_path / "none.png", size=0)
    with pytest.raises(ValueError, match="--columns 0: use 1 or more."):
        look.predictions(run / "best.pt", tuple(photos[3:]), out=tmp_path / "none.png", columns=0)
    predict.main(Options((photos[0],), checkpoint=best, explain=tmp_path / "one.png"))
    assert "heat maps" not in capsys.readouterr().err
    predict.main(Options(tuple(photos), checkpoint=2 * best, explain=tmp_path / "four.png"))
    assert f"four.png: its heat maps are of {best[0]} alone, the answers of all\n" in capsys.readouterr().err
    one, four = read_photo(tmp_path / "one.png").shape, read_photo(tmp_path / "four.png").shape
    assert one[1] > 2 * one[0]    # photo, heat map, bars: side by side
    assert four[0] > 0.4 * four[1]  # two rows of three pairs


def test_a_photo_too_large_to_be_read_whole_is_explained(run, tmp_path, rng, monkeypatch):
    cv2.imwrite(str(tmp_path / "big.jpg"), rng.integers(0, 256, (600, 600, 3), np.uint8))
    monkeypatch.setattr(photos, "MAX_PIXELS", 200_000)
    assert predict.main(Options((tmp_path / "big.jpg",), checkpoint=(run / "best.pt",), explain=tmp_path / "one.png")) == 0
    assert (tmp_path / "one.png").is_file()


def test_the_missing_package_is_named_with_the_remedy(run, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("pytorch_grad_cam"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExplainError, match=r"pip install -r requirements-extra.txt"):
        Explainer(run / "best.pt")
