"""The options of sources."""

from __future__ import annotations

from promptmill.features.sources import quote_options, web_options

OPTIONS = (*quote_options.OPTIONS, *web_options.OPTIONS)
