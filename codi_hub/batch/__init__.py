"""Folders of images: plan what to do, load ahead, generate, save behind, resume, report."""

from codi_hub.batch.plan import Item, plan
from codi_hub.batch.runner import Interrupted, run_folder
from codi_hub.batch.tiles import Tiling

__all__ = ["Interrupted", "Item", "Tiling", "plan", "run_folder"]
