"""Plant small faults in a module, one at a time, and run its tests: each fault that the tests let pass is printed.

    scripts/mutants                          # the modules of scripts/mutants.toml, apart from those with `is_sampled`
    scripts/mutants core/money.py            # these modules
    scripts/mutants --most 50                # at most 50 faults of each module, evenly spread
    scripts/mutants steps/costs.py --only most_of

A fault changes an operator, a condition, a constant, an alternative of a pattern or a word of SQL, or removes a
statement, an argument or a returned value. It is planted in memory, in a fork of a process that has collected the tests:
no file is changed, and other processes that tests start have no fault, so tests marked `processes` do not run. All of it
runs in a copy of the checkout, because a fault in a path may write or delete files anywhere in the working folder. Printed
are `?`, a fault that the tests let pass; `=`, one that is listed as equivalent; `t`, one that is found because the tests
did not end in time, perhaps only because the machine is busy; `-`, a test that is left out, because it fails without a
fault. The exit code is 1 if a fault passes that `scripts/mutants.toml` does not list as equivalent, or if a listed fault
does not pass.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import pytest

SOURCE = Path("src", "promptmill")
TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
OPERATORS: dict[type[ast.AST], Sequence[type[ast.AST]]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitAnd: (ast.BitOr,),
    ast.LShift: (ast.RShift,),
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
CLEANING = {"strip", "lstrip", "rstrip", "lower", "casefold"}
ALTERNATIVE = re.compile(r"\|[^|()\[\]{}\"\n]+|(?:(?<=\()|(?<=\?:)|(?<=\"))[^|()\[\]{}?\"\n]+\|")
SQL = re.compile(r"\b(?:SELECT|UPDATE|INSERT|DELETE|row\.)\b")
WORDS = {
    " AND ": " OR ",
    " OR ": " AND ",
    "IS NOT ": "IS ",
    "IS NULL": "IS NOT NULL",
    "LEFT JOIN": "JOIN",
    "OR IGNORE ": "",
    "OR REPLACE ": "",
    "DISTINCT ": "",
    " NOT IN ": " IN ",
    " - ": " + ",
    " + ": " - ",
    " < ": " <= ",
    "NOT (": "(",
    "PARTITION BY asked ": "",
    "ORDER BY key": "",
    "ORDER BY turn": "",
}
_SMALL = 2  # an integer above it was chosen, and one more or less makes no difference
_LONG, _AROUND = 150, 30  # characters of a text that is shown shortened, and of what is shown around the fault


class Mutant(NamedTuple):
    """A fault: the characters from `start` to `end` of a module are replaced."""

    module: str
    where: str
    before: str
    after: str
    line: int
    start: int
    end: int
    function: str
    """The outermost function or method around it; `""` in none."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What identifies the fault when lines move; of a long text, what changes and some characters around it."""
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        begin = max(0, alike(before, after) - _AROUND)
        end = max(0, alike(before[:begin:-1], after[:begin:-1]) - _AROUND)
        if len(before) >= _LONG:
            before, after = (text[begin : len(text) - end] for text in (before, after))
        return self.module, self.where, before, after

    def __str__(self) -> str:
        return f"{SOURCE / self.module}:{self.line}: {self.where or 'module'}: {self.key[2]}  →  {self.key[3]}"


def alike(one: str, other: str) -> int:
    """Return the length of the beginning that two texts share."""
    return next((at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right), 0)


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """Yield the faults of a module, in the order of its lines."""
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))

    def offset(line: int, column: int) -> int:
        return lines[line - 1] + len(source[lines[line - 1] : lines[line]].encode()[:column].decode())

    def visit(node: ast.AST, where: str, function: str, *, is_condition: bool = False) -> Iterator[Mutant]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            where = f"{where}.{node.name}".lstrip(".")
            function = function if function or isinstance(node, ast.ClassDef) else where
        if isinstance(node, ast.expr | ast.stmt | ast.keyword):
            start, end = offset(node.lineno, node.col_offset), offset(node.end_lineno or 0, node.end_col_offset or 0)
            text = source[start:end]
            constant = ["True", "False"] if is_condition else []
            for after in dict.fromkeys([*constant, *changes(node, text)]):
                yield Mutant(module, where, text, after, node.lineno, start, end, function)
        for name, value in ast.iter_fields(node):
            if name in {"annotation", "returns", "decorator_list"} or isinstance(node, ast.JoinedStr | ast.Assert):
                continue  # the parts of an f-string have no place of their own before Python 3.12
            for inner in value if isinstance(value, list) else [value]:
                if isinstance(inner, ast.AST) and not is_unused(inner):
                    is_test = name in {"test", "ifs"} and not isinstance(node, ast.While)
                    yield from visit(inner, where, function, is_condition=is_test)

    yield from visit(ast.parse(source), "", "")


def is_unused(node: ast.AST) -> bool:
    """Return whether a node is a docstring, for type checkers alone, or of a case that never comes: `strict` of `zip`,
    and the body of a method that each subclass has."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.keyword):
        return node.arg == "strict"
    if isinstance(node, ast.Raise):
        return ast.unparse(node) == "raise NotImplementedError"
    if isinstance(node, ast.ClassDef):
        return any(ast.unparse(base) == "Protocol" for base in node.bases)
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.annotation) == "TypeAlias"
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def changes(node: ast.AST, text: str) -> Iterator[str]:  # noqa: PLR0912 - it is a table
    """Yield the texts that take the place of the `text` of a node."""

    def changed(**fields: Any) -> str:
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return f"({ast.unparse(other)})" if isinstance(node, ast.expr) else ast.unparse(other)

    def without_one(values: Sequence[Any]) -> Iterator[list[Any]]:
        yield from ([*values[:at], *values[at + 1 :]] for at in range(len(values)))

    match node:
        case ast.Compare(ops=ops):
            for at, op in enumerate(ops):
                yield from (changed(ops=[*ops[:at], new(), *ops[at + 1 :]]) for new in OPERATORS[type(op)])
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield from (changed(op=new()) for new in OPERATORS[type(op)])
        case ast.BoolOp(op=op, values=values):
            yield changed(op=OPERATORS[type(op)][0]())
            yield from (changed(values=rest) for rest in without_one(values))
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield f"({ast.unparse(operand)})"
        case ast.Constant(value=bool() as value):
            yield str(not value)
        case ast.Constant(value=int() | float() as value):
            if isinstance(value, float) or value <= _SMALL:
                yield f"{value + 1}"
            if value not in {0, 1}:
                yield f"{0 * value}"
        case ast.Constant(value=str()) | ast.JoinedStr() if SQL.search(text):
            for word, other in WORDS.items():
                yield from (text[: at.start()] + other + text[at.end() :] for at in re.finditer(re.escape(word), text))
        case ast.Constant(value=str()) | ast.JoinedStr() if "|" in text:
            yield from (text[: at.start()] + text[at.end() :] for at in ALTERNATIVE.finditer(text))
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            yield changed(func=ast.Name(NAMES[name]))
        case ast.Call(func=ast.Attribute(attr=name, value=value)) if name in CLEANING:
            yield ast.unparse(value)
        case ast.Call(keywords=[_, *_] as keywords):
            left_out = [one for one in keywords if not is_unused(one)]
            yield from (changed(keywords=[one for one in keywords if one is not each]) for each in left_out)
        case ast.AugAssign(op=op):
            yield from ("pass", *(changed(op=new()) for new in OPERATORS[type(op)]))
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield "return None"
        case ast.Expr(value=ast.Call() | ast.Await()) | ast.Raise() | ast.Delete():
            yield "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "pass"
        case ast.Continue() | ast.Break():
            yield "break" if isinstance(node, ast.Continue) else "continue"


def plant(mutant: Mutant, source: str) -> None:
    """Put the fault into the imported module. A function gets another code; else names of the module get other values.

    Raises whatever the module raises with the fault.
    """
    name = ".".join(("promptmill", *Path(mutant.module).with_suffix("").parts))
    module, faulty = sys.modules[name], ModuleType(name)
    faulty.__file__ = module.__file__
    whole = source[: mutant.start] + mutant.after + source[mutant.end :]
    exec(compile(whole, mutant.module, "exec"), vars(faulty))
    for value in vars(module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
    if mutant.function:
        old, new = (function_in(each, mutant.function) for each in (module, faulty))
        old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__
        return
    assigned = [each for each in ast.parse(source).body if isinstance(each, ast.Assign | ast.AnnAssign)]
    nodes = (each for one in assigned for each in ast.walk(one) if isinstance(each, ast.Name))
    names = {each.id for each in nodes if isinstance(each.ctx, ast.Store)}
    for name in filter(None, [*names, mutant.where]):
        if name not in vars(module):
            continue  # of a comprehension
        before, after = vars(module)[name], vars(faulty)[name]
        for other in [*sys.modules.values()]:
            if getattr(other, "__dict__", {}).get(name) is before:
                setattr(other, name, after)


def function_in(module: ModuleType, path: str) -> Any:
    """Return the function of a module, or the method of a class in it, below its decorators."""
    found: Any = module
    for name in path.split("."):
        found = vars(found)[name]
    for wrapping in ("fget", "func", "__func__", "__wrapped__"):
        found = getattr(found, wrapping, found)
    return found


class Run:
    """A plugin of pytest: plants each fault in a fork of the process that has collected the tests, and runs them."""

    def __init__(self, planted: Sequence[Mutant], source: str) -> None:
        self._mutants, self._source = planted, source
        self._first: list[str] = []
        """The tests that failed last, which run first."""
        self._failed: set[str] = set()
        """The tests that fail in this process, without a fault."""
        self._note: int | None = None
        """In a fork: the file with the name of the test that runs."""
        self._limit_s = 300.0
        self.passed: list[Mutant] = []
        self.error = ""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests for each fault."""
        began = time.monotonic()
        self._run(session)  # without a fault, in this process, so that each fork has what tests import
        self._limit_s = 3 * (time.monotonic() - began) + 20
        self._leave_out(session, self._failed)
        for unchanged in [*{one.function: one._replace(after=one.before) for one in self._mutants}.values()][:3]:
            while session.items and (failing := self._failing(session, unchanged)):
                if failing == unchanged.module:
                    self.error = "It cannot be changed while it is imported."
                    return True
                self._leave_out(session, {failing})
        if not session.items:
            self.error = "No test passes without a fault."
            return True
        for mutant in self._mutants:
            failing = self._failing(session, mutant)
            if failing:
                self._first = [failing, *(name for name in self._first if name != failing)][:40]
            else:
                self.passed.append(mutant)
                print("=" if mutant.key in EQUIVALENT else "?", mutant, flush=True)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the test that failed. A fork ends with it, without waiting for what the test has left."""
        if report.failed:
            self._failed.add(report.nodeid)
            if self._note is not None:
                os._exit(0)

    def _failing(self, session: pytest.Session, mutant: Mutant) -> str:
        """Return the test that fails, ends its process or does not end in time with the fault; `""` if all pass. An
        error of the module itself has its name."""
        with tempfile.TemporaryFile(buffering=0) as note:
            child = os.fork()
            if not child:
                self._run_in_fork(session, mutant, note.fileno())
            signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, self._limit_s)
            _, status = os.waitpid(child, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if os.WIFSIGNALED(status):
                print("t", mutant, flush=True)
            note.seek(0)
            return note.read().decode()

    def _run_in_fork(self, session: pytest.Session, mutant: Mutant, note: int) -> NoReturn:
        self._note = note
        os.setsid()
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        with contextlib.suppress(BaseException):
            self._runs(mutant.module)
            plant(mutant, self._source)
            self._run(session)
            self._runs("")
        os._exit(0)

    def _run(self, session: pytest.Session) -> None:
        items = sorted(session.items, key=lambda item: item.nodeid not in self._first)
        for item, following in zip(items, [*items[1:], None], strict=True):
            self._runs(item.nodeid)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    def _runs(self, name: str) -> None:
        """Note what runs in a fork, so that its parent knows what ended it."""
        if self._note is not None:
            os.ftruncate(self._note, 0)
            os.pwrite(self._note, name.encode(), 0)

    @staticmethod
    def _leave_out(session: pytest.Session, failed: AbstractSet[str]) -> None:
        for name in sorted(failed):
            print("-", name, flush=True)
        session.items = [item for item in session.items if item.nodeid not in failed]


EQUIVALENT = {
    (module, one["where"], one["before"], one["after"]): one["why"]
    for module, entry in TABLE.items()
    for one in entry.get("equivalent", ())
}


def main() -> int:
    """Run the command; returns 0 if all faults are found or equivalent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole = [name for name, entry in TABLE.items() if not entry.get("is_sampled")]
    parser.add_argument("modules", nargs="*", default=whole, metavar="MODULE")
    parser.add_argument("--most", type=int, help="the most faults of each module")
    parser.add_argument("--only", default="", help="faults in functions and classes with names that match this pattern")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in the copy, with one module
    options = parser.parse_args()
    if not options.here:
        from scripts.without import copy as copied  # on use: the tests of this script run it by its path

        again = ["--here", "--only", options.only, *(["--most", str(options.most)] if options.most else [])]
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            python = copied(Path(folder, "promptmill"), ())
            command = [str(python), "-m", "scripts.mutants", *again]
            return max(  # a process for each: a module is imported once
                subprocess.run([*command, one], cwd=python.parents[2], check=False).returncode
                for one in options.modules
            )
    (module,), began = options.modules, time.monotonic()
    source = (SOURCE / module).read_text(encoding="utf-8")
    every = [*mutants(module, source)]
    planted = [one for one in every if re.search(options.only, one.where)]
    planted = planted[:: max(1, -(-len(planted) // options.most))] if options.most else planted
    run = Run(planted, source)
    quiet = ["-n", "0", "-s", "-q", "-p", "no:cacheprovider", "--no-header", "--no-summary", "--tb=native"]
    pytest.main(
        [*quiet, "-m", "not thorough and not clients and not processes", *TABLE[module]["tests"]], plugins=[run]
    )
    if run.error:
        print(f"{module}: {run.error}")
        return 1
    unknown = [one for one in run.passed if one.key not in EQUIVALENT]
    listed = {key for key in EQUIVALENT if key[0] == module}
    gone = listed - {one.key for one in run.passed} if len(planted) == len(every) else set()
    print(
        f"{module}: {len(planted)} faults, {len(planted) - len(run.passed)} found, "
        f"{len(run.passed) - len(unknown)} equivalent, {len(unknown)} passed ({time.monotonic() - began:.0f} s)"
    )
    for key in gone:
        print(f"scripts/mutants.toml lists a fault that does not pass: {key}")
    return 1 if unknown or gone else 0


if __name__ == "__main__":
    sys.exit(main())
