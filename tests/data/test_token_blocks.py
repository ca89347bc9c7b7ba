"""Texts as blocks of tokens, and the loss of next tokens, checked against transformers and by counting."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skerry.data import from_dataset, token_blocks
from skerry.experiments.recipes.next_token import next_token_loss
from skerry.training import Perplexity, causal_lm_loss, evaluate

transformers = pytest.importorskip("transformers")


class Words:
    """A tokenizer as those of transformers."""

    eos_token_id = 0

    def __len__(self) -> int:
        return 30

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]


def gpt2(**sizes):
    small = {"vocab_size": 30, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**small, **sizes}, bos_token_id=0, eos_token_id=0))


def test_texts_follow_each_other_with_an_end_token_between():
    assert token_blocks(["5 6 7", "8 9"], Words(), 2).tolist() == [[5, 6], [7, 0], [8, 9]]


def test_a_tokenizer_of_tokenizers():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    assert token_blocks("a b b a b", tokenizer, 2, model=gpt2()).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("text", "block", "sizes", "said"),
    [
        ("1 2 3", 5, {}, "texts: 4 tokens, expected at least block=5.*a text, not a file's name"),
        (["1 2 3", {"text": "4"}], 2, {}, r"texts\[1\]: dict, expected str; give dataset\['text'\]"),
        (b"1 2 3", 2, {}, r"texts\[0\]: bytes, expected str"),
        ("1 2 3", 2, {"vocab_size": 29}, "tokenizer: 30 tokens, but the model's embedding has 29 rows"),
        ("1 2 3", 20, {}, "block=20: the model has 16 positions"),
        ("1 2 3", 1, {}, "block=1: expected a whole number, at least 2"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(text, block, sizes, said):
    with pytest.raises(ValueError, match=said) as caught:
        token_blocks(text, Words(), block, model=gpt2(**sizes))
    assert "\n" not in str(caught.value)


def test_the_loss_is_that_of_transformers_and_perplexity_its_exp():
    torch.manual_seed(0)
    model, tokens = gpt2().eval(), torch.randint(30, (3, 7))
    labels = tokens.clone()
    labels[:, 5:] = -100
    output = model(tokens, labels=labels)
    torch.testing.assert_close(causal_lm_loss(output, labels), output.loss)
    torch.testing.assert_close(causal_lm_loss(output.logits, labels), output.loss)
    perplexity = Perplexity(causal_lm_loss)
    for part in (slice(2), slice(2, 3)):
        perplexity.update(output.logits[part].detach(), labels[part])
    assert perplexity.compute() == pytest.approx(float(output.loss.detach().exp()), rel=1e-5)


@pytest.mark.parametrize("loss_fn", [causal_lm_loss, next_token_loss])
def test_loss_and_perplexity_are_per_token_however_samples_are_batched(loss_fn):
    torch.manual_seed(0)
    net, x = nn.Embedding(10, 10), torch.randint(10, (8, 7))
    y = x.clone()
    y[:4, 3:] = -100
    y[5] = -100  # batches of one have nothing to learn here
    expected = float(loss_fn(net(x), y).detach())
    for size in (1, 2, 4, 8):
        score = evaluate(net, loss_fn, (x, y), metrics={"perplexity": Perplexity(loss_fn)}, batch_size=size)
        assert score.loss == pytest.approx(expected, rel=1e-5)
        assert score.metrics["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    probe = torch.arange(8) < 6
    probed = evaluate(net, loss_fn, (x, y), batch_size=2, probe=probe).probe_loss
    assert probed == pytest.approx(float(loss_fn(net(x[:6]), y[:6]).detach()), rel=1e-5)
    with pytest.raises(ValueError, match="all labels are -100"):
        evaluate(net, loss_fn, (x[5:6], y[5:6]))


def test_columns_as_datasets_gives_them_call_the_model_and_labels_are_found():
    samples = [
        {"input_ids": torch.arange(4), "attention_mask": torch.ones(4, dtype=torch.int64), "labels": torch.arange(4)}
        for _ in range(6)
    ]
    data = from_dataset(samples, num_workers=2, batch_size=3, seed=0)
    ((inputs, labels),) = data.batches(1, 0, 1)
    assert inputs.keys() == {"input_ids", "attention_mask"}
    logits = gpt2()(**inputs).logits
    torch.testing.assert_close(causal_lm_loss(logits, labels), F.cross_entropy(logits[:, :-1].mT, labels[:, 1:]))
