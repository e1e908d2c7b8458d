"""One style of docstrings: what goes in and comes out is said in fields, with units, and when something is raised."""

import ast
import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src/chainlift"
MODULES = sorted(path.relative_to(SOURCES) for path in SOURCES.rglob("*.py") if path.parent.name != "cli")


def public_functions(body):
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node, ast.get_docstring(node) or ""


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_docstrings_are_of_the_house(module):
    for node, text in public_functions(ast.parse((SOURCES / module).read_text()).body):
        where = f"{module}:{node.lineno} {node.name}"
        names = [one.arg for one in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
        names = [name for name in names if name not in ("self", "cls")]
        said = re.findall(r"^:param (\w+): \S", text, re.MULTILINE)
        others = {one.arg for one in (node.args.vararg, node.args.kwarg) if one is not None}
        assert set(said) <= {*names, *others}, f"{where}: there is no such parameter"
        assert [name for name in names if name in said] == [n for n in said if n not in others], (
            f"{where}: parameters in another order"
        )
        # Who has few may say it in the first sentence, who does as another does may name that one.
        assert len(names) < 3 or said or re.search(r":(meth|func):`", text), f"{where}: says nothing of its parameters"
        fields = set(re.findall(r"^:(\w+)\b[^:\n]*:(?!`)", text, re.MULTILINE))
        assert fields <= {"param", "return", "raise"}, f"{where}: {fields}"
        assert not re.search(r"^:raise [\w.]+:\s*$", text, re.MULTILINE), f"{where}: says not when it raises"
        assert not re.search(r"^(Args|Returns|Raises|Parameters):?$", text, re.MULTILINE), where
