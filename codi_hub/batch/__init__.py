"""Folders of images: plan what to do, load ahead, generate, save behind, resume, report."""

from codi_hub.batch.jobs import read_jobs
from codi_hub.batch.plan import Item, check_outputs, plan
from codi_hub.batch.runner import Interrupted, Stopped, run_folder
from codi_hub.batch.tiles import Tiling

__all__ = ["Interrupted", "Item", "Stopped", "Tiling", "check_outputs", "plan", "read_jobs", "run_folder"]
