"""Errors of TLS handshakes, explained."""

from __future__ import annotations

import ssl

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.core.errors import Code, PromptmillError

# OpenSSL's words for an answer that is not TLS.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"})
_NOT_TLS |= {"UNKNOWN_PROTOCOL", "UNEXPECTED_EOF_WHILE_READING", "TLSV1_ALERT_PROTOCOL_VERSION"}
# X.509 verification results (openssl-verification-options(1)).
_SELF_SIGNED, _NO_ISSUER, _EXPIRED, _NOT_YET, _OTHER_HOST = {18, 19}, {2, 20, 21}, 10, 9, {62, 64}


def tls_error(endpoint: Endpoint, error: BaseException) -> PromptmillError:
    """Return the error of a handshake that failed."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = str(getattr(error, "reason", None) or "TLS failed")
        if reason in _NOT_TLS:
            return plain_port(endpoint)
        return PromptmillError(Code.TLS, f"{endpoint.name} could not be trusted: {reason}.")
    code, trusting = error.verify_code, "set SSL_CERT_FILE=ca.pem (or REQUESTS_CA_BUNDLE), a file with"
    if code in _SELF_SIGNED:
        what, hint = "is signed by itself", f"Trust it: {trusting} it."
    elif code in _NO_ISSUER:
        what, hint = "comes from an authority unknown here", f"Trust it: {trusting} the authority's certificate."
    elif code in {_EXPIRED, _NOT_YET}:
        what = "has expired" if code == _EXPIRED else "is not valid yet"
        hint = "Renew it there, or set this machine's clock."
    elif code in _OTHER_HOST:
        what, hint = "is for another name", "Write the name that the certificate has into `base_url`."
    else:
        what, hint = f"is not accepted: {error.verify_message}", f"Trust it: {trusting} its authority."
    return PromptmillError(Code.TLS, f"The certificate of {endpoint.name} {what}.", hint)


def plain_port(endpoint: Endpoint) -> PromptmillError:
    """Return the error of an https:// URL of a port that answers plain HTTP."""
    text = f"{endpoint.name} speaks plain HTTP, not TLS."
    return PromptmillError(Code.TLS, text, "Write http:// instead of https:// in `base_url`.")


def tls_port(endpoint: Endpoint) -> PromptmillError:
    """Return the error of an http:// URL of a port that speaks TLS."""
    text = f"{endpoint.name} speaks TLS, not plain HTTP."
    return PromptmillError(Code.TLS, text, "Write https:// instead of http:// in `base_url`.")
