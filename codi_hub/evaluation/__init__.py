"""Measuring adapters: metrics, test photographs, quality against steps, tables and contact sheets."""
