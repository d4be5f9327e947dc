"""The process of an engine, `python -m promptmill.backends.engines.child`. `host` starts it; see `channel`."""

from __future__ import annotations

import os
import sys

from promptmill.system import subprocesses  # this module imports only the standard library

_ENGINES = "promptmill.backends.engines"
"""The package of the engines. `serve(options, channel)` of each subpackage loads the model and answers requests."""


def main() -> None:
    """Reserve the pipes for the protocol, then load the engine and serve requests."""
    incoming, outgoing = subprocesses.private_pipes()
    # from here on, output of imported code cannot get into the protocol
    import importlib
    import signal
    import traceback

    from promptmill.backends.engines.channel import Channel
    from promptmill.core.errors import PromptmillError, redact
    from promptmill.system import frames

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C
    subprocesses.lower_priority()
    channel = Channel(incoming, outgoing)
    try:
        load = channel.receive()
        importlib.import_module(f"{_ENGINES}.{load['engine']}").serve(load["options"], channel)
    except PromptmillError as error:
        channel.send({"type": "failed", "error": frames.packed_error(error)})
    except BaseException as error:  # report the error to the server, and end the process
        traceback.print_exc()
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        channel.send({"type": "last_words", "text": redact(words)[:300]})
    finally:
        sys.stderr.flush()
        os._exit(1)  # the shutdown of the interpreter may wait for native threads


if __name__ == "__main__":
    main()
