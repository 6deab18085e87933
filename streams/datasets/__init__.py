"""Datasets: from the files people have to one prepared form, a row an interaction in event-time order.

``base`` says what a dataset is, ``registry`` which there are, ``prepared`` how the prepared form is made, kept and
verified, ``split`` how it is cut by time. Every other file here is one source's format.
"""

from streams.datasets.base import Dataset, RawData, Sources
from streams.datasets.prepared import Manifest, Prepared, load_prepared, prepare
from streams.datasets.registry import ensure_prepared, find_dataset, list_datasets, sources_of
from streams.datasets.split import Split, during, global_time_split

__all__ = [
    "Dataset",
    "Manifest",
    "Prepared",
    "RawData",
    "Sources",
    "Split",
    "during",
    "ensure_prepared",
    "find_dataset",
    "global_time_split",
    "list_datasets",
    "load_prepared",
    "prepare",
    "sources_of",
]
