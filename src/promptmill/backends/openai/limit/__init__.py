r"""May the next request go now, and to which endpoint?

The limiter gives a request a *permit* if five rules all allow it, and makes it wait otherwise:

    request ─▶ 1 concurrency   fewer requests in flight than `concurrency`, all calls and endpoints together
               2 fair share    the free place goes to the waiting call with the fewest requests in flight
               3 rates         `rpm` and `tpm` have room for one more
               4 health        the endpoint has not refused the key, the account or the model
               5 pause, limit  the endpoint is not paused, and has fewer in flight than its adaptive limit   ─▶ permit

1 to 3 are rules of the calls (`limiter.py`). 4 and 5 are rules of an endpoint (`endpoint_state.py`), whose state is
three values: `Load` (how many requests it has and may have), `Health` (whether it is of any use) and `Pause` (when the
next request may go). With several endpoints, a request goes to the endpoint with the most room, and not to the one
where it failed last if another is available.

The adaptive limit (`adaptive_limit.py`) doubles until requests are refused, then finds out whether a lower limit makes
refusals rarer. If so, it stays there and tries a little more from time to time. If not, the refusals are random, and it
goes back up. An endpoint of the operator's own seldom refuses; there the limit is raised for as long as that brings
more answers per second.

    places
      │     /\  refused: each refusal closes a place
      │    /  \
      │   /    \________/\__________/\___________________/\____  the endpoint's limit
      │  /      trial    a little more, after a rest
      │ / one more per answer
      └────────────────────────────────────────────────────────▶ time

After a *strike*, a failure without any success since the request was sent, the endpoint is paused, then probed by one
request at a time until one succeeds. An endpoint that fails for longer than `patience` is unusable, and so is one that
refuses `SEVERAL` requests in a row for the same reason.
"""
