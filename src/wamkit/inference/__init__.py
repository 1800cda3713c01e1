"""A trained model in use: queries, policies."""

from wamkit.inference.model import Model, load, opened
from wamkit.inference.policy import Policy, Session

__all__ = ["Model", "Policy", "Session", "load", "opened"]
