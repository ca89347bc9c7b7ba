# ruff: noqa: F401
"""What the server has imported that forks the processes of tests (``machines.py``)."""

import gc

import hypothesis
import pytest
import sklearn.datasets
import torch._dynamo
import torch.distributed.run
import zoo

import skerry.experiments.cli.commands

gc.freeze()  # no process looks through all that again
