"""Value models against transformers' own sequence classifiers."""

import pytest
import torch
from ranks import run_ranks
from tiny_runs import SHAPE, VOCABULARY, tiny_classifier, tiny_llama, tiny_qwen2
from tiny_runs import VALUE_GROUPS as GROUPS
from tiny_runs import trained_values as trained_engine
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedTokenizerFast,
)

from alignment_trainer.checkpoint.export import export_model
from alignment_trainer.checkpoint.output import FolderOutput
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.packing import pack, pack_whole
from alignment_trainer.model.heads import scorer, value_scorer
from alignment_trainer.model.load import load_value_model
from alignment_trainer.model.mistakes import UnsupportedModelError


def words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", unk_token="w0")


def save(network, folder):
    network.save_pretrained(folder)
    words().save_pretrained(folder)
    return folder


def separate_scores(classifier, groups):
    """Each text alone, without padding, by transformers' forward."""
    texts = [group.prompt + completion for group in groups for completion in group.completions]
    return torch.stack([classifier(torch.tensor([text])).logits[0, 0] for text in texts])


def test_whole_completions_are_laid_out_to_their_last_tokens():
    batch = pack_whole([PromptGroup((5, 6), ((7, 8, 9), (10,))), PromptGroup((1,), ((2, 3),))])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 1, 2, 3]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1, 2]]
    assert batch.layout == ((2, 3, 1), (1, 2))
    assert batch.predictors.tolist() == [4, 5, 8]
    assert batch.targets.tolist() == [9, 10, 3]
    assert batch.sequence.tolist() == [0, 1, 2]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_packed_scores_and_gradients_equal_those_of_texts_alone(family):
    classifier = tiny_classifier(family).train()
    expected = separate_scores(classifier, GROUPS)
    expected.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in classifier.named_parameters()}
    classifier.zero_grad()
    found = value_scorer(classifier)(pack_whole(GROUPS))
    found.square().sum().backward()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for name, parameter in classifier.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-4, rtol=1e-4)


def test_values_are_those_of_the_states_before_each_token():
    """V(s_t) is what the classifier says of the text that ends before token t."""
    classifier, group = tiny_classifier(), PromptGroup((5, 6), ((7, 8, 9), (10, 11)))
    texts = [(5, 6), (5, 6, 7), (5, 6, 7, 8), (5, 6), (5, 6, 10)]
    expected = torch.stack([classifier(torch.tensor([text])).logits[0, 0] for text in texts])
    torch.testing.assert_close(value_scorer(classifier)(pack([group])), expected, atol=1e-5, rtol=0)


def test_scores_are_fp32_under_autocast():
    packed = value_scorer(tiny_classifier())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = packed(pack_whole(GROUPS))
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())


def test_a_new_head_has_its_seed_or_is_zero(tmp_path):
    folder = save(tiny_llama(), tmp_path)
    first, again, other = (load_value_model(folder, seed=seed).network.score.weight for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    many = torch.stack([load_value_model(folder, seed=seed).network.score.weight for seed in range(40)])
    assert many.std().item() == pytest.approx((SHAPE["hidden_size"] + 1) ** -0.5, rel=0.05)
    critic = load_value_model(folder, zero_head=True)
    assert critic.scorer(pack(GROUPS)).abs().max() == 0


def test_a_head_that_is_there_is_kept(tmp_path):
    classifier = tiny_classifier()
    loaded = load_value_model(save(classifier, tmp_path), zero_head=True)
    assert torch.equal(loaded.network.score.weight, classifier.score.weight)
    assert loaded.scorer.hub_names["head.weight"] == "score.weight"


def test_other_heads_are_refused_by_name():
    with pytest.raises(UnsupportedModelError, match=r"llama: needs a linear head `score` of one .* out_features=2"):
        value_scorer(tiny_classifier(labels=2))
    bert = AutoModelForSequenceClassification.from_config(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    with pytest.raises(UnsupportedModelError, match="bert: needs a linear head `score`"):
        value_scorer(bert)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_export_is_a_classifier_that_scores_equally(tmp_path, precision):
    loaded = load_value_model(save(tiny_llama(), tmp_path / "base"))
    export_model(loaded, trained_engine(loaded.network), FolderOutput(tmp_path), precision)
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert exported.config.architectures == ["LlamaForSequenceClassification"]
    assert exported.config.num_labels == 1
    ours = load_value_model(tmp_path / "model").scorer(pack_whole(GROUPS))
    torch.testing.assert_close(ours, separate_scores(exported, GROUPS), atol=1e-5, rtol=0)
    trained = loaded.scorer(pack_whole(GROUPS))
    torch.testing.assert_close(ours, trained, atol=1e-5 if precision == "fp32" else 0.2, rtol=0)


def test_padding_that_is_also_the_end_is_left_out_of_an_export(tmp_path):
    """transformers would score the token before it."""
    folder = save(tiny_llama(), tmp_path)
    tokenizer = words()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    assert load_value_model(folder).network.config.pad_token_id is None
    tokenizer.pad_token = "w2"
    tokenizer.save_pretrained(folder)
    assert load_value_model(folder).network.config.pad_token_id == 2


def test_two_ranks_of_deepspeed_train_a_value_model_as_plain_torch_does():
    pytest.importorskip("deepspeed")
    expected = {name: weight.sum().item() for name, weight in trained_engine(tiny_classifier()).full_weights()}
    found = run_ranks(2, "rank_bodies:value_models", shardings=["fsdp2", "zero2", "zero3"])[0]
    for sharding in ("fsdp2", "zero2", "zero3"):
        assert found[sharding] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_temperature_divides_the_logits():
    causal = tiny_qwen2()
    (group,) = groups = [PromptGroup((1, 2), ((3, 4, 5),))]
    logits = causal(torch.tensor([[1, 2, 3, 4]])).logits[0, 1:] / 0.7
    expected = logits.log_softmax(-1).gather(1, torch.tensor(group.completions[0])[:, None]).squeeze(1)
    torch.testing.assert_close(scorer(causal, temperature=0.7)(pack(groups)), expected, atol=1e-5, rtol=0)
