"""The plan: which indices of which tensor dims belong to which units."""

from skerry.plan.dims import Axis, DealtDim
from skerry.plan.plan_file import load_plan, save_plan
from skerry.plan.rules import Heads, In, Out
from skerry.plan.table import Note, Patch, Plan

__all__ = [
    "Axis",
    "DealtDim",
    "Heads",
    "In",
    "Note",
    "Out",
    "Patch",
    "Plan",
    "load_plan",
    "save_plan",
]
