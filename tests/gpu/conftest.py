"""Tests on a CUDA device: `pytest -m gpu tests/gpu`. They need nothing from a hub."""

import pytest
import torch


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.fail("`-m gpu` asks for a CUDA device, and there is none")
    return torch.device("cuda")
