"""Importers of foreign data formats, one file each. The registry `IMPORTERS` has them by name.

base.py is the contract, run.py the engine that stores what importers read. hdf5.py, tfrecord.py and video_files.py are
helpers for families of formats. docs/add-an-importer.md shows how to write one.
"""

from wamkit.data.importers.base import IMPORTERS, Importer, Recording, SourceError, reading

__all__ = ["IMPORTERS", "Importer", "Recording", "SourceError", "reading"]
