"""Experiments: the command line, recipes, public data sets, reports and theorems. No other part of Skerry imports it.

It needs the extra ``experiments``: pip install "skerry[experiments]".
"""
