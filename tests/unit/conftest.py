import os

# Before torch is loaded, here or in a process below. Tiny tensors gain nothing from more threads, and threads that spin
# for a shared core lose minutes. DeepSpeed is loaded by who forks ranks, and would look for a GPU.
for name, value in {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "DS_ACCELERATOR": "cpu"}.items():
    os.environ.setdefault(name, value)
