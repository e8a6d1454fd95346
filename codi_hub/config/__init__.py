"""Options of commands and library calls, checked when they are created: one module each, none loads torch."""
