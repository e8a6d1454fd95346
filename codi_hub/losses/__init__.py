"""Training losses: CoDi, its guidance term, and the baselines it is compared with."""
