"""What the build of the wheel adds: man pages and completions, made from the commands that go into it."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManualHook(BuildHookInterface):
    """Puts them where ``pip install`` lays them down below its prefix; an editable install has none."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        sys.path.insert(0, str(Path(self.root, "src")))
        from chainlift.cli.manual import write_all

        self._made = tempfile.TemporaryDirectory(prefix="chainlift-manual-")
        for path in write_all(Path(self._made.name)):
            build_data["shared_data"][str(Path(self._made.name, path))] = str(path)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        if version != "editable":
            self._made.cleanup()
