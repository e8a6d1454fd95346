"""Runs over folders of images: plan, load ahead, generate in batches, save behind, resume, report."""
