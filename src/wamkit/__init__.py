"""wamkit: define, train, query, compare and evaluate World Action Models, from two CPU cores up."""

from wamkit.policy import Policy, Session
from wamkit.run import load
from wamkit.types import Batch, Observation, Query, Sample, Spec, UnsupportedQuery, WamkitError

__all__ = [
    "Batch",
    "Observation",
    "Policy",
    "Query",
    "Sample",
    "Session",
    "Spec",
    "UnsupportedQuery",
    "WamkitError",
    "load",
]
__version__ = "0.1.0"
