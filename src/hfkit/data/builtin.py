"""Real English text that comes with every Python, so that everything can be tried with no network."""

from __future__ import annotations

import ast
import builtins
import hashlib
import os
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hfkit.data.tags import Words
from hfkit.errors import DataError, UsageError, did_you_mean

# Left out: tests, idlelib (an application), lib2to3 (gone in 3.13), turtledemo (programs), encodings (generated tables)
# and pydoc_data (the topics, read on their own).
SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data"}

MIN_CHARS = 30

SEED = 9  # gives splits near their nominal size in characters too, not only in documents

# Area -> top-level modules. Each area is one or more whole chapters of the Python Library Reference, version 3.14
# (https://docs.python.org/3.14/library/index.html), named above it; `_x` is with the module it serves.
# Left out are chapters with next to no docstrings (Multimedia, MS Windows) and superseded modules.
AREAS = {
    # Text Processing, Binary Data, Structured Markup, Internationalization
    "text and markup": (
        "string re difflib textwrap stringprep rlcompleter struct codecs html xml _markupbase gettext locale"
    ),
    # Data Types, Functional Programming
    "data types": (
        "datetime _pydatetime _strptime zoneinfo calendar collections _collections_abc heapq bisect weakref "
        "_weakrefset types copy pprint reprlib enum graphlib functools operator"
    ),
    # Numeric and Mathematical Modules
    "numbers": "numbers decimal _pydecimal fractions random statistics",
    # File and Directory Access, Data Persistence, Data Compression and Archiving, File Formats
    "files": (
        "pathlib posixpath ntpath genericpath stat filecmp tempfile glob fnmatch linecache shutil pickle copyreg "
        "shelve dbm sqlite3 compression _compression gzip bz2 lzma zipfile tarfile csv configparser tomllib netrc "
        "plistlib"
    ),
    # Cryptographic Services, Generic Operating System Services, Command-line Interface Libraries, Unix
    "operating system": (
        "hashlib hmac secrets os io _pyio logging platform ctypes argparse optparse getpass fileinput curses cmd "
        "shlex tty pty"
    ),
    # Concurrent Execution, Networking and Interprocess Communication
    "concurrency and networking": (
        "threading _threading_local multiprocessing concurrent subprocess sched queue contextvars asyncio socket ssl "
        "selectors signal"
    ),
    # Internet Data Handling, Internet Protocols and Support
    "internet": (
        "email json mailbox mimetypes base64 quopri webbrowser wsgiref urllib http ftplib poplib imaplib smtplib uuid "
        "socketserver xmlrpc ipaddress"
    ),
    # Graphical User Interfaces with Tk
    "gui": "tkinter turtle",
    # Development Tools, Debugging and Profiling
    "testing and debugging": "typing pydoc doctest unittest bdb pdb profile cProfile pstats timeit trace tracemalloc",
    # Software Packaging, Python Runtime Services, Custom Interpreters, Importing Modules, Language Services
    "language": (
        "ensurepip venv zipapp sysconfig warnings dataclasses contextlib abc _py_abc traceback __future__ "
        "annotationlib inspect site code codeop zipimport pkgutil modulefinder runpy importlib ast symtable token "
        "keyword tokenize tabnanny pyclbr py_compile compileall dis pickletools"
    ),
}

AREA_OF = {module: area for area, modules in AREAS.items() for module in modules.split()}

Table = dict[str, list[str]]


def load(name: str) -> dict[str, Table]:
    """The built-in data set `name` as split -> column -> values; UsageError for an unknown name."""
    if name not in BUILTINS:
        near = did_you_mean(f"builtin:{name}", [f"builtin:{one}" for one in BUILTINS])
        raise UsageError(f"builtin:{name}: no such data, found: {', '.join(BUILTINS)}", near)
    return BUILTINS[name]()


def python_docs() -> dict[str, Table]:
    """About 2 MB for language modelling: one `text` is one help topic of Python or all docstrings of one module.

    Passages are folded (see `fold`) before they are joined, so no help topic or docstring comes back in another
    document. train, validation and test hold about 90, 5 and 5 % of the documents; a document keeps its split in
    every version of Python.
    """
    import pydoc_data.topics  # half a megabyte of strings

    topics = [Passage(f"topic {name}", "", text.strip()) for name, text in sorted(pydoc_data.topics.topics.items())]
    documents: dict[str, list[str]] = {}
    for passage in fold(topics + list(read_docstrings())):
        # A module without a docstring of its own still gets its name as the title.
        title = [] if passage.name in ("", passage.source) else [passage.source]
        documents.setdefault(passage.source, title).append(f"{passage.name}\n\n{passage.text}".strip())
    rows = {source: ["\n\n\n".join(passages)] for source, passages in documents.items()}
    return split(rows, ("text",), validation=0.05, test=0.05)


def python_docstrings() -> dict[str, Table]:
    """About 4,800 rows for classification: a docstring (`text`) and the area of the library it is from (`label`).

    Ten areas, see AREAS. Near-duplicates are folded (see `fold`), then the hash of a text decides its split: 80 %
    train, 10 % validation, 10 % test. A floor to beat, measured on Python 3.11 on the 505 rows of test: accuracy
    0.76 (macro F1 0.77) with scikit-learn's TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True) and
    LogisticRegression(C=10) fitted on train; always saying "internet" gives 0.19.
    """
    passages = fold([p for p in read_docstrings() if p.source.split(".")[0] in AREA_OF])
    rows = {passage.text: [passage.text, AREA_OF[passage.source.split(".")[0]]] for passage in passages}
    return split(rows, ("text", "label"), validation=0.1, test=0.1)


def python_names() -> dict[str, Table]:
    """About 2,500 rows for token classification: the words of a function's docstring and a BIO tag for each.

    `tokens` and `tags` are divided by blanks. The tags say what a word names: a "parameter" of the function, by its
    signature; an "exception" or a "class" of the library; a "function", before a parenthesis that closes at once; or a
    "constant" (None, True, False). They follow the word alone: where a parameter is called `list`, every "list" is one.
    Near-duplicates are folded, and the hash of a text decides its split, as in `python_docstrings`.
    """
    classes: set[str] = set()
    signatures: dict[str, set[str]] = {}
    passages = []
    for module, tree in parsed_modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes.add(node.name)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = (ast.get_docstring(node) or "").strip()
                if len(text) >= MIN_CHARS:
                    passages.append(Passage(module, node.name, text))
                    arguments = ast.walk(node.args)
                    signatures[text] = {one.arg for one in arguments if isinstance(one, ast.arg)} - {"self", "cls"}
    exceptions = {name for name in {*classes, *dir(builtins)} if name.endswith(("Error", "Exception", "Warning"))}
    classes = {name for name in classes - exceptions if re.search("[a-z][A-Z]", name)}  # Path is a word, too
    rows = {}
    for passage in fold(passages):
        words = Words.of_text(passage.text)
        tokens = [passage.text[start:end] for start, end in zip(words.starts, words.ends, strict=True)]
        named = {
            "parameter": {name for name in signatures[passage.text] if len(name) > 1},  # `a` is a word, too
            "exception": exceptions,
            "class": classes,
            "constant": {"None", "True", "False"},
        }
        tags = []
        for token, behind in zip(tokens, zip([*tokens[1:], ""], [*tokens[2:], "", ""], strict=False), strict=True):
            kinds = (kind for kind, names in named.items() if token in names)
            is_function = behind == ("(", ")") and token.isidentifier()
            tags.append(next((f"B-{kind}" for kind in kinds), "B-function" if is_function else "O"))
        if set(tags) != {"O"}:
            rows[passage.text] = [" ".join(tokens), " ".join(tags)]
    return split(rows, ("tokens", "tags"), validation=0.1, test=0.1)


BUILTINS: dict[str, Callable[[], dict[str, Table]]] = {
    "python-docs": python_docs,
    "python-docstrings": python_docstrings,
    "python-names": python_names,
}


class Passage(NamedTuple):
    source: str  # the module, or the help topic
    name: str  # the heading: module, Class or Class.method; empty for topics, whose texts have one
    text: str


def read_docstrings() -> Iterator[Passage]:
    """Docstrings of the library's Python sources, in the order of their paths."""
    for module, tree in parsed_modules():
        yield from walk(tree, module)


def parsed_modules() -> Iterator[tuple[str, ast.Module]]:
    """Name and syntax tree of each Python source of the library, in the order of their paths.

    Parsed, not imported: importing `antigravity` opens a browser and `this` prints.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = False
    for folder, subfolders, files in os.walk(root):
        # Only packages have names that are identifiers: site-packages and config-3.11-... are never entered.
        subfolders[:] = sorted(name for name in subfolders if name.isidentifier() and name not in SKIPPED_FOLDERS)
        for file in sorted(files):
            path = Path(folder, file)
            if path.suffix != ".py" or not path.stem.isidentifier():
                continue
            parts = path.relative_to(root).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in somebody else's strings
                tree = ast.parse(path.read_bytes())
            found = True
            yield module, tree
    if not found:
        raise DataError(f"{root} has no Python sources", "use a Python that has its standard library as .py files")


def walk(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, source: str, name: str = ""
) -> Iterator[Passage]:
    text = (ast.get_docstring(node) or "").strip()  # get_docstring calls inspect.cleandoc
    if len(text) >= MIN_CHARS:
        yield Passage(source, name or source, text)
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from walk(child, source, f"{name}.{child.name}".lstrip("."))


def fold(passages: list[Passage]) -> list[Passage]:
    """`passages` without those that share half or more of their three-word runs with one longer passage.

    Words are runs of letters in lower case, so digits, white space and punctuation never tell two texts apart.
    With one copy left of everything, near-duplicates can't straddle splits.
    """
    all_runs = []
    for passage in passages:
        words = re.findall(r"[^\W\d_]+", passage.text.lower())
        all_runs.append({tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))})
    kept = set()
    kept_with: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index in sorted(range(len(passages)), key=lambda index: -len(all_runs[index])):
        runs = all_runs[index]
        shared = Counter(other for run in runs for other in kept_with.get(run, ()))
        if max(shared.values(), default=0) < len(runs) / 2:
            kept.add(index)
            for run in runs:
                kept_with[run].append(index)
    return [passage for index, passage in enumerate(passages) if index in kept]


def split(rows: dict[str, list[str]], columns: tuple[str, ...], validation: float, test: float) -> dict[str, Table]:
    """`rows` (key -> values) as three tables, divided and ordered by a hash of the key: the same on every machine."""
    tables: dict[str, Table] = {name: {column: [] for column in columns} for name in ("train", "validation", "test")}
    digests = {key: hashlib.sha256(f"{SEED}:{key}".encode()).digest() for key in rows}
    for key in sorted(rows, key=lambda key: digests[key]):
        share = int.from_bytes(digests[key][:8], "big") / 2**64
        name = "test" if share < test else "validation" if share < test + validation else "train"
        for column, value in zip(columns, rows[key], strict=True):
            tables[name][column].append(value)
    return tables
