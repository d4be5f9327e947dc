"""What promptmill does otherwise than UltraRAG's own generation server on purpose, by the name of the case."""

_ENDS = "there it ends the run"
_ERROR_TEXT = 'there the answer is "<error>", as if a model had written it; here it is "", and stderr has the reason'
_ONE_ITEM = f'{_ENDS}; here the answer of that prompt is "", and stderr has the reason'
_NO_IMAGE = 'there the model answers without the image; here the answer is "", and stderr has the reason'
_SENT_AS_IT_IS = "there the file is sent as it is, which most models refuse; here it becomes a PNG"
_NOT_EVERY = "there the file is sent as it is, which some servers refuse; here an unknown server gets a PNG"
_MODEL_TAKEN = f"{_ENDS}; here the one model that the endpoint has is taken"
_HALF_ACTIVE = "there half of the failed configuration is active; here the one before it"

DIFFERENCES = {
    "sampling: top_k": f"{_ENDS}, because the `openai` package does not know it; here it is sent on, with a warning",
    "sampling: a word that nobody knows": f"{_ENDS}; here it is sent on, with a warning",
    "sampling: n": "there all answers but the first are thrown away; here each is a request of its own and is kept",
    "sampling: n 1": "there it is sent; here it is left out, because it is the default",
    "sampling: max_tokens 0": "there it is sent, and the endpoint decides; here `generation_init` refuses it",
    "sampling: stream": f"{_ENDS}; here it is left out, with a warning",
    "sampling: stream false": "there it is sent; here it is left out, with a warning",
    "sampling: a null value": "there null is sent; here the parameter is left out",
    "block: no block": f"{_ENDS}; here the block of the server's `parameter.yaml` counts",
    "block: no model": _MODEL_TAKEN,
    "block: an empty model": _MODEL_TAKEN,
    "block: concurrency 0": "there the call never ends; here 0 counts as 1, with a warning",
    "block: retries 0": 'there nothing is sent and every answer is "<error>"; here 0 counts as 1, with a warning',
    "extra: beside extra_body": "there `extra_params` throw `extra_body` away; here both are sent",
    "extra: n": "there all answers but the first are thrown away; here each is a request of its own and is kept",
    "extra: stream": "there it is sent, and an answer that is streamed cannot be read; here it is left out",
    "images: a file that is not there": _NO_IMAGE,
    "images: a good one and one that is not there": _NO_IMAGE,
    "images: a folder": _NO_IMAGE,
    "images: no suffix": "there the name decides what an image is; here the bytes do",
    "images: a broken file": _NO_IMAGE.replace("without the image", "with the broken file"),
    "images: a text file": _NO_IMAGE.replace("without the image", "with the text as an image"),
    "images: an empty file": _NO_IMAGE.replace("without the image", "with an empty image"),
    "images: an SVG": _NO_IMAGE.replace("without the image", "with the SVG, which hardly any model reads"),
    "images: a BMP": _SENT_AS_IT_IS,
    "images: a TIFF": _SENT_AS_IT_IS,
    "images: a GIF": _NOT_EVERY,
    "images: a WebP": _NOT_EVERY,
    "images: a data URL": "there a server may show what is transparent as black; here it is sent as white",
    "turns: other keys": "there a turn with a number in it ends the run; here its role and text are taken",
    "turns: a number": "there a number as content ends the run; here it is its text",
    "reply: 500": _ERROR_TEXT,
    "reply to turns: 500": _ERROR_TEXT,
    "reply where JSON was requested: 500": _ERROR_TEXT,
    "reply where a schema was requested: 500": _ERROR_TEXT,
    "one among good prompts: 500": _ERROR_TEXT,
    "a prompt after good calls: 500": _ERROR_TEXT,
    "reply: no choices": _ONE_ITEM,
    "reply: too long": _ONE_ITEM,
    "reply to turns: too long": _ONE_ITEM,
    "one among good prompts: 400": _ONE_ITEM,
    "one among good prompts: 401": _ONE_ITEM,
    "one among good prompts: 429": _ONE_ITEM,
    "one among good prompts: no choices": _ONE_ITEM,
    "one among good prompts: too long": _ONE_ITEM,
    "a prompt after good calls: 400": _ONE_ITEM,
    "a prompt after good calls: no choices": _ONE_ITEM,
    "a prompt after good calls: too long": _ONE_ITEM,
    "after a failed init: an unknown backend": f"{_ENDS}; here the configuration before it stays active",
    "after a failed init: no model": _HALF_ACTIVE,
    "after a failed init: a wrong number": _HALF_ACTIVE,
    "search_o1, late: 400": _ONE_ITEM,
    "search_o1, late: 500": _ERROR_TEXT,
}
ONLY_OURS_ENDS = frozenset({"sampling: max_tokens 0"})
"""Those where promptmill alone ends the run."""
