"""Runs on a cluster of machines that another program schedules."""
