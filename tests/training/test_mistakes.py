"""Mistakes that a user makes in Python: each is one line that names the argument or the data, before it costs time."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from skerry import Processes, Session, Shards, discover, ist, split, train
from skerry.callbacks import Callback

X = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
Y = torch.arange(200) % 5
LOADER = DataLoader(TensorDataset(X, Y), batch_size=16)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5))


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1)


def data_of(x, y):
    return Shards(x, y, split(torch.zeros(len(y), dtype=torch.int64), 2, "iid", seed=0), batch_size=16, seed=0)


def go(model=None, x=X, y=Y, loss=F.cross_entropy, algorithm=None, **given):
    model = mlp() if model is None else model
    settings = {"optimizer": sgd, "num_rounds": 2, "test": (X, Y), **given}
    plan = discover(mlp(), X[:4])
    return train(model, loss, data_of(x, y), plan=plan, algorithm=algorithm or ist(2, local_steps=3), **settings)


class Mistyped(Callback):
    def on_rounds(self, session, record):
        pass


def of_other_parameters(_):
    return sgd(mlp())


MISTAKES = {
    "local_steps": lambda: ist(2, local_steps=5.0),
    "num_workers": lambda: ist("4", local_steps=5),
    "overlap": lambda: ist(2, local_steps=5, overlap=True),
    "num_rounds": lambda: go(num_rounds="30"),
    "batch_size": lambda: Shards(X, Y, [torch.arange(9)], batch_size=8.0, seed=0),
    "algorithm": lambda: go(algorithm="ist"),
    "optimizer.*LBFGS": lambda: go(optimizer=lambda net: torch.optim.LBFGS(net.parameters())),
    "optimizer.*parameters": lambda: go(optimizer=of_other_parameters),
    "optimizer.*None": lambda: go(optimizer=lambda p: None),
    "optimizer.*net.parameters": lambda: go(optimizer=lambda p: torch.optim.SGD(p, lr=0.1)),
    "optimizer.*SGD": lambda: go(optimizer=torch.optim.SGD),
    "optimizer.*without parameters": lambda: go(optimizer=lambda net: torch.optim.SGD([{"params": []}], lr=0.1)),
    r"^optimizer: .*empty.*parameters": lambda: go(optimizer=lambda net: torch.optim.SGD([], lr=0.1)),
    "schedule": lambda: go(schedule=torch.optim.lr_scheduler.CosineAnnealingLR),
    r"data.*\(4, 17\)": lambda: go(x=torch.randn(200, 17)),
    "data.*NaN": lambda: go(x=X * torch.nan),
    "data.*0 to 9": lambda: go(y=torch.arange(200) % 10),
    r"data.*float32 \(16,\)": lambda: go(y=Y.float()),
    r"data.*\(16, 1\)": lambda: go(y=Y[:, None]),
    r"loss.*\(16,\)": lambda: go(loss=nn.CrossEntropyLoss(reduction="none")),
    "loss_fn.*class": lambda: go(loss=nn.CrossEntropyLoss),
    "plan: got None": lambda: Session(mlp(), plan=None, algorithm=ist(2), optimizer=sgd, num_rounds=2),
    r"callbacks\[0\].*function": lambda: go(callbacks=[print]),
    "callbacks.*list": lambda: go(callbacks=Callback()),
    r"on_rounds.*on_round\b": lambda: go(callbacks=[Mistyped()]),
    "workers='4'": lambda: discover(mlp(), X[:4]).warnings("4"),
    "workers=0": lambda: discover(mlp(), X[:4]).warnings(0),
    "require gradients": lambda: go(model=mlp().requires_grad_(False)),
    r"test.*\(\d+, 17\)": lambda: go(test=(torch.randn(200, 17), Y)),
    "model: got 'resnet'": lambda: go(model="resnet"),
    "model: got the class Linear": lambda: go(model=nn.Linear),
    "model: got Flatten without parameters": lambda: train(nn.Flatten(), F.cross_entropy, data_of(X, Y)),
    "plan: got 'auto'": lambda: train(mlp(), F.cross_entropy, data_of(X, Y), plan="auto"),
    "runtime: got 'processes'": lambda: go(runtime="processes"),
    "runtime: got the class Processes": lambda: go(runtime=Processes),
    "checkpoints: got 'folder'": lambda: go(checkpoints="folder"),
    "start: got 'weights'": lambda: go(start="weights"),
    "optimizer: got 'adam'": lambda: go(optimizer="adam"),
    "optimizer: .*learning rate": lambda: go(optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=-1)),
    "loss_fn: got 'mse'": lambda: go(loss="mse"),
    "loss_fn: got None": lambda: train(mlp(), None, data_of(X, Y)),
    "max_bad_rounds=0": lambda: go(max_bad_rounds=0),
    "calibration_samples=-1": lambda: go(calibration_samples=-1),
    r"seed: got 0\.5": lambda: go(seed=0.5),
    "seed: got None": lambda: go(seed=None),
    "verify: got 'yes'": lambda: go(verify="yes"),
    "model: got 'net'": lambda: Session("net", plan=None, algorithm=ist(2), optimizer=sgd, num_rounds=2),
    "blocks: got 'x'": lambda: discover(mlp(), X[:4], blocks="x"),
    "test.*0 to 9": lambda: go(test=(X, torch.arange(200) % 10)),
    "test: got DataLoader.*torch.cat": lambda: go(test=LOADER),
    r"unexpected.*'id'.*from_loaders\(.*inputs=": lambda: discover(nn.Linear(16, 2), {"input": X[:4], "id": Y[:4]}),
    "x and y.*tuple": lambda: Shards((X, X), Y, [torch.arange(9)], batch_size=8, seed=0),
}


@pytest.mark.parametrize("named", MISTAKES)
def test_a_mistake_is_named_in_one_line(named):
    with pytest.raises(ValueError, match=named) as caught:
        MISTAKES[named]()
    assert len(str(caught.value).splitlines()) == 1


def test_a_loader_becomes_a_test_set_as_the_message_says():
    assert go(test=tuple(map(torch.cat, zip(*LOADER, strict=True)))).score == go().score


def test_data_with_nan_is_named_only_where_the_model_does_not_take_it():
    class FillsIn(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return self.net(x.nan_to_num())

    x = X.clone()
    x[::3, 0] = torch.nan
    data = Shards(x, Y, split(Y, 2, "iid", seed=0), batch_size=16, seed=0)
    plan = discover(FillsIn(), x[:4])
    train(FillsIn(), F.cross_entropy, data, plan=plan, algorithm=ist(2, local_steps=3), optimizer=sgd, num_rounds=2)


def test_a_shard_smaller_than_a_batch_is_warned_of():
    with pytest.warns(UserWarning, match=r"parts\[1\].*\b3\b.*batch_size=8"):
        Shards(X, Y, [torch.arange(9), torch.arange(3)], batch_size=8, seed=0)


def loop(step, schedule=lambda progress: 1.0):
    model = mlp()
    session = Session(
        model, plan=discover(model, X[:4]), algorithm=ist(2, local_steps=3), optimizer=sgd, num_rounds=2,
        schedule=schedule,
    )  # fmt: skip
    with session:
        for round in session.rounds():
            for worker in round.workers:
                step(model, worker)


def test_the_loss_of_the_full_model_is_refused():
    def step(model, worker):
        for _ in range(worker.num_steps):
            worker.step(F.cross_entropy(model(X), Y))

    with pytest.raises(ValueError, match=r"worker\.subnet"):
        loop(step)


def test_a_loss_that_is_a_number_is_refused():
    with pytest.raises(ValueError, match="float"):
        loop(lambda model, worker: worker.step(F.cross_entropy(worker.subnet(X), Y).item()))


def without_scheduler(model, worker):
    for _ in range(worker.num_steps):
        worker.step(F.cross_entropy(worker.subnet(X), Y))


def test_a_loop_without_a_scheduler_is_not_warned():
    loop(without_scheduler, schedule=lambda progress: 1 - progress / 2)  # warnings are errors
