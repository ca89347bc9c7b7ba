"""Imported once, in the process that sites are copies of: what they would all import and compute first."""

import gc

import serial

from skerry.experiments import cli  # noqa: F401
from skerry.federated import join  # noqa: F401

serial.trained({"method": "relay", "workers": 2, "rounds": 1, "local_steps": 1, "model.hidden": 8})
gc.freeze()  # else the first collection in each copy writes to all of this memory
