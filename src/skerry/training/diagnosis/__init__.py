"""Diagnosis of a run: measures of each round, warnings that follow from theory, and the observer that gathers both."""

from skerry.training.diagnosis.measures import MEASURES, Diagnosis
from skerry.training.diagnosis.theory_warnings import TheoryWarning

__all__ = ["MEASURES", "Diagnosis", "TheoryWarning"]
