"""Fixtures shared by the tests of the documentation."""

from fixtures import base, base_folder, one_thread

__all__ = ["base", "base_folder", "one_thread"]
