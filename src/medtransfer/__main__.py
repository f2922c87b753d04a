"""`python -m medtransfer` is the `medtransfer` command."""

from medtransfer.cli import main

if __name__ == "__main__":  # a process that decodes images imports this file
    main()
