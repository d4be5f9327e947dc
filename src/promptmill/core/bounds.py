"""The bounds for data from others. Each bound is defined once, with its reason.

The text of a bound states what is limited, and the attack or accident against which it protects. The three sections are
the three sources of untrusted data. A reverse proxy handles floods of requests and slow clients: see SECURITY.md.
"""

from __future__ import annotations

# ---- a client of a shared server

MOST_SHARED = 64 << 20
"""The most bytes of one kind that a process holds for all clients or endpoints together, so that none of them fills the
memory. The kinds are large request bodies in progress, large response bodies, events of sessions, and answers for
disconnected clients. The same bound holds for one call's answers, and for the rows of its prompt search."""
MOST_LARGE = 32 << 20
"""Bytes of a call's errors and of its large answers (above 64 KiB): the call's result holds several copies of them."""
MOST_VALUES = 300_000
"""JSON values in a request: each takes up to 130 bytes, and blocks the event loop for 0.3 µs while it is parsed."""
MOST_ROWS = 1000
"""Rows on a page, items of a call or a job that get details or a trace span each, and errors in a batch's file. Larger
numbers would block all other work."""
MOST_SESSIONS = 2000
"""Sessions: a client that disappears leaves a session of about 40 KiB for half an hour."""
MOST_CALL_JOBS = 10_000
"""Jobs of calls on disk: each task and each long call leaves a job for a week."""
LARGEST_CALL_JOBS = 4 << 30
"""Bytes of the jobs of calls on disk, where each job stays for a week. New jobs replace the oldest finished jobs."""
MOST_OPEN = 256
"""Jobs of calls that run at a time in the server's own process: each job takes a megabyte of memory."""
MOST_WAITING = 2000
"""Jobs of calls that run or wait in the server's process: a waiting job takes kilobytes. A session may have half."""
LARGEST_PAGE = 8 << 20
"""Bytes of a page with rows of a job. Further fields and rows are on the next page, or in the output."""
MOST_MODELS = 50
"""Models that are counted separately. (A client can name any number of models.)"""
MOST_READERS = 4
"""Sessions whose calls may read files at once, each in a thread of the server. A child process reads documents."""
MOST_RUNNERS = 16
"""Jobs of calls that run at a time in processes of their own: each process takes a hundred megabytes or more. At most
half as many processes read and write files of calls."""
LONGEST_SETTINGS = 1 << 20
"""Characters of a call's settings, plus 50 for each value, because each request of the call repeats the settings."""
LONGEST_SCHEMA = 256 << 10
"""Characters of a JSON Schema, because a compiled schema takes thirty times as much memory."""
MOST_PARTS, LONGEST_FORM = 10_000, 2 << 20
"""The values and the characters of a schema after its references were written out. (Each value gets a quote.) If each
level of definitions refers twice to the next level, each level doubles the values. A schema of 256 KiB without
references has fewer values and characters."""
MOST_VARIANTS = 100
"""Pairs of a model and a prompt that answer each row of a job, because each takes space in the job and its reports."""
MOST_CHOICES = 1000
"""Texts from which an answer is chosen: each request repeats them, and an engine compiles them into a grammar."""
MOST_KEPT = 64
"""Objects made from a call's parameters and kept for the next call, such as grammars and lists of choices."""
MOST_GRAMMAR_WORK = 100
"""Hundredths of a second that the openvino engine may take to compile a call's grammar, while all rows wait."""
LONGEST_PATH = 4096
"""Characters of a path: resolving a path of a million folders would take hours."""
LARGEST_FILE = 256 << 20
"""Bytes of an image file, of all files of a call, and of one item for an engine: all are read into memory."""
LARGEST_UPLOAD = 512 << 20
"""Bytes of a file that a client uploads (OpenAI's limit), because an upload could fill the disk."""
MOST_UPLOADS, LARGEST_UPLOADS = 1000, 32 << 30
"""Files stored for a token, and their total bytes: they could fill the disk. The token's batch outputs also count."""
LONGEST_FIELD, MOST_FORM_FIELDS = 64 << 10, 8
"""Bytes of each form field of an upload (except the file) and of a batch's parameters; and the number of form fields.
All of them are kept in memory."""
LARGEST_BATCH, MOST_BATCH_LINES = 200 << 20, 50_000
"""Bytes and lines of a batch (OpenAI's limits): its rows and answers take several times as much space on the disk."""
MOST_BATCHES = 100
"""Unfinished batches of a token: each takes space on the disk. `MOST_RUNNERS` of them run, and the others wait."""

# ---- a reply of an endpoint

LARGEST_BODY = 16 << 20
"""Bytes of a decompressed response body: no answer is this large, and a broken server may send endlessly."""
MOST_MEMORY = 128 << 20
"""Bytes of memory for the values of a body: a hostile body of brackets takes a hundred times its size."""
MOST_FIELDS = 500_000
"""Fields of a body: no other thread runs while the body is parsed, and this many different names take 0.2 s."""
MOST_EVENTS = 150_000
"""Events of a stream, and pieces of a body, because each of them costs time. No answer has as many tokens."""
LARGEST_HEAD = 64 << 10
"""Bytes of the head of a response or a request, because a head may never end."""
MOST_SEARCHED, MOST_PLACES, PLACE = 1 << 30, 1000, 1000
"""Characters that are searched for the quotes in a reply about a row, and places that are compared with a quote. A
search for millions of quotes, or for quotes of one letter, would take hours. Quotes beyond this limit are not searched,
and count as missing. Comparing one place takes as long (2 µs) as searching `PLACE` characters."""
MOST_PAGES = 1000
"""Pages of a list: they hold 100,000 batches or files, more than an account has; a broken provider may list new pages
endlessly."""
LONGEST_SEARCHED = 16 << 10
"""Characters of an error that are searched for its cause, and bytes that may precede the choice in an answer: longer
searches would delay other requests."""
MOST_LEAVES = 2000
"""Values in an error that are searched for its cause and for the time to wait: more would delay other requests."""
LONGEST_ANSWER = 1 << 20
"""Characters of an answer that is checked against a schema, repaired and quoted; bytes of an answer that is cached or
parsed leniently. Only endless answers are longer."""
MOST_UNREADABLE = 100
"""Brackets in an answer's prose that are tried as the beginning of JSON: each costs time in proportion to the answer's
length, and a small model may repeat a bracket until `max_tokens`."""
MOST_TOKENS = 1 << 24
"""Tokens that an endpoint may report: more than any context has. The number is charged to `tpm`."""
LONGEST_DEBT_S = 120
"""Seconds in which no request is sent because an endpoint reported too many tokens: the report may be wrong."""
LONGEST_CALLED = 1000
"""Characters of the name of a called function in a stream, because a longer one would be copied with each piece; real
names have 64."""
MOST_SOURCES, LONGEST_SOURCE = 1000, 2000
"""Web pages that an answer cites, and characters of each page's address and title: all are stored in one cell of the
row, and browsers do not reliably open longer addresses."""

# ---- a row of a file

LONGEST_ROW = 64 << 20
"""Bytes of a line, a cell, a prompt made from cells, and a web image. An image of 30 million pixels in base64 is
smaller, and sixteen such rows in flight fit into a small machine's memory."""
TOO_LONG = "is longer than 64 MiB"
MOST_RATIO = 200
"""The largest ratio of decompressed to compressed size: it is 1,000 for a zip bomb, and 100 for nearly equal rows."""
MOST_WARMED = 16 << 20
"""Characters of the prompt beginnings in requests to one model that wait until a provider has cached the beginnings."""
MOST_HELD = 1024
"""Requests of a call that wait, such as for a budget or an equal request's answer: each holds its prompt in memory."""
MOST_FILES = 10_000
"""Files that patterns match. At most twenty times as many files are examined, so that the search for `/**` ends."""
LARGEST_DESCRIPTION = 8 << 20
"""Bytes of a job's description, order or status, which a list of jobs reads: 10,000 files and a header of the largest
size take 6 MB, but a database from elsewhere may have any size."""
LARGEST_WORKBOOK = 512 << 20
"""Bytes of XML in a workbook: a sheet is read completely, and takes five times its size. A million rows have 100 MB."""
WORKBOOK_MEMORY = 4 << 30
"""The memory of processes that read workbooks and documents: a few kilobytes can describe a grid of any size."""
MOST_COLUMNS = 16_384
"""Columns of a sheet (Excel's limit), and of a table in a document, whose cells may claim any number of columns."""
LONGEST_MAIL_HEADER = 32_000
"""Characters of a mail's header: the time of Python's parsers grows with the square of the length (400 KB take 17 s).
Five hundred receivers take 20,000 characters."""
DEEPEST_MAIL = 50
"""Levels of mails inside mails, because each level is read by a nested call; three levels are usual."""
LARGEST_TEXT = 1 << 20
"""Bytes of a text file that is sent completely, and characters of a PDF's text: no model reads more."""
MOST_PDF_PAGES = 100
"""PDF pages whose images a request may contain: providers allow 50 to 500; each page takes 300 KB of memory."""
LONGEST_QUERY_S = 300
"""Seconds in which a call's query must return its rows, because a recursive query may generate rows without end. A
million short rows take a minute."""
LONGEST_READING_S = 120
"""Seconds of processor time for reading the documents and PDFs of a call, because one process reads the files of all
calls: ten thousand mails take ten seconds."""
LONGEST_COLUMN = 200
"""Characters of a column name from a call, because each row of the output repeats it."""
MOST_NAMES = 10_000
"""Distinct fields of rows that become columns of a table, because each row repeats all of them."""
LONGEST_HEADER = 2 << 20
"""Bytes of a table's header, the names of all columns: a file that is not a table may have any number of columns."""
MOST_LINES = 10_000
"""Lines of a quoted cell, because an unclosed quote would take the rest of the file."""
MOST_REPORT_ROWS, LARGEST_REPORT = 100_000, 12_000_000
"""Rows and bytes of a report: a browser opens such a report in half a second."""
LONGEST_SHOWN, MOST_SHOWN = 2_000, 50
"""What a page or a tool's result shows: characters of a cell, prompt or path, and columns, fields or values of a table.
More would leave no room for other texts."""
DEEPEST_TEXT = 3
"""Levels of JSON inside JSON strings that are searched for secrets, because an agent could nest a key to hide it."""
DEEPEST = 20
"""Levels of nested fields that become typed columns."""
