"""An HTTP error: a status and a JSON-RPC error whose message clients show."""

from __future__ import annotations

import orjson
from mcp_types import INVALID_REQUEST
from starlette.responses import Response


class HttpError(Exception):
    """Ends the handling of a request with this answer."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """`message` goes to whoever asked; empty for no body at all."""
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.headers = headers

    def response(self) -> Response:
        """Return the answer."""
        if not self.message:
            return Response(status_code=self.status, headers=self.headers)
        error = {"jsonrpc": "2.0", "id": None, "error": {"code": INVALID_REQUEST, "message": self.message}}
        return Response(orjson.dumps(error), self.status, self.headers, "application/json")
