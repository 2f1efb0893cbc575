"""Arithmetic that the machine has."""

import pytest
import torch

from robolearn.core.errors import RefusedError
from robolearn.refine.base import LearnerConfig
from robolearn.train import device

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("has", "wanted"),
    [
        ({"avx2": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"amx_bf16": False}, False),
        ({}, False),
    ],
)
def test_bf16_is_taken_where_the_processor_has_instructions_for_it(has, wanted, monkeypatch):
    # Every refinement recipe said bf16, which on a processor with AVX2 alone took ten times as long as fp32.
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    device.multiplies_bf16.cache_clear()
    assert LearnerConfig(precision="auto").in_bf16(CPU) is wanted
    assert LearnerConfig(precision="bf16").in_bf16(CPU)
    assert not LearnerConfig().in_bf16(CPU)
    device.multiplies_bf16.cache_clear()


def test_an_unknown_precision_is_refused():
    with pytest.raises(RefusedError, match="precision='fp8' must be one of fp32, bf16, auto"):
        LearnerConfig(precision="fp8")


def test_networks_compute_as_they_are_told():
    with LearnerConfig(precision="bf16").autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with LearnerConfig().autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
