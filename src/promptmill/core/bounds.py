"""The bounds on data that others send, once each, with their reasons.

A bound names the attacker or the accident that it is for. The three parts are the three sources of untrusted data.
Floods of requests and slow clients are a reverse proxy's: see SECURITY.md.
"""

from __future__ import annotations

# ---- a client of a shared server

MOST_SHARED = 64 << 20
"""Bytes of one kind that a process holds for all others, so that no client or endpoint fills its memory: large request
bodies in progress, large response bodies, events of sessions, answers of clients that left; and of one call: its
answers, or the rows of a search for a prompt."""
MOST_LARGE = 32 << 20
"""Bytes of a call's answers above 64 KiB, and of its errors: its result holds several copies of them."""
MOST_VALUES = 300_000
"""JSON values of a request: each takes up to 130 bytes, and blocks the event loop for 0.3 µs while it is parsed."""
MOST_ROWS = 1000
"""Rows of a page, and items of a call or job with details or a span each: more would hold up everything else."""
MOST_SESSIONS = 2000
"""Sessions: a client that disappears leaves one of some 40 KiB behind, for half an hour."""
MOST_CALL_JOBS = 10_000
"""Jobs of calls on the disk: each task and each long call leaves one for a week."""
LARGEST_CALL_JOBS = 4 << 30
"""Bytes of the jobs of calls on the disk, for the same reason; the oldest finished ones make room for new ones."""
MOST_OPEN = 256
"""Jobs of calls that run in the server: each takes a megabyte of memory."""
MOST_WAITING = 2000
"""Jobs of calls in progress: a waiting one takes a few kilobytes, and one session may fill half of the queue."""
LARGEST_PAGE = 8 << 20
"""Bytes of a page of a job's rows: further fields and rows are left to the next page or the output."""
MOST_MODELS = 50
"""Models that are counted apart, because a client can name any number of them."""
MOST_RUNNERS = 16
"""Jobs of calls that run at a time, each in a process of a hundred megabytes or more. Half as many processes read and
write files of calls."""
LONGEST_SETTINGS = 1 << 20
"""Characters of a call's settings, fifty more for each value: each of its requests repeats them."""
LONGEST_SCHEMA = 256 << 10
"""Characters of a JSON Schema, which takes thirty times as much memory once it is compiled."""
MOST_VARIANTS = 100
"""Pairs of a model and a prompt that answer each row of a job: each takes a place in the job and in its reports."""
MOST_CHOICES = 1000
"""Texts of which an answer is one: each request repeats them, and an engine compiles them into a grammar."""
MOST_KEPT = 64
"""Things made from a call's parameters that are kept for the next call, such as grammars and lists of choices."""
LONGEST_PATH = 4096
"""Characters of a path: to resolve one of a million folders would take hours."""
LARGEST_FILE = 256 << 20
"""Bytes of an image's file, of all files of a call, and of one item for an engine: they are read whole."""
LARGEST_UPLOAD = 512 << 20
"""Bytes of a file that a client stores, as at OpenAI: an upload could fill the disk."""
MOST_UPLOADS, LARGEST_UPLOADS = 1000, 32 << 30
"""Files of a token, and their bytes, for the same reason; output files of its batches count, too."""
LONGEST_FIELD = 64 << 10
"""Bytes of an upload next to its file, and of the parameters of a batch: they are kept in memory."""
LARGEST_BATCH, MOST_BATCH_LINES = 200 << 20, 50_000
"""Bytes and lines of a batch, as at OpenAI: its rows and its answers take several times as much of the disk."""
MOST_BATCHES = 100
"""Batches of a token that have not ended, for the same reason; `MOST_RUNNERS` of them run, and the others wait."""
MOST_BATCH_ERRORS = 100
"""Errors of a batch whose file is invalid: each reply repeats them."""

# ---- a reply of an endpoint

LARGEST_BODY = 16 << 20
"""Bytes of a response's body, unpacked: no answer is as large, and a broken server may send without end."""
MOST_MEMORY = 128 << 20
"""Bytes that the values of a body take in memory: a hostile body of brackets takes a hundred times its size."""
MOST_FIELDS = 500_000
"""Fields of a body: no other thread runs while it is read, and so many different names take 0.2 s."""
MOST_EVENTS = 150_000
"""Events of a stream, and pieces of a body, each of which costs time: answers have fewer tokens."""
LARGEST_HEAD = 64 << 10
"""Bytes of the head of a response or a request, which may never end."""
MOST_PAGES = 1000
"""Pages of a list: 100,000 batches or files, more than an account has; a broken provider may list new ones without
end."""
LONGEST_SEARCHED = 16 << 10
"""Characters of an error that are searched for its cause, and bytes of an answer before its choice: searches of more
would hold up other requests."""
MOST_LEAVES = 2000
"""Values of an error that are searched for its cause or its wait, for the same reason."""
LONGEST_ANSWER = 1 << 20
"""Characters of an answer under a schema, which is checked, repaired and quoted; bytes of an answer that the cache
keeps, or that is read leniently. Only endless answers are longer."""
MOST_UNREADABLE = 100
"""Brackets of prose in an answer that is searched for JSON: each takes time in proportion to the answer's length, and a
small model repeats one until `max_tokens`."""
MOST_TOKENS = 1 << 24
"""Tokens that an endpoint may report: more than any context, and the count is charged to `tpm`."""

# ---- a row of a file

LONGEST_ROW = 64 << 20
"""Bytes of a line, of a cell, of a prompt made of cells, and of an image from the web. An image of 30 million pixels in
base64 is below it, and sixteen such rows in flight fit the memory of a small machine."""
TOO_LONG = "is longer than 64 MiB"
MOST_RATIO = 200
"""The size of a decompressed file, by its own size: a bomb has a thousand, rows that differ in a number have 100."""
MOST_FILES = 10_000
"""Files that patterns find; twenty times as many are looked at, so that `/**` ends."""
LARGEST_WORKBOOK = 512 << 20
"""Bytes of XML in a workbook: a sheet is read whole, into five times its size. A million short rows have 100 MB."""
WORKBOOK_MEMORY = 4 << 30
"""The memory of the processes that read workbooks and documents: a few kilobytes can describe a grid of any size."""
LARGEST_TEXT = 1 << 20
"""Bytes of a text file that is sent whole, and characters of a PDF's text: no model reads more."""
MOST_PDF_PAGES = 100
"""Pages of a PDF whose images one request carries: providers take 50 to 500, and each takes some 300 KB of memory."""
MOST_QUERY_ROWS = 10_000_000
"""Rows of a call's query: a recursive one makes any number of them from nothing."""
LONGEST_QUERY_S = 300
"""Seconds until a call's query has given its rows, for the same reason: a million short ones take a minute."""
LONGEST_COLUMN = 200
"""Characters of a column's name that a call chooses: each row of the output repeats it."""
MOST_NAMES = 10_000
"""Different fields of rows that become columns of a table: each row repeats all of them."""
LONGEST_HEADER = 2 << 20
"""Bytes of a header with the names of all columns: a file that is no table has any number."""
MOST_LINES = 10_000
"""Lines of a quoted cell: a quote that is never closed takes the rest of the file."""
DEEPEST_TEXT = 3
"""JSON texts inside of JSON texts that are searched for secrets: an agent could hide a key in more of them."""
DEEPEST = 20
"""Levels of nested fields that become typed columns."""
