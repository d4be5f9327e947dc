"""The options of a Ray cluster."""

from __future__ import annotations

from promptmill.core.errors import Named
from promptmill.options.option import Flag, Option

OPTIONS = (
    Option("ray", str, "answer on a Ray cluster: HOST:PORT, or auto", flag=Flag(metavar="ADDRESS"), argument=None),
    *(
        Option(name, kind, words, default, flag=Flag(metavar="N"), argument=None, needs=[Named("ray", "ADDRESS")])
        for name, kind, words, default in (
            ("replicas", int, "with {ray}: this many replicas of the model", 1),
            ("num_gpus", float, "with {ray}: GPUs of each replica", 0),
            ("num_cpus", float, "with {ray}: cores of each replica", 1),
        )
    ),
)
