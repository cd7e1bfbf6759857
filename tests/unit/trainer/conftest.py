import pytest
import torch
from tests.s3 import bucket, s3_server

__all__ = ["bucket", "s3_server"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors gain nothing from more threads, and threads that spin for a shared core lose minutes."""
    torch.set_num_threads(1)
