"""Metrics whose networks have published weights: each reads the weight file that it is given, none is bundled."""
