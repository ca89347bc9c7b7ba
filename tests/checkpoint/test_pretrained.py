"""Folders that transformers loads, checked against the models that were saved: logits, tied weights, generated text."""

import pytest
import torch
from torch import nn

from skerry import discover
from skerry.checkpoint import save_pretrained
from skerry.partitions import Disjoint
from skerry.subnet import SideBySide, extract
from skerry.subnet.side_by_side import nets_of, side_by_side

transformers = pytest.importorskip("transformers")
TOKENS = torch.randint(1, 40, (2, 7), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 32,
}  # fmt: skip


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


MODELS = {
    "gpt2": (gpt2, "AutoModelForCausalLM"),
    "llama": (lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)), "AutoModelForCausalLM"),
    "bert": (lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)), "AutoModelForMaskedLM"),
}


def _made(kind: str, groups: int, what: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[kind][0]().eval()
    plan = discover(model, TOKENS, grouped_norms=groups or False)
    nets = [Disjoint(2, 0).assign(plan.axes, 0).units(worker) for worker in range(2)]
    made = {
        "full": lambda: model,
        "narrow": lambda: extract(model, plan, nets[0]),
        "nets": lambda: side_by_side(model, plan, nets)[0],
    }
    return made[what]().eval()


@pytest.mark.parametrize(
    ("kind", "groups", "what"),
    [("gpt2", 0, "full"), ("gpt2", 2, "nets"), ("gpt2", 0, "narrow"), ("llama", 4, "full"), ("llama", 4, "nets"),
     ("bert", 4, "nets")],
)  # fmt: skip
@torch.no_grad()
def test_a_loaded_folder_computes_what_was_saved(kind, groups, what, tmp_path):
    model, auto = _made(kind, groups, what), getattr(transformers, MODELS[kind][1])
    save_pretrained(model, tmp_path / "saved")
    unchanged = (groups, what) == (0, "full")
    loaded = auto.from_pretrained(tmp_path / "saved", trust_remote_code=not unchanged).eval()
    assert (type(loaded) is type(model)) == unchanged
    torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits)
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())  # tied ones
    if kind == "bert":
        return
    text = TOKENS
    for _ in range(3):
        text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], 1)
    mask = torch.ones_like(TOKENS)
    made = loaded.generate(TOKENS, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(made[:, : text.shape[1]], text)


def test_the_loss_of_the_mean_of_nets_is_that_of_its_logits(tmp_path):
    model = _made("llama", 2, "nets")
    save_pretrained(model, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    logits = model(TOKENS).logits[:, :-1]
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())
    torch.testing.assert_close(loaded(TOKENS, labels=TOKENS).loss, expected)


@torch.no_grad()
def test_the_end_token_and_the_dtype_are_kept(tmp_path):
    model = _made("gpt2", 2, "nets").bfloat16()
    end = int(model(TOKENS[:1]).logits[0, -1].argmax())  # what comes next
    for net in nets_of(model).values():
        net.generation_config.eos_token_id = end
        net.generation_config.pad_token_id = 0
    save_pretrained(model, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True, dtype="auto").eval()
    assert (loaded.dtype, loaded.config.eos_token_id) == (torch.bfloat16, 0)
    made = loaded.generate(TOKENS[:1], attention_mask=torch.ones_like(TOKENS[:1]), max_new_tokens=5, do_sample=False)
    assert made[0, TOKENS.shape[1] :].tolist() == [end]


def test_labels_of_classes_are_kept_and_their_loss_is_refused(tmp_path):
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(**SIZES, id2label={0: "no", 1: "yes", 2: "maybe"})
    ).eval()
    save_pretrained(
        extract(model, (plan := discover(model, TOKENS)), Disjoint(2, 0).assign(plan.axes, 0).units(0)), tmp_path
    )
    auto = transformers.AutoModelForSequenceClassification
    loaded = auto.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    with pytest.raises(ValueError, match="only language models"):
        loaded(TOKENS, labels=torch.tensor([0, 1]))


def test_an_unchanged_model_without_logits_is_saved(tmp_path):
    model = transformers.BertModel(transformers.BertConfig(**SIZES))
    save_pretrained(model, tmp_path)
    loaded = transformers.AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(TOKENS)[0], model.eval()(TOKENS)[0])


def _tokenizer(num: int) -> object:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({f"w{k}": k for k in range(num)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_the_tokenizer_comes_along(tmp_path):
    save_pretrained(_made("gpt2", 0, "full"), tmp_path, _tokenizer(40))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("w3 w7")["input_ids"] == [3, 7]


def test_what_cannot_be_saved_is_said_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="41 tokens, but the model's embedding has 40 rows"):
        save_pretrained(_made("gpt2", 0, "full"), tmp_path, _tokenizer(41))
    with pytest.raises(ValueError, match="Linear is not a model of transformers"):
        save_pretrained(SideBySide([nn.Linear(2, 2)]), tmp_path)
    assert list(tmp_path.iterdir()) == []
