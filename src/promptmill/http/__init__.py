"""The tools over streamable HTTP: listening sockets, authentication, and limits of requests."""

from promptmill.system import logs

logs.quiet_fastmcp()
