"""Shared parts that every family is built from: tokens, streams (who sees whom), trunk, heads, flow."""
