"""Evaluation of adapters: metrics, tables, plots and contact sheets. Tasks are known by protocol only."""
