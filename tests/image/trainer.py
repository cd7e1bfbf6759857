"""What the trainer's image must do on any machine: the last step of its build as `make image-test` makes it.

Runs in the image with its own packages alone, as a pod runs it: a user without a name, HOME in a folder that it may
write. Kernels of a GPU are compiled to C and their launchers built; none is run.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import tempfile
from pathlib import Path

LAUNCHER = """
#include <Python.h>
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "launcher", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_launcher(void) { return PyModule_Create(&definition); }
"""


def import_everything() -> int:
    """Every module of ours, and of the engines what a role imports only when it starts. How many they are."""
    import alignment_trainer

    ours = [module.name for module in pkgutil.walk_packages(alignment_trainer.__path__, "alignment_trainer.")]
    engines = ["deepspeed", "vllm.engine.arg_utils", "vllm.v1.engine.async_llm", "vllm.v1.engine.core"]
    for name in [*ours, *engines]:
        importlib.import_module(name)
    return len(ours)


def compile_a_launcher() -> None:
    """As Triton does at a kernel's first call: C with Python's headers."""
    from triton.runtime.build import compile_module_from_src

    compile_module_from_src(LAUNCHER, "launcher")


def compile_a_loop() -> None:
    """As Inductor does for what runs on the host: C++."""
    import torch

    rows = torch.linspace(-3, 3, 4096).view(64, 64)
    gated = torch.compile(lambda x: torch.nn.functional.silu(x) * x.square().mean(-1, keepdim=True))
    torch.testing.assert_close(gated(rows), torch.nn.functional.silu(rows) * rows.square().mean(-1, keepdim=True))


def read_parquet() -> None:
    """A preference set of the hub is Parquet."""
    import pyarrow
    from pyarrow import parquet

    from alignment_trainer.data.rows import read_rows

    rows = [{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        assert [row.value for row in read_rows(file)] == rows


def main() -> None:
    assert os.getuid() == 65532, os.getuid()
    print(f"{import_everything()} modules import")
    compile_a_launcher()
    compile_a_loop()
    read_parquet()
    print("launchers and loops compile; Parquet is read")


if __name__ == "__main__":
    main()
