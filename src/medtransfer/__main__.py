"""The `medtransfer` command, also as `python -m medtransfer`."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command line; Ctrl-C, or another version of a package, while modules are loaded prints no traceback."""
    try:
        from medtransfer import cli

        cli.main()
    except KeyboardInterrupt:
        raise SystemExit("Stopped. Run the command again to continue.") from None
    except (ImportError, AttributeError):
        replaced = _from_pythonpath()
        if not replaced:
            raise
        print(
            f"medtransfer: PYTHONPATH: has other versions of {', '.join(replaced)}; unset it (`unset PYTHONPATH`), "
            "then run again",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


def _from_pythonpath() -> list[str]:
    """Return the packages, apart from this one, that were found in a folder of PYTHONPATH, as on many clusters."""
    folders = [Path(folder).absolute() for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    files = {name.partition(".")[0]: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    return sorted(
        name
        for name, file in files.items()
        if file and name not in (__package__, "__main__") and any(map(Path(file).is_relative_to, folders))
    )


if __name__ == "__main__":  # a process that decodes images imports this file
    main()
