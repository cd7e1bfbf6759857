"""Training with adapters: the losses and gradients of peft, a base that stays, and exports that say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_runs import CPU, LORA, begun, engine_of, gone_on, in_turn, of_ranks, outline, write_folder, write_tiny
from gradients import reference, taken
from peft import PeftModel
from ranks import run_ranks
from safetensors.torch import load_file
from tiny_runs import Setting, pairs, tiny_classifier, tiny_llama, tiny_qwen2
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, MixtralConfig, MixtralForCausalLM

from alignment_api.contract.spec import Lora
from alignment_trainer.checkpoint.export import export_model
from alignment_trainer.checkpoint.inheritance import check_inheritance
from alignment_trainer.checkpoint.output import FolderOutput
from alignment_trainer.data.packing import pack, pack_whole
from alignment_trainer.data.storage import Folder
from alignment_trainer.engines.base import Engine
from alignment_trainer.engines.state import SavedState
from alignment_trainer.loop.train import train
from alignment_trainer.model.adapters import targets_in
from alignment_trainer.model.load import LoadedModel, frozen, named_shapes, outline_model, outline_value_model
from alignment_trainer.model.mistakes import UnsupportedModelError
from alignment_trainer.model.precision import autocast
from alignment_trainer.process.errors import UserError

IDS = torch.tensor([[1, 5, 9, 3, 2]])
AUTO = {"dpo": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}
MATRICES = 2 * 7 * 2
"""A and B of seven maps in each of two layers."""


def fast(**changes: Any) -> Setting:
    """Adapters move far enough in two steps to be told from none."""
    return Setting(**({"learning_rate": 2e-2, "max_grad_norm": 1e9} | changes))


def trained(folder: Path, base: Path, setting: Setting, lora: Lora = LORA) -> tuple[LoadedModel, Engine, Path]:
    """After a run; and the folder of its newest checkpoint."""
    model, run, recorder = begun(folder, base, setting, lora)
    train(run)
    return model, run.engine, recorder.checkpoints[-1].here()


def beside(base: Path, exported: Path, algorithm: str = "dpo", **options: Any) -> Any:
    """The base with the exported adapter, by peft."""
    network = AUTO[algorithm].from_pretrained(base, **({"num_labels": 1} if algorithm == "reward" else {}))
    return PeftModel.from_pretrained(network, exported / "model" / "adapter", **options)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("algorithm", ["dpo", "reward"])
def test_before_the_first_step_the_policy_is_its_base_to_the_bit(tmp_path, algorithm, precision):
    base, setting = write_tiny(tmp_path / "base", algorithm), Setting(algorithm, precision=precision)
    model = outline(base, setting)
    packing = pack_whole if algorithm == "reward" else pack
    packed = packing([pair.group for pair in pairs(3)])
    make = outline_value_model if algorithm == "reward" else outline_model
    alone = frozen(make(base), precision, CPU)
    with torch.no_grad(), autocast(CPU, precision):
        assert torch.equal(engine_of(model, setting).forward(packed), alone(packed))


@pytest.mark.parametrize("lora", [LORA, Lora(rank=3, targets=("q_proj", "mlp.down_proj"), rs_lora=True)])
@pytest.mark.parametrize("algorithm", ["dpo", "reward"])
def test_losses_and_gradients_are_those_of_peft_on_rows_without_padding(tmp_path, algorithm, lora):
    base, setting = write_tiny(tmp_path / "base", algorithm), fast(algorithm=algorithm, steps=2)
    model, engine, checkpoint = trained(tmp_path / "run", base, setting, lora)
    export_model(model, engine, FolderOutput(tmp_path), "fp32")
    again = engine_of(outline(base, setting, lora), setting, checkpoint)
    ours = gradient_of(again, algorithm)
    theirs = gradient_of_peft(beside(base, tmp_path, algorithm, is_trainable=True), algorithm)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1].keys() == theirs[1].keys() == model.adapters.trained
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, atol=1e-5 * gradient.abs().max().item(), rtol=1e-5)
        assert gradient.any(), name


ROWS = 5


def gradient_of(engine: Engine, algorithm: str) -> tuple[float, dict[str, torch.Tensor]]:
    packing = pack_whole if algorithm == "reward" else pack
    packed = packing([pair.group for pair in pairs(ROWS)])
    sums = packed.sum_per_sequence(engine.forward(packed)).view(ROWS, 2)
    loss = pair_loss(sums, algorithm)
    engine.backward(loss)
    return loss.item(), taken(engine)


def gradient_of_peft(network: Any, algorithm: str) -> tuple[float, dict[str, torch.Tensor]]:
    rows = [(row.prompt, completion) for row in pairs(ROWS) for completion in row.group.completions]
    sums = torch.stack([plain_score(network, algorithm, *row) for row in rows]).view(ROWS, 2)
    loss = pair_loss(sums, algorithm)
    loss.backward()
    named = (
        (name.replace(".default.", ".").replace(".modules_to_save", ""), p) for name, p in network.named_parameters()
    )
    found = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
    return loss.item(), {n if "lora_" in n else n.removeprefix("base_model.model."): grad for n, grad in found.items()}


def plain_score(network: Any, algorithm: str, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    logits = network(torch.tensor([prompt + completion])).logits[0]
    if algorithm == "reward":
        return logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)[range(len(completion)), list(completion)].sum()


def pair_loss(sums: torch.Tensor, algorithm: str) -> torch.Tensor:
    margins = sums if algorithm == "reward" else 0.1 * (sums - reference(ROWS))
    return torch.nn.functional.softplus(margins[:, 1] - margins[:, 0]).mean()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_goes_on_from_a_checkpoint_of_adapters_alone_bit_for_bit(tmp_path, precision):
    base, setting = write_tiny(tmp_path / "base"), fast(precision=precision, steps=6)
    model, run, expected = begun(tmp_path, base, setting)
    train(run)
    checkpoint = tmp_path / "0001" / "00000004"
    assert SavedState(checkpoint).shapes("weight").keys() == model.adapters.trained
    _, second, after = gone_on(tmp_path / "later", base, setting, checkpoint, reference=run.rows.reference)
    train(second)
    figures = [(report.step, report.metrics, report.grad_norm) for report in expected.reports]
    assert [(report.step, report.metrics, report.grad_norm) for report in after.reports] == figures[4:]
    for (name, ours), (_, theirs) in zip(second.engine.full_weights(), run.engine.full_weights(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
def test_the_merged_export_says_what_base_and_adapter_say(tmp_path, make):
    """A tied head, and a head of its own with biases in attention."""
    base = write_folder(tmp_path / "base", make())
    model, engine, _ = trained(tmp_path / "run", base, fast())
    export_model(model, engine, FolderOutput(tmp_path), "fp32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    before = AutoModelForCausalLM.from_pretrained(base)
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged(IDS).logits, beside(base, tmp_path)(IDS).logits, atol=2e-5, rtol=0)
    assert (merged(IDS).logits - before(IDS).logits).abs().max() > 0.1
    changed = {
        n for (n, a), (_, b) in zip(merged.named_parameters(), before.named_parameters(), strict=True) if (a - b).any()
    }
    assert changed == {f"{module}.weight" for module in model.adapters.modules}, "and never the head, tied or not"


def test_what_merging_into_bf16_costs_is_one_rounding_of_each_weight(tmp_path):
    """From the numbers of the folder, in fp32: not of a copy that was rounded before."""
    base = write_folder(tmp_path / "base", tiny_llama())
    model, engine, _ = trained(tmp_path / "run", base, fast(precision="bf16"))
    export_model(model, engine, FolderOutput(tmp_path), "bf16")
    merged, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", base))
    adapter = load_file(tmp_path / "model" / "adapter" / "adapter_model.safetensors")
    assert {matrix.dtype for matrix in adapter.values()} == {torch.float32}
    for module in model.adapters.modules:
        a, b = (adapter[name].double() for name in model.adapters.pair(module))
        exact = before[f"{module}.weight"].double() + LORA.scale * (b @ a)
        off = (merged[f"{module}.weight"].double() - exact).abs()
        assert (off <= exact.abs() * 2.0**-8 * 1.001 + 1e-9).all(), module


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """By the number of ranks the figures of dpo and reward, in fp32 and bf16; `plain` is one process of plain torch."""
    folder, found = tmp_path_factory.mktemp("engines"), {}
    base = write_tiny(folder / "base")
    settings = [fast(precision=precision, steps=3, sharding="fsdp2") for precision in ("fp32", "bf16")]
    found["plain"] = in_turn(str(folder / "plain"), str(base), of_ranks(settings[0], "none"))
    for ranks in (1, 2):
        of_gang = {"folder": str(folder / str(ranks)), "base": str(base), "settings": settings}
        found[str(ranks)] = run_ranks(ranks, "adapted_runs:in_turn", **of_gang)[0]
    start = str(folder / "plain" / "0" / "0001" / "00000002")
    going_on = {"folder": str(folder / "on"), "base": str(base), "settings": settings[:1], "start": start}
    return found | {"on": run_ranks(2, "adapted_runs:in_turn", **going_on)[0]}


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_fsdp2_takes_the_steps_of_plain_torch(engines, ranks):
    plain, found = engines["plain"][0], engines[ranks][0]
    assert found["losses"] == pytest.approx(plain["losses"], rel=2e-5)
    assert found["norms"] == pytest.approx(plain["norms"], rel=2e-5)
    assert found["whole"] == pytest.approx(plain["whole"], abs=2e-3)
    assert engines[ranks][1]["losses"] == pytest.approx(plain["losses"], rel=0.1), "bf16"


def test_a_whole_model_starts_from_no_checkpoint_of_adapters(tmp_path):
    base = write_tiny(tmp_path / "base")
    trained(tmp_path / "other" / "checkpoints", base, fast(steps=1, checkpoint_every=1))
    claim = {"term": 1, "uid": "other", "attempt": 1, "start": None, "claimedAt": "2026-01-01T00:00:00Z"}
    (tmp_path / "other" / "claims").mkdir()
    (tmp_path / "other" / "claims" / "0001.json").write_text(json.dumps(claim))
    whole = named_shapes(outline_model(base).scorer)
    with pytest.raises(UserError) as error:
        check_inheritance(Folder(tmp_path / "run"), Folder(tmp_path / "other"), "pvc://runs/first", whole)
    assert "it holds adapters of a job with training.lora" in str(error.value)
    assert "write its exported model as spec.model" in str(error.value)


def test_two_ranks_hold_half_of_the_base_each_and_go_on_from_a_checkpoint_of_one(engines):
    assert engines["2"][0]["held"] == pytest.approx(engines["1"][0]["held"] / 2, rel=0.01)
    assert engines["on"][0]["losses"] == pytest.approx(engines["plain"][0]["losses"][2:], rel=2e-5)


def test_what_is_not_trained_is_held_as_a_frozen_model_is(tmp_path):
    base, setting = write_tiny(tmp_path / "base"), Setting(precision="bf16")
    model = outline(base, setting)
    engine = engine_of(model, setting)
    held = {model.scorer.hub_names[n]: (p.dtype, p.requires_grad) for n, p in model.scorer.named_parameters()}
    assert held["model.layers.0.mlp.up_proj.weight"] == (torch.bfloat16, False)
    assert held["model.embed_tokens.weight"] == held["model.norm.weight"] == (torch.float32, False)
    state = {name: state for name, state in engine.full_state() if state is not None}
    assert state.keys() == model.adapters.trained
    assert len(state) == MATRICES
    assert {tensor.weight.dtype for tensor in state.values()} == {torch.float32}


def test_the_start_follows_the_seed_and_the_name_and_every_slice_of_it(tmp_path):
    model = outline(write_tiny(tmp_path / "base"), Setting())
    a, b = model.adapters.pair("model.layers.0.mlp.down_proj")
    whole = model.weights.read(a, 0, LORA.rank * 96)
    assert torch.equal(torch.cat([model.weights.read(a, 0, 100), model.weights.read(a, 100, LORA.rank * 96)]), whole)
    assert whole.abs().max() <= 96**-0.5
    assert whole.std().item() == pytest.approx((96 * 3) ** -0.5, rel=0.1)
    assert not model.weights.read(b, 0, LORA.rank * 64).any()
    assert not torch.equal(
        whole[:100], model.weights.read(model.adapters.pair("model.layers.1.mlp.down_proj")[0], 0, 100)
    )


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        ("q_porj", "`q_proj`"),
        ("proj", "end with `v_proj`, `q_proj`, `o_proj`: write one"),
        ("attn.o_proj", "`self_attn.o_proj`"),
        ("lm_head", "end with `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`"),
    ],
)
def test_a_target_that_the_layers_do_not_have_is_refused_with_the_nearest(target, advice):
    with torch.device("meta"):
        network = tiny_llama()
    with pytest.raises(UserError) as error:
        targets_in(network, Lora(targets=("v_proj", target)))
    assert f"spec.training.lora.targets: found `{target}`;" in str(error.value)
    assert advice in str(error.value)


def test_a_target_takes_every_layer_it_ends_and_a_value_models_head_is_none():
    network = tiny_classifier()
    found = targets_in(network, Lora(targets=("mlp.up_proj", "0.self_attn.q_proj")))
    assert found == (
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.1.mlp.up_proj",
    )
    assert len(targets_in(network, Lora())) == MATRICES / 2


def test_experts_are_refused_by_name():
    shape = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    with torch.device("meta"):
        network = MixtralForCausalLM(MixtralConfig(**shape))
    with pytest.raises(
        UnsupportedModelError, match=r"mixtral has `model\.layers\.0\.mlp\.experts\.\w+`, which is no matrix"
    ):
        targets_in(network, Lora())


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it itself
def test_layers_with_adapters_are_compiled_without_a_break_and_not_one_by_one(tmp_path):
    """Two graphs of four layers: the input of the first has no gradient. What is behind a graph plays no part."""
    model = outline(write_tiny(tmp_path / "base", num_hidden_layers=4), Setting())
    engine_of(model, Setting())
    torch._dynamo.reset()
    counters.clear()
    for layer in model.network.model.layers:
        layer.compile(dynamic=True, backend="eager")
    for tokens in (5, 7, 9):
        model.network.model(input_ids=torch.arange(tokens)[None], use_cache=False).last_hidden_state.sum().backward()
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
