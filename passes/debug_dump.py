"""Writes the module as TVMScript at a point of the pipeline, as ``mlc_llm compile --debug-dump`` does."""

from pathlib import Path

import tvm
from tvm import IRModule


@tvm.transform.module_pass(opt_level=0, name="DebugDump")
class DebugDump:
    """Writes ``folder / name``; does nothing if ``folder`` is None."""

    def __init__(self, name: str, folder: Path | None) -> None:
        self.name = name
        self.folder = folder

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / self.name).write_text(mod.script(show_meta=False), encoding="utf-8")
        return mod
