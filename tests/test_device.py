import pytest
import torch
from accelerate import Accelerator

import device
from device import DeviceError, choose_precision, memory_ran_out


@pytest.mark.parametrize(("message", "expected"), [
    ("CUDA out of memory. Tried to allocate 2.00 GiB", True), ("CUDA error: out of memory\nCompile with", True),
    ("GET was unable to find an engine to execute this computation", True), ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", True), ("DefaultCPUAllocator: can't allocate memory", True),
    ("CUDA error: device-side assert triggered", False), ("mat1 and mat2 shapes cannot be multiplied", False)])
def test_what_running_out_of_memory_looks_like(message, expected):
    assert memory_ran_out(RuntimeError(message)) is expected


@pytest.mark.parametrize(("card", "precision"), [((9, 0), "bf16"), ((8, 9), "bf16"), ((7, 5), "fp16"), ((7, 0), None), ((6, 1), None)])
def test_a_card_for_which_pytorch_is_not_built_is_named_before_anything_else(monkeypatch, card, precision):
    for name, value in {"is_available": True, "get_device_capability": card, "get_device_name": "Old Card",
                        "get_arch_list": ["sm_75", "sm_80", "sm_90", "sm_120", "compute_120"]}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: card >= (8, 0))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    if precision:
        assert choose_precision()[0] == precision
    else:
        with pytest.raises(DeviceError, match="Old Card: this PyTorch is not built for it"):
            choose_precision()


@pytest.mark.parametrize(("card", "cuda", "built_for"), [
    ((13, 0), "13.0", ["sm_75", "compute_120"]),  # the driver compiles for a card of tomorrow
    ((9, 0), "12.8", ["sm_90a"]), ((9, 0), None, ["gfx90a", "gfx942"])])  # the last is AMD's
def test_a_card_that_pytorch_runs_on_is_taken(monkeypatch, card, cuda, built_for):
    for name, value in {"is_available": True, "get_device_capability": card, "get_arch_list": built_for}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert choose_precision()[0] == "bf16"


@pytest.mark.parametrize(("name", "elsewhere"), [("cpu", False), ("cuda", True)])
def test_memory_that_runs_out_is_a_sentence_and_the_cpu_a_way_out_of_a_gpu(name, elsewhere):
    with pytest.raises(DeviceError, match=f"memory ran out on {name}, even for one view") as caught, \
            device.enough_memory(torch.device(name)):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert ("CUDA_VISIBLE_DEVICES=" in str(caught.value)) is elsewhere
    with pytest.raises(RuntimeError, match="shapes"), device.enough_memory(torch.device(name)):
        raise RuntimeError("shapes do not match")


def test_photos_reach_the_device_in_the_model_s_layout_of_memory(accelerator: Accelerator):
    images = device.to_device(torch.zeros(2, 3, 8, 8), accelerator)
    assert images.is_contiguous(memory_format=torch.channels_last)
