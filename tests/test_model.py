import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile

import pytest
import timm
import torch
from conftest import ROOT, SMALL
from safetensors.torch import save_file

import checkpoint
import main
from model import WHEELS, CosineHead, ModelError, build_model, freeze, input_size, parameter_groups
from tools.bad_input import Call


def test_normalisation_is_inside():
    model = build_model(SMALL, 3, "none").eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    cfg = model.backbone.pretrained_cfg
    plain = (images / 255 - torch.tensor(cfg["mean"]).view(3, 1, 1)) / torch.tensor(cfg["std"]).view(3, 1, 1)
    torch.testing.assert_close(model(images), model.head(model.backbone(plain)), rtol=1e-3, atol=1e-4)
    assert model(images).shape == (2, 3)


def test_the_head_and_known_compute_in_full_precision_behind_a_backbone_in_bf16():
    model = build_model(SMALL, 5, "none").eval()
    torch.nn.init.normal_(model.head.weight, std=10.0)
    model.known.means.normal_()
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            features, logits, (judged, known) = model.features(images), model(images), model.judge(images)
        wanted = torch.nn.functional.linear(features, model.head.weight, model.head.bias)
        assert (features.dtype, logits.dtype) == (torch.float32, torch.float32)
        for given in (logits, judged):
            torch.testing.assert_close(given, wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(known, model.known(features, wanted), rtol=0, atol=1e-6)


def test_the_wheel_s_weights_are_the_real_ones():
    """Features of ImageNet weights, unlike random ones, tell drawn genera apart; see test_main. Here: tensors as in the file."""
    model = build_model("tf_efficientnet_lite0", 9)
    package = __import__(WHEELS["tf_efficientnet_lite0"])
    file = next(f for f in __import__("pathlib").Path(package.__path__[0]).rglob("*.pth"))
    state = list(torch.load(file, weights_only=True).values())
    for ours, theirs in zip(model.backbone.state_dict().values(), state, strict=False):
        torch.testing.assert_close(ours, theirs)
    assert model.head.weight.shape == (9, 1280)


@pytest.mark.parametrize("kind", ["pth", "safetensors", "wrapped.pth", "of 2019.pth"])
def test_weights_from_a_file_in_timm_s_format(tmp_path, kind):
    source = timm.create_model(SMALL, pretrained=False)  # with timm's own classifier on top
    state, file = source.state_dict(), tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state} if "wrapped" in kind else state, file, _use_new_zipfile_serialization="2019" not in kind)
    model = build_model(SMALL, 4, str(file))
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_run_s_backbone_begins_another_of_other_classes(run, small_config, drawn, tmp_path):
    shutil.copytree(drawn / "Amanita", tmp_path / "two" / "Amanita")
    shutil.copytree(drawn / "Russula", tmp_path / "two" / "Russula")
    other = main.train(dataclasses.replace(small_config, data=tmp_path / "two", weights=str(run / "best.pt"), epochs=0))
    first, second = (checkpoint.load(folder / "best.pt")["weights"] for folder in (run, other))
    backbone = [name for name in first if name.startswith("backbone.")]
    assert backbone
    assert all(torch.equal(first[name], second[name]) for name in backbone)
    assert second["head.weight"].shape[0] == 2


def test_a_weights_file_that_does_not_fit_is_named(tmp_path):
    torch.save({"conv_stem.weight": torch.ones(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    state = timm.create_model(SMALL, num_classes=0).state_dict()
    torch.save(state | {"more": Call(bytearray, 10)}, tmp_path / "bytes.pth")
    torch.save(state, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in whole.namelist():
            packed.writestr(entry, whole.read(entry))
    for name, message in {"other.pth": "missing or of another shape", "text.pth": "cannot be read", "none.pth": "no such file",
                          "bytes.pth": "cannot be read", "packed.pth": "cannot be read"}.items():
        with pytest.raises(ModelError, match=f"--weights .*{name}: .*{message}"):
            build_model(SMALL, 4, str(tmp_path / name))


def test_an_unknown_backbone_suggests_near_names():
    with pytest.raises(ModelError, match="Did you mean .*tf_efficientnet_b6"):
        build_model("tf_eficientnet_b6", 9)


@pytest.mark.parametrize("name", ["efficientnet_bb", "tf_efficientnet_b6.foo"])
def test_an_unknown_backbone_is_named_before_the_photos_are_looked_at(small_config, tmp_path, name):
    with pytest.raises(ModelError, match=f"--model {name}: timm has no such backbone. Did you mean .*efficientnet_b"):
        main.train(dataclasses.replace(small_config, model=name, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_backbone_of_one_size_alone_says_so():
    assert input_size("vit_tiny_patch16_224") == input_size("vit_tiny_patch16_224", 224) == (224, 0.9)
    for other in ({"asked": 256}, {"shrinks": True}):
        with pytest.raises(ModelError, match="--model vit_tiny_patch16_224: takes photos of 224 x 224 pixels and no others"):
            input_size("vit_tiny_patch16_224", **other)


@pytest.mark.parametrize("knob", ["progressive", "train_share"])
def test_a_backbone_of_one_size_alone_is_trained_at_no_other(small_config, knob):
    with pytest.raises(ModelError, match="Use --image-size 0, --progressive 1 and --train-share 1, or another backbone"):
        main.train(dataclasses.replace(small_config, model="vit_tiny_patch16_224", image_size=0, **{knob: 0.5}))


def test_a_crop_beyond_the_photo_is_all_of_it():
    assert timm.get_pretrained_cfg("volo_d5_512").crop_pct > 1
    assert input_size("volo_d5_512") == (512, 1.0)


def test_a_backbone_whose_maps_cannot_be_seen_is_told(monkeypatch):
    hidden = torch.nn.Flatten()  # as DenseNet was, before timm 1.0.31
    monkeypatch.setattr(timm, "create_model", lambda *given, **more: hidden)
    with pytest.raises(ModelError, match=r"its stages' maps. pip install --upgrade timm, or pass --covariance 0."):
        build_model(SMALL, 3, "none", covariance=4)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vgg11", "test_vit", "poolformer_s12"])
def test_backbones_of_other_families_fit_their_head(name):
    """Some put a layer of their own between pooling and head; some name no order of their layers."""
    model = build_model(name, 3, "none", covariance=4).eval()
    freeze(model, 0)
    with torch.inference_mode():
        logits, known = model.judge(torch.zeros(2, 3, *[input_size(name)[0]] * 2))
    assert (logits.shape, known.shape) == ((2, 3), (2,))
    assert parameter_groups(model, 0.1, 0.9, 0.1)


def test_layers_without_an_order_cannot_be_frozen():
    with pytest.raises(ModelError, match="--freeze 0.5: timm does not say .+"):
        freeze(build_model("poolformer_s12", 3, "none"), 0.5)


def test_a_backbone_without_published_weights_says_so():
    with pytest.raises(ModelError, match="nobody has published weights.*tf_efficientnet_b6"):
        build_model("efficientnet_b6", 9)


@pytest.mark.parametrize("hub", ["refuses", "is silent"])
def test_a_hub_that_cannot_be_reached_is_an_error_within_30_s(hub, tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if hub == "is silent":
            server.listen(8)
            threading.Thread(target=lambda: [server.accept() for _ in range(8)], daemon=True).start()
        code = "from model import build_model; build_model('tf_efficientnet_b6.ns_jft_in1k', 9)"
        began = time.monotonic()
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, env={
            **os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}"})
        assert time.monotonic() - began < 30
    assert "ModelError: --model tf_efficientnet_b6.ns_jft_in1k: its weights could not be fetched" in run.stderr
    assert "--weights FILE" in run.stderr


def test_b6_is_528_pixels():
    size, crop = input_size("tf_efficientnet_b6.ns_jft_in1k")
    assert size == 528
    assert crop == pytest.approx(0.942)


def test_layers_learn_at_falling_rates_towards_the_photo_and_each_weight_once():
    model = build_model(SMALL, 3, "none")
    groups = parameter_groups(model, 0.1, layer_decay=0.5, head_lr=0.01)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(map(id, model.parameters()))
    scale = {id(p): g.get("lr_scale", 1.0) for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert scale[id(model.head.weight)] == scale[id(model.head.bias)] == 0.01
    blocks = [scale[id(block[0].conv.weight)] for block in list(model.backbone.blocks)[:1]]
    assert scale[id(model.backbone.conv_stem.weight)] == blocks[0] / 2
    assert decay[id(model.head.weight)] == 0.1
    assert decay[id(model.head.bias)] == decay[id(model.backbone.bn1.weight)] == 0


def test_frozen_layers_are_the_first_and_the_others_learn():
    model = build_model("tf_efficientnet_lite0", 3, "none")  # a stem and 16 blocks, the last of which counts with what follows it
    learns = {}
    for share in (0, 1, 0.5):
        freeze(model, share)
        learns[share] = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns[0] == dict(model.named_parameters()).keys()
    assert learns[1] == {"head.weight", "head.bias"}
    frozen = learns[0] - learns[0.5]
    assert {name.split(".")[1] for name in frozen} == {"conv_stem", "bn1", "blocks"}
    assert {name[16:19] for name in frozen if "blocks" in name} == {"0.0", "1.0", "1.1", "2.0", "2.1", "3.0", "3.1", "3.2"}  # 8.5 of 17
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.1, 0.9, 0.1)) == len(learns[0.5])


def test_a_cosine_head_gives_scaled_cosines():
    head = CosineHead(2, 2, 30.0)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 0.0], [1.0, 1.0]]))
    assert head(torch.tensor([[0.0, 7.0]])).tolist()[0] == pytest.approx([0.0, 30 / 2**0.5])


