"""Assignments from elsewhere: one file for each tool's form. The registry finds them."""

from mpsearch.deploy.imports._base import IMPORTERS, Imported, Importer

__all__ = ["IMPORTERS", "Imported", "Importer"]
