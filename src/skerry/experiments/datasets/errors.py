"""Errors of data sets that a user can cause without writing code."""


class DataError(ValueError):
    """A data set is missing, altered, a different one, or cannot be downloaded. One line, with a remedy."""


class OtherDatasetError(DataError):
    """A file holds another known data set than the one asked for. It is intact, so it is never overwritten."""
