"""The mathematics of diffusion and flow: schedules, predictions, samplers. Pure functions."""
