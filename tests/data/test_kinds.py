"""Texts of several kinds are told apart; kinds are as large as each other; a mixture is exact in probability."""

import pytest
import torch

import skerry
from skerry.data import kinds_of_text
from skerry.subnet import Mixture


def texts(num_documents, *, kinds=3, size=400):
    """Documents of tokens, each from the Markov chain of its kind, in mixed order; and their kinds."""
    chains = torch.rand(kinds, 12, 12).pow(6)
    kind = torch.arange(num_documents)[torch.randperm(num_documents)] % kinds
    rows = []
    for k in kind.tolist():
        row = [0]
        for _ in range(size - 1):
            row.append(int(torch.multinomial(chains[k, row[-1]], 1)))
        rows.append(torch.tensor(row))
    return torch.stack(rows), kind


def test_documents_of_a_kind_come_together_and_workers_get_one_kind_each():
    documents, kind = texts(12)
    found = kinds_of_text(documents.view(48, 100), 3, samples_per_document=4, seed=1)
    pairs = set(zip(kind.repeat_interleave(4).tolist(), found.tolist(), strict=True))
    assert len(pairs) == 3  # one to one
    parts = skerry.split(found, 3, "by_label", seed=0)
    assert all(len(found[part].unique()) == 1 for part in parts)


@pytest.mark.parametrize(("num", "kinds"), [(7, 3), (6, 3), (5, 1), (8, 3), (4, 4)])
def test_kinds_are_as_large_as_each_other_even_if_texts_are_not(num, kinds):
    documents = torch.cat([torch.randint(9, (num - 1, 50)), torch.randint(9, (1, 50)) + 9])
    counts = kinds_of_text(documents, kinds).bincount(minlength=kinds)
    assert counts.max() - counts.min() <= 1
    assert counts.sum() == num


def test_more_kinds_than_documents_are_refused():
    with pytest.raises(ValueError, match=r"num_kinds=3: expected 1 to 2, the number of documents \(4 samples, 2 in"):
        kinds_of_text(torch.zeros(4, 5, dtype=torch.int64), 3, samples_per_document=2)


class Table(torch.nn.Module):
    """Next-token logits by the last token."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, tokens):
        return self.logits[tokens]


def test_the_likelihood_of_a_sequence_is_the_mean_over_the_nets():
    nets = [Table(torch.randn(5, 5, dtype=torch.float64)) for _ in range(3)]
    tokens, mixture = torch.randint(5, (4, 9)), Mixture(nets)
    logs = mixture(tokens)
    torch.testing.assert_close(logs.exp().sum(-1), torch.ones(4, 9, dtype=torch.float64))
    found = logs[:, :-1].gather(-1, tokens[:, 1:, None]).sum((1, 2))
    each = mixture.log_likelihood(tokens)
    torch.testing.assert_close(found, each.exp().mean(0).log())
    later = torch.randint(5, (4, 6))
    both = torch.cat([tokens, later], 1)
    # The text before counts: the second part alone, with the likelihood of all before it, is as in the whole.
    torch.testing.assert_close(mixture(later, mixture.log_likelihood(both[:, :10])), mixture(both)[:, 9:])


def test_a_mixture_of_equal_nets_is_the_net():
    net, tokens = Table(torch.randn(5, 5)), torch.randint(5, (2, 7))
    torch.testing.assert_close(Mixture([net, net])(tokens), net(tokens).log_softmax(-1))


def test_a_mixture_of_narrow_floats_adds_up_in_wide_ones():
    nets, tokens = [Table(torch.randn(5, 5).bfloat16()) for _ in range(2)], torch.randint(5, (2, 300))
    expected = Mixture([Table(net.logits.detach().float()) for net in nets])
    torch.testing.assert_close(Mixture(nets)(tokens), expected(tokens))
