"""Run the command line: `python -m codi_hub.cli`."""

from codi_hub.cli import main

main()
