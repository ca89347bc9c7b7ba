"""Experiments: the command line, recipes, public data sets, reports and theorems. Nothing below imports this room.

It needs the extra ``experiments``: pip install "skerry[experiments]".
"""
