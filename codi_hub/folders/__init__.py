"""Folders of images: plan what to do, load ahead, generate, save behind, resume, report."""

from codi_hub.folders.jobs import read_jobs
from codi_hub.folders.plan import Item, check_outputs, plan
from codi_hub.folders.runner import Interrupted, Stopped, run_folder
from codi_hub.inference.tiling import Tiling

__all__ = ["Interrupted", "Item", "Stopped", "Tiling", "check_outputs", "plan", "read_jobs", "run_folder"]
