from codi_hub.cli import main

main()
