"""What torch compiles, it compiles for every device of a process."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from alignment_trainer.model.compiled import compile_for

DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
DTYPES += (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def compiled_of(kinds: int) -> int:
    """How many of so many kinds of tensors a function is compiled for; each needs a graph of its own."""
    graphs = list[Any]()
    torch.compiler.reset()

    def keep(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def doubled(tensor: Tensor) -> Tensor:
        return tensor + tensor

    double = torch.compile(doubled, backend=keep)
    for dtype in DTYPES[:kinds]:
        double(torch.ones(2, dtype=dtype))
    return len(graphs)


def test_a_thread_compiles_more_graphs_of_a_function_than_torch_keeps_by_itself() -> None:
    """Every other thread keeps torch's 8."""
    with ThreadPoolExecutor(1, initializer=compile_for, initargs=(8,)) as pool:
        assert pool.submit(compiled_of, 9).result() == 9
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(compiled_of, 9).result() == 8
