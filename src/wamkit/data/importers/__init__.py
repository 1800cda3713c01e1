"""One file a foreign format: `IMPORTERS` holds them by name. See docs/add-an-importer.md."""

from wamkit.data.importers.base import IMPORTERS, Importer, Recording, SourceError, reading

__all__ = ["IMPORTERS", "Importer", "Recording", "SourceError", "reading"]
