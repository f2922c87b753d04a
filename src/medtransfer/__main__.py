"""`python -m medtransfer` is the `medtransfer` command."""

from medtransfer.cli import main

main()
