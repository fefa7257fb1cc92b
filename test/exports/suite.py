"""The manifest of a run: cases are added one by one, files and expected values are written beside it."""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
from exporters import Broken, Graph
from safetensors.numpy import save_file


class Suite:
    def __init__(self, folder, only=None):
        self.folder, self.only = Path(folder), only
        self.cases, self.broken = [], []
        self.started = time.time()
        for name in ("models", "expected"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def expect(self, name, values, metadata=None):
        """Writes expected values: float32 and int64. Returns their path for the manifest."""
        path = f"expected/{name}.safetensors"
        kept = {
            key: np.ascontiguousarray(value, np.int64 if np.asarray(value).dtype.kind in "iu" else np.float32)
            for key, value in values.items()
        }
        save_file(kept, self.folder / path, metadata)
        return path

    def wanted(self, name):
        return self.only is None or any(part in name for part in self.only)

    def write(self, name, writer):
        """A file by `writer(path)`; None when it is not wanted, or when the tool broke it, which is remembered and said."""
        path = self.folder / "models" / f"{name}.onnx"
        if not self.wanted(name):
            return None
        try:
            writer(path)
        except Broken as error:
            path.unlink(missing_ok=True)
            self.broken.append({"name": name, "reason": str(error)})
            print(f"{self.clock()} {name}: not a usable file: {error}", file=sys.stderr, flush=True)
            return None
        print(f"{self.clock()} {name}", flush=True)
        return path

    def clock(self):
        return f"{time.time() - self.started:6.1f} s"

    def add(self, name, kind, path, *, exporter, versions, form, **fields):
        how = f"{exporter} {form}; {versions}"
        model = str(path.relative_to(self.folder))
        self.cases.append(
            {
                "name": name,
                "kind": kind,
                "model": model,
                "how": how,
                "exporter": exporter,
                "versions": versions,
                "form": form,
                **fields,
            }
        )

    def export(self, name, graph: Graph, exporter, subject, cases, tools=()):
        """
        One export and what tools make of it. `cases` are (suffix, kind, fields) for the file; tools with more rounding than float32
        pass their tolerance on. The form in the table is `subject` and what the exporter or the tool was told.
        """
        source = self.write(name, lambda path: exporter.write(graph, path))
        if source is None:
            return
        for suffix, kind, fields in cases:
            form = f"{subject}, {exporter.form}"
            self.add(
                name + suffix, kind, source, exporter=exporter.name, versions=exporter.versions, form=form, **fields
            )
        for tool, override in tools:
            short = re.sub("[^a-z0-9]+", "_", f"{tool.name} {tool.form}".lower()).strip("_")
            path = self.write(f"{name}_{short}", lambda path, tool=tool: tool.write(source, path, graph))
            if path is None:
                continue
            for suffix, kind, fields in override or cases:
                form = ", ".join(filter(None, [subject, f"{exporter.name} {exporter.form}", tool.form]))
                self.add(
                    f"{name}_{short}{suffix}",
                    kind,
                    path,
                    exporter=tool.name,
                    versions=f"{tool.versions}, {exporter.versions}",
                    form=form,
                    **fields,
                )

    def close(self):
        (self.folder / "manifest.json").write_text(json.dumps(self.cases, indent=1))
        (self.folder / "broken.json").write_text(json.dumps(self.broken, indent=1))
        print(f"{len(self.cases)} cases, {len(self.broken)} files that their tool broke, in {self.folder}")
