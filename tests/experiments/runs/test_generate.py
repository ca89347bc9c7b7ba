"""Text from a language model, checked with nets whose next token is known."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.experiments.cli import call
from skerry.experiments.runs.generate import generate
from skerry.predictor import Predictor, Signature

LETTERS = tuple("abcd")


class Next(nn.Module):
    """The next letter of the alphabet, ten times as likely in logits; fails on more tokens than in training."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        assert tokens.shape[1] <= 3
        return {"logits": self.scale * F.one_hot((tokens + 1) % 4, 4)}


def predictor(**given) -> Predictor:
    return Predictor(Next(), Signature(**{"shape": (3,), "dtype": "int64", "classes": LETTERS, **given}), name="run")


def test_the_most_likely_letter_is_added_again_and_again():
    assert generate(predictor(), "bc", tokens=6, temperature=0) == "bcdabcda"


def test_a_high_temperature_draws_others_and_the_seed_decides():
    texts = [generate(predictor(), "a", tokens=40, temperature=50, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert set("".join(texts)) == set(LETTERS)


def test_tokens_of_a_tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"one": 0, "two": 1, "three": 2, "four": 3}, "one"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    signature = Signature.from_json(predictor(tokenizer=tokenizer.to_str()).signature.to_json())
    assert generate(Predictor(Next(), signature, name="run"), "two", tokens=2, temperature=0) == "two three four"


@pytest.mark.parametrize(
    ("given", "prompt", "more", "said"),
    [
        ({}, "abx", {}, "prompt: 'x' is not one of the 4 characters of run"),
        ({}, "", {}, "prompt: empty"),
        ({}, "a", {"tokens": 0}, "tokens=0: expected a whole number"),
        ({}, "a", {"temperature": -1}, "temperature=-1: expected 0 or more"),
        ({"classes": 4}, "a", {}, "run: not a language model of characters"),
        ({"shape": (3, 2)}, "a", {}, "run: not a language model of characters"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(given, prompt, more, said):
    with pytest.raises(ValueError, match=said) as caught:
        generate(predictor(**given), prompt, **more)
    assert "\n" not in str(caught.value)


def test_the_command_prints_the_text(monkeypatch, capsys):
    monkeypatch.setattr("skerry.experiments.cli.trained.load", lambda folder: predictor())
    assert call(["generate", "run", "ab", "--tokens", "3", "--temperature", "0"]) == (0, "")
    assert capsys.readouterr().out == "abcda\n"


def test_a_run_of_a_model_of_transformers_is_exported_with_its_tokenizer(monkeypatch, tmp_path):
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    sizes = {"vocab_size": 4, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 3}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"one": 0, "two": 1}, "one"))
    signature = Signature(shape=(3,), dtype="int64", classes=LETTERS, tokenizer=tokenizer.to_str())
    of_run = Predictor(model, signature, name="run", round=7)
    monkeypatch.setattr("skerry.experiments.runs.load.load", lambda folder: of_run)
    assert call(["export", "run", "--format", "pretrained", "--out", str(tmp_path)]) == (0, "")
    loaded, tokens = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval(), torch.tensor([[1, 0]])
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("two")["input_ids"] == [1]
    monkeypatch.setattr("skerry.experiments.runs.load.load", lambda folder: predictor())
    assert call(["export", "run", "--format", "pretrained", "--out", str(tmp_path / "other")])[1].startswith(
        "error: model: Next is not a model of transformers"
    )
