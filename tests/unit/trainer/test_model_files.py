"""A model is what its files say: names, shapes, dtypes and numbers, compared before anything is trained."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import SHAPE, tiny_tokenizer
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from alignment_api.contract.inputs import Model
from alignment_trainer.data.files import sha256
from alignment_trainer.data.sources import Resolved
from alignment_trainer.model.inspect import (
    Inspection,
    Named,
    check_model,
    language_model,
    model_fingerprint,
    reward_model,
    value_model,
)
from alignment_trainer.model.load import load_model, load_value_model
from alignment_trainer.model.weight_files import digest_of_finite, read_headers
from alignment_trainer.process.errors import UserError, failure_of

Tensors = dict[str, Tensor]
UP = "model.layers.0.mlp.up_proj.weight"
UNTIED = SHAPE | {"tie_word_embeddings": False}


def write(network: Any, folder: Path) -> Path:
    network.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def config(kind: Any = LlamaConfig, **extra: Any) -> Any:
    return kind(**({"vocab_size": 400, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2} | UNTIED | extra))


GPT2_OF_64_POSITIONS = GPT2Config(
    vocab_size=400, n_positions=64, n_embd=64, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=2
)
TWICE_AS_FAR = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model whose head is not tied."""
    torch.manual_seed(0)
    return write(LlamaForCausalLM(config()), tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture
def changed(whole: Path, tmp_path: Path) -> Callable[[Callable[[Tensors], Tensors]], Path]:
    """Copies the model with other tensors."""

    def change(tensors: Callable[[Tensors], Tensors]) -> Path:
        return with_tensors(shutil.copytree(whole, tmp_path / "changed"), tensors)

    return change


def with_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def with_config(folder: Path, **fields: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def inspect(folder: Path, check: Any = language_model) -> Any:
    named = Named(Model(source=f"file://{folder}"), "spec.model")
    return check_model(named, Resolved(folder), [check])


def refusal(folder: Path, check: Any = language_model) -> str:
    with pytest.raises(UserError) as refused:
        inspect(folder, check)
    assert not failure_of(refused.value).retryable
    assert str(refused.value).startswith(f"spec.model.source: `file://{folder}`: ")
    return str(refused.value)


def in_two_files(folder: Path, weight_map: Callable[[dict[str, str]], dict[str, str]] = dict) -> Path:
    """Splits the weights; weight_map: what becomes of the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    index = {name: file for file, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map(index)}))
    return folder


def test_a_whole_model_is_counted_and_has_the_fingerprint_of_its_files(whole):
    report = inspect(whole)
    assert report.parameters == sum(tensor.numel() for tensor in load_file(whole / "model.safetensors").values())
    assert report.fingerprint == model_fingerprint(whole)
    assert report.probe.model == "whole"
    assert max(report.probe.alone, report.probe.neighbour) < 1e-5


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "base_model.model.", "_fsdp_wrapped_module."])
def test_names_of_a_wrapped_model_are_refused_with_what_to_write(changed, wrapper):
    found = refusal(changed(lambda tensors: {wrapper + name: tensor for name, tensor in tensors.items()}))
    assert f"21 of 21 tensors carry `{wrapper}`" in found
    assert "write `lm_head.weight`" in found


def test_a_wrapper_within_a_name_is_refused_too(changed):
    found = refusal(changed(lambda tensors: {n.replace("layers.", "layers._orig_mod."): t for n, t in tensors.items()}))
    assert "18 of 21 tensors carry `_orig_mod.`" in found


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (".layers.1.mlp", r"lacks 3 of the tensors of LlamaForCausalLM: `model\.layers\.1\.mlp\.down_proj\.weight`"),
        ("lm_head", "it has no language-model head, and the config does not tie it to the embedding"),
        ("embed_tokens", r"lacks 1 .*`model\.embed_tokens\.weight`"),
        ("layernorm", r"lacks 4 .* and 1 more"),
    ],
)
def test_missing_tensors_are_refused_by_name(changed, gone, words):
    assert re.search(words, refusal(changed(lambda tensors: {n: t for n, t in tensors.items() if gone not in n})))


def test_another_name_is_refused_with_the_nearest(changed):
    found = refusal(changed(lambda tensors: {n.replace("up_proj", "up_projection"): t for n, t in tensors.items()}))
    assert (
        f"lacks 2 of the tensors of LlamaForCausalLM: `{UP}` (nearest: `{UP.replace('up_proj', 'up_projection')}`)"
        in found
    )
    assert "has 2 that LlamaForCausalLM does not have" in found


def test_a_surplus_tensor_is_refused(changed):
    found = refusal(changed(lambda tensors: tensors | {"model.layers.2.mlp.up_proj.weight": torch.zeros(128, 64)}))
    assert "has 1 that LlamaForCausalLM does not have: `model.layers.2.mlp.up_proj.weight`" in found


def test_another_shape_is_refused_with_both(changed):
    found = refusal(changed(lambda tensors: tensors | {UP: tensors[UP][:100].clone()}))
    assert f"tensor `{UP}` has shape [100, 64], LlamaForCausalLM has [128, 64] by the config" in found


def test_a_folder_of_the_bare_body_lacks_no_name_once_its_head_is_tied(whole, tmp_path):
    """transformers adds the prefix; the head is the embedding."""
    folder = with_config(shutil.copytree(whole, tmp_path / "bare"), tie_word_embeddings=True)
    with_tensors(folder, lambda t: {n.removeprefix("model."): x for n, x in t.items() if n != "lm_head.weight"})
    assert inspect(folder).probe.model == "whole"
    loaded, given = load_model(folder).network, load_file(folder / "model.safetensors")
    assert torch.equal(loaded.model.layers[1].mlp.up_proj.weight, given["layers.1.mlp.up_proj.weight"])
    assert torch.equal(loaded.lm_head.weight, given["embed_tokens.weight"])


def test_a_tensor_with_and_without_the_bodys_prefix_is_refused(changed):
    found = refusal(changed(lambda tensors: tensors | {"norm.weight": torch.ones(64)}))
    assert "tensors `norm.weight` and `model.norm.weight` would be loaded as one; remove one" in found


def test_a_tied_head_may_be_saved_if_it_is_the_embedding(whole, tmp_path):
    folder = with_config(shutil.copytree(whole, tmp_path / "tied"), tie_word_embeddings=True)
    assert "the config ties `lm_head.weight` to `model.embed_tokens.weight`" in refusal(folder)
    with_tensors(folder, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    inspect(folder)


def test_buffers_that_older_versions_saved_are_no_surplus(changed):
    """Nor do their numbers matter."""
    folder = changed(lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.full((16,), float("inf"))})
    assert inspect(folder).probe.model == "whole"


def test_gpt2_as_it_was_published_is_whole(tmp_path):
    """Names without the body's prefix, causal masks as buffers, a tied head that is not saved."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    folder = write(GPT2LMHeadModel(config(GPT2Config, **sizes, tie_word_embeddings=True)), tmp_path / "gpt2")
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in range(2)}
    with_tensors(folder, lambda t: {n.removeprefix("transformer."): x for n, x in t.items()} | masks)
    report = inspect(folder)
    assert report.dropout == {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "summary_first_dropout": 0.1}


def test_experts_that_are_joined_at_loading_are_compared_by_the_names_in_the_files(tmp_path):
    folder = write(MixtralForCausalLM(config(MixtralConfig, num_local_experts=3)), tmp_path / "experts")
    expert = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    assert expert in read_headers(folder)
    inspect(folder)
    with_tensors(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != expert})
    assert f"lacks 1 of the tensors of MixtralForCausalLM: `{expert}`" in refusal(folder)


def test_weights_in_several_files_are_whole_together(whole, tmp_path):
    folder = in_two_files(shutil.copytree(whole, tmp_path / "two"))
    assert inspect(folder).parameters == inspect(whole).parameters
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "lacks `weight_map`, which says where each tensor is" in refusal(folder)


@pytest.mark.parametrize("fields", [{"attention_dropout": "much"}, {"model_type": "unheard"}, {"hidden_size": 63}])
def test_a_config_that_does_not_add_up_is_refused_in_its_words(whole, tmp_path, fields):
    folder = with_config(shutil.copytree(whole, tmp_path / "odd"), **fields)
    assert re.search(r"its config cannot be used: .*(attention_dropout|unheard|63)", refusal(folder))


def test_an_index_that_disagrees_with_its_files_is_refused(whole, tmp_path):
    moved = {UP: "model-00001-of-00002.safetensors"}
    for number, (index, words) in enumerate(
        {
            lambda index: (
                index | {"model.new": "model-00001-of-00002.safetensors"}
            ): "`model.new` is in .*, which lacks",
            lambda index: index | {UP: moved[UP] if index[UP] != moved[UP] else "model-00002-of-00002.safetensors"}: (
                f"says that tensor `{UP}` is in .*; it is in"
            ),
            lambda index: {name: file for name, file in index.items() if name != UP}: f"does not name tensor `{UP}`",
        }.items()
    ):
        folder = in_two_files(shutil.copytree(whole, tmp_path / str(number)), index)
        assert re.search(words, refusal(folder))


def test_a_tensor_in_two_files_is_refused(whole, tmp_path):
    folder = in_two_files(shutil.copytree(whole, tmp_path / "doubled"))
    file = folder / "model-00002-of-00002.safetensors"
    save_file(load_file(file) | {"lm_head.weight": torch.zeros(400, 64)}, file, metadata={"format": "pt"})
    assert "tensor `lm_head.weight` is in model-00001-of-00002.safetensors and in model-00002" in refusal(folder)


def test_two_sets_of_weights_are_refused(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "both")
    shutil.copyfile(folder / "model.safetensors", folder / "copy.safetensors")
    index = dict.fromkeys(read_headers(folder), "copy.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert "has model.safetensors and model.safetensors.index.json: two sets of weights" in refusal(folder)


def test_pickled_quantized_and_adapter_weights_are_refused_by_name(whole, tmp_path):
    pickled = shutil.copytree(whole, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert re.search(r"lacks model\.safetensors; it has pytorch_model\.bin, .* save_pretrained", refusal(pickled))
    gptq = with_config(
        shutil.copytree(whole, tmp_path / "gptq"), quantization_config={"quant_method": "gptq", "bits": 4}
    )
    assert "config.json has a quantization_config (gptq)" in refusal(gptq)
    adapter = shutil.copytree(whole, tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    assert "has an adapter_config.json" in refusal(adapter)


def test_packed_numbers_are_refused_by_tensor_and_dtype(changed):
    found = refusal(changed(lambda tensors: tensors | {UP: tensors[UP].to(torch.int8)}))
    assert f"tensor `{UP}` in model.safetensors is I8, as quantized weights are" in found


def test_cut_files_and_files_of_another_format_are_refused(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "cut")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-3])
    assert "it was cut off; copy it again" in refusal(folder)
    file.write_text("version https://git-lfs.github.com/spec/v1")
    assert "is not a safetensors file" in refusal(folder)
    file.write_bytes(content[:9] + b"!" + content[10:])
    assert "its header is no JSON" in refusal(folder)
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "each with `dtype`, `shape` and `data_offsets`; copy it again" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, -1])
def test_a_number_that_is_not_finite_is_refused_by_file_and_tensor(tmp_path, dtype, bad, place):
    tensors = {"a": torch.randn(300).to(dtype), "b": torch.randn(7, 5).to(dtype)}
    tensors["a"][1] = torch.finfo(dtype).max
    save_file(tensors, tmp_path / "model.safetensors")
    stored = read_headers(tmp_path)
    names = frozenset(tensors)
    file = tmp_path / "model.safetensors"
    assert digest_of_finite(stored, names, file) == sha256(file)
    tensors["b"].view(-1)[place] = bad
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"tensor `b` in model\.safetensors holds a NaN or an infinity"):
        digest_of_finite(read_headers(tmp_path), names, file)
    assert digest_of_finite(read_headers(tmp_path), frozenset({"a"}), file) == sha256(file)


def test_a_nan_in_the_weights_is_found_before_training(changed):
    def break_one(tensors: Tensors) -> Tensors:
        tensors[UP][3, 4] = float("nan")
        return tensors

    assert f"tensor `{UP}` in model.safetensors holds a NaN" in refusal(changed(break_one))


def test_a_reward_model_is_no_policy_and_a_policy_no_reward_model(whole, tmp_path):
    reward = write(LlamaForSequenceClassification(config(num_labels=1)), tmp_path / "reward")
    tied = write(LlamaForSequenceClassification(config(num_labels=1, tie_word_embeddings=True)), tmp_path / "tied")
    for folder in (reward, tied):
        assert "it is a classifier (a reward model), which writes no text" in refusal(folder)
    assert inspect(reward, reward_model).probe is not None
    assert "it is a LlamaForCausalLM, which scores nothing" in refusal(whole, reward_model)


def test_a_new_head_is_made_for_a_language_model_alone(whole, tmp_path):
    inspect(whole, value_model)
    reward = write(LlamaForSequenceClassification(config(num_labels=1)), tmp_path / "reward")
    with_tensors(reward, lambda tensors: {name: t for name, t in tensors.items() if name != "score.weight"})
    assert "its config says that it is a classifier, and its head is missing" in refusal(reward, value_model)
    with pytest.raises(UserError, match="its head is missing"):
        load_value_model(reward)


def test_a_body_with_gaps_is_refused_for_values_too(changed):
    folder = changed(lambda tensors: {n: t for n, t in tensors.items() if ".layers.1.mlp" not in n})
    assert "lacks 3 of the tensors of LlamaForSequenceClassification" in refusal(folder, value_model)


@pytest.mark.parametrize("load", [load_model, load_value_model])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != UP},
        lambda tensors: tensors | {"model.layers.0.mlp.other.weight": torch.zeros(2)},
        lambda tensors: tensors | {UP: tensors[UP][:100].clone()},
    ],
    ids=["missing", "surplus", "reshaped"],
)
def test_what_was_not_read_is_never_trained(changed, load, change):
    """The folder changed after `prepare` had looked."""
    with pytest.raises(UserError, match=r"lacks 1 of the tensors|has 1 that|has shape \[100, 64\]") as refused:
        load(changed(change))
    assert not failure_of(refused.value).retryable


def test_a_window_shorter_than_the_longest_sequence_is_refused_before_a_gpu_starts(tmp_path):
    torch.manual_seed(0)
    folder = write(MistralForCausalLM(config(MistralConfig, sliding_window=64)), tmp_path / "window")
    named = Named(Model(source=f"file://{folder}"), "spec.model")
    with pytest.raises(UserError, match=r"mistral attends to 64 tokens at most .* write maxLength: 64 or less"):
        check_model(named, Resolved(folder), [language_model], Inspection(longest=65))
    check_model(named, Resolved(folder), [language_model], Inspection(longest=64))


@pytest.mark.parametrize(
    ("network", "limit"),
    [
        (lambda: GPT2LMHeadModel(GPT2_OF_64_POSITIONS), 64),
        (lambda: LlamaForCausalLM(config(max_position_embeddings=64)), 64),
        (lambda: LlamaForCausalLM(config(max_position_embeddings=64, rope_parameters=TWICE_AS_FAR)), 128),
    ],
    ids=["learnt", "rotary", "scaled"],
)
def test_a_sequence_longer_than_a_model_has_positions_is_refused_before_a_gpu_starts(tmp_path, network, limit):
    torch.manual_seed(0)
    folder = write(network(), tmp_path / "positions")
    named = Named(Model(source=f"file://{folder}"), "spec.model")
    with pytest.raises(UserError, match=rf"has {limit} positions .* write maxLength: {limit} or less"):
        check_model(named, Resolved(folder), [language_model], Inspection(longest=limit + 1))
    check_model(named, Resolved(folder), [language_model], Inspection(longest=limit))


def test_a_tokenizer_that_its_library_cannot_read_is_refused_in_its_words(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "tokenizer")
    (folder / "tokenizer.json").write_text('{"version": "9", "model": {"type": "Unheard"}}')
    assert "its tokenizer cannot be loaded: " in refusal(folder)
