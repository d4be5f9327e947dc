"""The tools over streamable HTTP: what listens, who is let in, and how much they may send."""

import promptmill.server  # noqa: F401 (before anything else imports FastMCP, which reads its settings then)
