"""Recordings on disk and how models read them.

Nothing is imported here, so that a worker process that only encodes video stays light; import the module that you need:
`from wamkit.data.format.store import Store`.
"""
