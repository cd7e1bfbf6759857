import pytest
import torch
from tests.s3 import bucket, s3_server

__all__ = ["bucket", "s3_server"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Where torch was loaded before `OMP_NUM_THREADS` was set."""
    torch.set_num_threads(1)
