"""Serving a model to robots: openpi's protocol over WebSocket, sessions, batches."""
