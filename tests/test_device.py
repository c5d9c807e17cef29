"""Choosing a device."""

import pytest
import torch

from attnlib.device import describe_device, get_device


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("ATTNLIB_DEVICE", raising=False)


def test_the_argument_comes_first_then_the_variable_then_the_machine(monkeypatch):
    best = get_device()
    monkeypatch.setenv("ATTNLIB_DEVICE", "no such device")
    assert get_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="ATTNLIB_DEVICE asks for the device 'no such device'; this machine has .*cpu"):
        get_device()
    monkeypatch.setenv("ATTNLIB_DEVICE", "cpu")
    assert get_device() == torch.device("cpu")
    monkeypatch.setenv("ATTNLIB_DEVICE", "")
    assert get_device() == best


def test_the_order_of_preference(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    with pytest.raises(ValueError, match="this machine has cuda, mps, xpu, cpu"):
        get_device("tpu")
    assert get_device() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert get_device() == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert get_device() == torch.device("xpu")


def test_no_global_state(monkeypatch):
    get_device("cpu")
    assert torch.get_default_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert get_device().type == "cuda"


def test_accepts_a_device():
    assert get_device(torch.device("cpu")) == torch.device("cpu")


def test_errors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="prefer asks for the device 'cuda'; this machine has .*cpu"):
        get_device("cuda")
    with pytest.raises(ValueError, match="prefer asks for the device 'cpu:7'; this machine has .*cpu"):
        get_device("cpu:7")
    with pytest.raises(ValueError, match="prefer asks for the device 'cpu:1'; this machine has .*cpu"):
        get_device("cpu:1")
    with pytest.raises(ValueError, match="prefer asks for the device 'gpu'"):
        get_device("gpu")
    with pytest.raises(ValueError, match="prefer asks for the device ''"):
        get_device("")
    with pytest.raises(TypeError, match="prefer must be a device or its name; got int"):
        get_device(0)
    with pytest.raises(ValueError, match="this machine has"):
        describe_device("cuda")


def test_description_is_one_line_with_memory_and_dtypes():
    text = describe_device("cpu")
    assert text.startswith("cpu: ")
    assert "\n" not in text
    assert text.endswith("float64 float32 bfloat16 float16")
    assert "GiB" in text or "memory unknown" in text
