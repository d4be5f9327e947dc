"""What promptmill does otherwise than UltraRAG's own generation server, on purpose."""

from __future__ import annotations

DIFFERENCES = {
    "sampling: top_k": "there a parameter of vLLM's ends the call; here it is sent on, with a warning",
    "sampling: a word that nobody knows": "there it ends the call; here it is sent on, with a warning",
    "sampling: n": "there all answers but the first are thrown away; here each is a request of its own and is kept",
    "block: no model": "there it ends the call; here the one model that the endpoint has is taken",
    "block: an empty model": "there it ends the call; here the one model that the endpoint has is taken",
    "block: concurrency 0": "there the call never ends; here 0 counts as 1, with a warning",
    "block: retries 0": 'there nothing is sent and every answer is "<error>"; here 0 counts as 1, with a warning',
    "extra: beside extra_body": "there `extra_params` throw `extra_body` away; here both are sent",
    "images: a file that is not there": "there the model is asked without the image; here that item fails and says why",
    "images: no suffix": "there the name decides what an image is; here the bytes do",
    "turns: other keys": "there a turn with a number in it ends the call; here its role and text are taken",
    "turns: a number": "there a number as content ends the call; here it is its text",
    "reply: 500": 'there the answer is "<error>", as if a model had said it; here the item fails and says why',
}
