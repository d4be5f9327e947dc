"""OAuth: besides the server's own token, clients may send a token of the operator's identity provider.

    http checks ─▶ ResourceServer.admitted ─▶ Issuer.verify_token ─▶ the request's scope with its subject

The server is a resource server (RFC 9728): it names its issuer, and verifies the tokens that this issuer signs. Each
subject of the issuer counts as a separate owner.
"""

from promptmill.core.feature import Feature

FEATURE = Feature(
    words="OAuth over HTTP: clients with tokens of an identity provider",
    authentication="promptmill.features.oauth.serve_command",
)
