"""Fixtures shared by the tests of networks."""

from fixtures import any_base, base, base_folder, eps_base, family_base, make, one_thread

__all__ = ["any_base", "base", "base_folder", "eps_base", "family_base", "make", "one_thread"]
