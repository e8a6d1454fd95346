"""Distillation: pairs -> cached latents -> trainer -> checkpoints -> held-out scores -> a version to register."""
