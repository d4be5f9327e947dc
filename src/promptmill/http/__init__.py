"""The tools over streamable HTTP: listening sockets, who may call, and how much they may send."""

from promptmill.system import logs

logs.quiet_fastmcp()
