"""The example that docs/clients.md shows, over the documents that ship."""

import re
import subprocess
import sys

from conftest import ROOT

EXAMPLE = ROOT / "clients/examples/rag_langchain.py"


def run(url, *arguments):
    done = subprocess.run([sys.executable, EXAMPLE, "--url", url, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def cached_of(line):
    """(cached, prompt): the tokens of one question's prompt."""
    return tuple(map(int, re.search(r"\((\d+) of (\d+) prompt", line).groups()))


def test_the_documents_that_ship(url):
    *lines, last = run(url, "--first", "20")
    cached, prompt, questions, found, right = map(int, re.findall(r"\d+", last))
    assert questions == len(lines) > 100
    assert found >= 0.95 * questions and right >= 0.9 * questions, last  # BM25's and the model's
    # A document is computed once: 20 of them, with 5.7 questions each.
    assert cached >= 0.7 * prompt, last
    assert [sum(column) for column in zip(*map(cached_of, lines))] == [cached, prompt]


def test_ones_own_questions(url):
    first, again, _ = run(url, "What colour is the Signs telescope?", "Where is the Signs telescope made?")
    assert "yellow" in first and "Lafitte" in again
    cached, prompt = cached_of(again)
    assert prompt - cached < 25  # no more than the question
