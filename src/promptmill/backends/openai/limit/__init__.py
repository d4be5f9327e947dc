r"""Decides whether the next request may be sent now, and to which endpoint.

The limiter gives a request a *permit* if five rules all allow it, and makes it wait otherwise:

    request ─▶ 1 concurrency   fewer requests in flight than `concurrency`, all calls and endpoints together
               2 fair share    the free place goes to the waiting call with the fewest requests in flight
               3 rates         `rpm` and `tpm` have room for one more
               4 health        the endpoint has not refused the key, the account or the model
               5 pause, limit  the endpoint is not paused, and has fewer in flight than its adaptive limit   ─▶ permit

Rules 1 to 3 concern the calls (`limiter.py`). Rules 4 and 5 concern an endpoint (`endpoint_state.py`), whose state has
three parts: `Load` (the number of its requests and their limit), `Health` (whether it is usable) and `Pause` (when the
next request may be sent). With several endpoints, a request goes to the one with the most room. It avoids the endpoint
at which it failed last, if another is available.

The adaptive limit (`adaptive_limit.py`) doubles until requests are refused. Then a lower limit is tested. If it makes
refusals rarer, the limit stays low, and a slightly higher limit is tried from time to time. If not, the refusals are
random, and the limit rises again. An operator's own endpoint seldom refuses requests, so its limit is raised as long as
this increases the answers per second.

    places
      │     /\  refused: each refusal closes a place
      │    /  \
      │   /    \________/\__________/\___________________/\____  the endpoint's limit
      │  /      trial    a little more, after a rest
      │ / one more per answer
      └────────────────────────────────────────────────────────▶ time

After a *strike* (a failure without any success since the request was sent), the endpoint is paused, then probed by one
request at a time until one succeeds. An endpoint becomes unusable if it fails for longer than `patience`, or refuses
`SEVERAL` requests in a row for the same reason.
"""
