"""The real t6d for clients that know nothing of it. Runs in build/frameworks-venv.

T6_BIN names the folder with t6d; default build/release/bin.
"""

import os
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("T6_BIN", ROOT / "build/release/bin"))
sys.path.insert(0, str(ROOT / "tools"))
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

from t6_daemon import Daemon  # noqa: E402

MODEL = "t6-docqa-14m"
SYSTEM = ("Answer the question from the document. Be short.\n\nThe museum opened in 1931 in Graz. Its founder, Clara Weiss, "
          "gave it four hundred clocks. Tickets cost six euros.")
ANSWERS = {"When did the museum open?": "1931", "Who founded the museum?": "Clara Weiss",
           "How much is a ticket?": "six euros"}


@pytest.fixture(scope="session")
def url():
    with Daemon(BIN / "t6d", ROOT / "models" / MODEL, "--drain-grace", "0s") as daemon:
        yield f"{daemon.url}/v1"
