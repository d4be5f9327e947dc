"""The command line: `promptmill`, and `python -m promptmill`."""

import sys


def main() -> int:
    """Run the command line. Return the exit code: 130 after Ctrl-C, also during the imports, which take a second."""
    try:
        from promptmill.core.errors import PromptmillError

        try:
            from promptmill.cli.main import main as run
        except PromptmillError as error:  # an import raised it: a mistake in another package's feature
            from promptmill.cli.terminal import USAGE, complain

            complain(str(error))
            return USAGE
        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
