"""vLLM's engine as this project uses it: token ids in, tokens and log-probs out, weights replaced in place."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_trainer.vllm.failures import EngineFailed, explain_death, explain_start, log_config, private_folder
from alignment_trainer.vllm.wire import Completion, CompletionsRequest

_DTYPES: dict[str, Any] = {"bf16": "bfloat16", "fp32": "float32"}
_CPU_KV_BYTES = 2**30
_CPU_BATCH_TOKENS = 4096
_SHUTDOWN_SECONDS = 3.0
"""Nothing is lost with a sampler, and the engine core may take long over its own end."""
_PROBE = CompletionsRequest(
    versions=(0, 0), prompt=(0, 1), n=2, seed=0, max_tokens=2, temperature=1.0, stop_token_ids=()
)


class WrongVersion(Exception):
    """The weights held are not, or ceased to be, among those that were asked for."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


@dataclass(frozen=True)
class EngineOptions:
    """kv_bytes: of keys and values on each GPU; None leaves it to vLLM, on CPUs 1 GiB. labels: of its log lines."""

    model: Path
    precision: str
    max_length: int
    gpus: int
    kv_bytes: int | None
    labels: dict[str, str | int]


class RolloutEngine:
    """A model that samples, in processes of vLLM's own. All methods belong to the event loop that it was made in.

    key: attempt and version of the weights that it samples by.
    """

    def __init__(self, options: EngineOptions) -> None:
        """Loads the model: seconds to minutes. Raises UserError where vLLM cannot, EngineFailed where it did not."""
        self.key = (0, 0)
        self._settled = asyncio.Event()
        self._numbers = itertools.count()
        self._folder = private_folder()
        self._llm: Any = None
        try:
            self._llm = _start(options, self._folder)
        except Exception as error:
            raise explain_start(error, self._folder) from error
        self.vocabulary: int = self._llm.model_config.get_vocab_size()
        self.max_length = options.max_length
        self._settled.set()

    @property
    def has_died(self) -> bool:
        """Whether vLLM's processes are gone."""
        return bool(self._llm.errored)

    async def probe(self) -> None:
        """Samples once: kernels that lack a size of the model say so only now. Raises as the constructor does."""
        try:
            await self._generate(_PROBE)
        except Exception as error:
            raise explain_start(error, self._folder) from error

    async def sample(self, asked: CompletionsRequest) -> tuple[int, tuple[Completion, ...]]:
        """The version that sampled, and n completions. Raises WrongVersion; EngineFailed where vLLM died."""
        await self._settled.wait()
        key = self.key
        oldest, newest = asked.versions
        if not oldest <= key[1] <= newest:
            raise WrongVersion(key[1])
        try:
            outputs = await self._generate(asked)
        except Exception as error:
            if self.has_died:
                raise explain_death(error, self._folder) from error
            raise
        if self.key != key or any(output.finish_reason == "abort" for output in outputs):
            await self._settled.wait()  # to tell which weights come next
            raise WrongVersion(self.key[1])
        return key[1], tuple(_completion(output) for output in outputs)

    async def pause(self) -> None:
        """Ends what is being sampled (its weights go) and holds what comes; keys, values and prefixes are forgotten."""
        self._settled.clear()
        await self._llm.pause_generation(mode="abort", clear_cache=True)

    async def apply(self, key: tuple[int, int], parts: Sequence[Path]) -> None:
        """Takes these weights while it is paused. After an error it must stay paused until a later call succeeds."""
        await self._llm.collective_rpc("apply_weights", args=([str(part) for part in parts],))
        self.key = key

    async def resume(self) -> None:
        """Samples again."""
        await self._llm.resume_generation()
        self._settled.set()

    def failure(self) -> Exception:
        """Why vLLM died."""
        return explain_death(EngineFailed("its processes are gone"), self._folder)

    def close(self) -> None:
        """Ends vLLM's processes."""
        if self._llm is not None:
            self._llm.shutdown(timeout=_SHUTDOWN_SECONDS)
            self._llm = None  # what it does when it is collected at the interpreter's end fails noisily
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _generate(self, asked: CompletionsRequest) -> list[Any]:
        """n outputs. Prompts of tokens alone: no tokenizer, no text, no stop strings."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            n=asked.n,
            seed=asked.seed,
            temperature=asked.temperature,
            max_tokens=min(asked.max_tokens, self.max_length - len(asked.prompt)),
            stop_token_ids=list(asked.stop_token_ids),
            ignore_eos=True,  # else the config's end of sequence stops it as well
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        final = None
        prompt = {"prompt_token_ids": list(asked.prompt)}
        async for output in self._llm.generate(prompt, parameters, f"r{next(self._numbers)}"):
            final = output
        return sorted(final.outputs, key=lambda output: output.index) if final is not None else []


def _completion(output: Any) -> Completion:
    tokens = tuple(output.token_ids)
    logprobs = tuple(float(at[token].logprob) for token, at in zip(tokens, output.logprobs, strict=True))
    return Completion(tokens, logprobs, output.finish_reason == "stop")


def _start(options: EngineOptions, folder: Path) -> Any:
    """vLLM's asynchronous engine. Its processes inherit the environment, which it reads when it is imported."""
    os.environ |= _environment(options, folder)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    on_cpu = options.gpus == 0
    kv_bytes = options.kv_bytes or (_CPU_KV_BYTES if on_cpu else None)
    arguments = AsyncEngineArgs(
        model=str(options.model),
        dtype=_DTYPES[options.precision],
        max_model_len=options.max_length,
        tensor_parallel_size=max(1, options.gpus),
        kv_cache_memory_bytes=kv_bytes,
        enforce_eager=on_cpu,
        enable_prefix_caching=True,
        **(_whole_prompts(options.max_length) if on_cpu else {}),
        skip_tokenizer_init=True,
        trust_remote_code=False,
        generation_config="vllm",  # else the checkpoint's own top_p and the like change the distribution
        logprobs_mode="processed_logprobs",  # of logits divided by the temperature: what really sampled
        worker_extension_cls="alignment_trainer.vllm.worker.WeightsExtension",
        disable_log_stats=True,
        enable_log_requests=False,
        use_tqdm_on_load=False,
        seed=0,
    )
    return AsyncLLM.from_engine_args(arguments)


def _whole_prompts(max_length: int) -> dict[str, Any]:
    """Prompts are never cut into chunks: vLLM would take back the random number of each but the last, and the
    generators of CPUs cannot ("CPU Generator does not use offset")."""
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(_CPU_BATCH_TOKENS, max_length)}


def _environment(options: EngineOptions, folder: Path) -> dict[str, str]:
    caches = Path(tempfile.gettempdir()) / f"vllm-{os.getuid()}"
    common = {
        "HF_HUB_OFFLINE": "1",  # the model is local by now
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads
        "VLLM_LOGGING_CONFIG_PATH": str(log_config(folder, options.labels)),
        "VLLM_CACHE_ROOT": str(caches / "cache"),
        "VLLM_CONFIG_ROOT": str(caches / "config"),
    }
    # nobind: several servers may share a machine's cores. No dynamo: the first log-probs would compile for 15 s.
    # No multiprocessing: the worker runs within the engine core, which is a process of its own all the same.
    on_cpu = {
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    return common | (on_cpu if options.gpus == 0 else {})
