"""The `medtransfer` command, also as `python -m medtransfer`."""


def main() -> None:
    """Run the command line; Ctrl-C while its modules are loaded prints no traceback."""
    try:
        from medtransfer import cli
    except KeyboardInterrupt:
        raise SystemExit("Stopped. Run the command again to continue.") from None
    cli.main()


if __name__ == "__main__":  # a process that decodes images imports this file
    main()
