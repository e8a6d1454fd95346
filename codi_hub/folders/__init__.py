"""Runs over folders of images: plan, load ahead, generate in batches, save behind, resume, report."""

from codi_hub.folders.interrupts import Interrupted, Stopped
from codi_hub.folders.jobs import read_jobs
from codi_hub.folders.plan import Item, check_outputs, plan
from codi_hub.folders.rows import NoRunLog, RunLog
from codi_hub.folders.runner import FolderRun, Generator, RunSettings

__all__ = [
    "FolderRun",
    "Generator",
    "Interrupted",
    "Item",
    "NoRunLog",
    "RunLog",
    "RunSettings",
    "Stopped",
    "check_outputs",
    "plan",
    "read_jobs",
]
