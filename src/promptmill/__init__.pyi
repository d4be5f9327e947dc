# Written by scripts/stubs.py: types for editors and type checkers; the module imports each name at its first use.
from promptmill.core.errors import PromptmillError as PromptmillError
from promptmill.features.compare.comparison import Comparison as Comparison
from promptmill.features.compare.comparison import compare as compare
from promptmill.features.improve.improvement import Improvement as Improvement
from promptmill.features.improve.improvement import improve as improve
from promptmill.features.review.python_review import review as review
from promptmill.features.topics.topics import Topics as Topics
from promptmill.features.topics.topics import topics as topics
from promptmill.jobs.manage.bulk_call import bulk as bulk
from promptmill.jobs.manage.bulk_call import bulk_async as bulk_async
from promptmill.jobs.manage.bulk_call import stream as stream
from promptmill.jobs.manage.bulk_call import stream_async as stream_async
from promptmill.jobs.manage.bulk_result import BulkResult as BulkResult

__all__: list[str]
__version__: str
