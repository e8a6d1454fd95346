"""Synthetic images: ray-cast scenes with depth maps and captions, edits of them, and dead leaves."""
