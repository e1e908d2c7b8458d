"""Coverage-guided fuzzing: ``python tests/fuzz/fuzz.py TARGET [libFuzzer options]``; needs the extra `fuzz`.

What is found goes into ``corpus/TARGET/`` (keep it small: ``-merge=1``), and is replayed by ``test_replay.py``.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["chainlift"]):
    sys.path.insert(0, str(Path(__file__).parent))
    from targets import TARGETS


def main() -> None:
    target, *options = sys.argv[1:]
    corpus = Path(__file__).parent / "corpus" / target
    atheris.Setup(
        [sys.argv[0], *options, *([] if any(not o.startswith("-") for o in options) else [str(corpus)])],
        TARGETS[target],
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
