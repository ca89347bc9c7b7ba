"""The plan: which indices of which tensor dims belong to which units.

``table.py`` has the ``Plan`` itself, ``dims.py`` its axes and table rows. ``rules.py`` and ``from_rules.py`` build one
from rules (``Out``, ``In``, ``Heads``); ``skerry.discover`` builds one from a model. ``plan_file.py`` saves it as JSON.
"""

from skerry.plan.dims import Axis, DealtDim
from skerry.plan.plan_file import load_plan, save_plan
from skerry.plan.rules import Heads, In, Out
from skerry.plan.table import Note, Patch, Plan

__all__ = ["Axis", "DealtDim", "Heads", "In", "Note", "Out", "Patch", "Plan", "load_plan", "save_plan"]
