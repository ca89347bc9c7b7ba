"""The one error of this folder that a user can cause without writing code."""


class DataError(ValueError):
    """A data set is missing, altered, not the one asked for, or can't be fetched. One line, with a remedy."""


class OtherDatasetError(DataError):
    """A file holds another known data set than the one asked for: intact, so never to be overwritten."""
