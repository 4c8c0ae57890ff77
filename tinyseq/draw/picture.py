"""The picture that ``draw`` returns: DOT text that becomes SVG, PNG or PDF when asked."""

from __future__ import annotations

from tinyseq.draw.diagram import Diagram
from tinyseq.draw.dot import to_dot
from tinyseq.draw.layout import place
from tinyseq.draw.render import Layout


class Picture:
    def __init__(self, diagram: Diagram, seconds: float) -> None:
        self.diagram = diagram
        self.seconds = seconds
        self.dot = to_dot(diagram)

    def _drawn(self, *arguments: str) -> bytes:
        layout = Layout(self.seconds)
        if self.diagram.strips:
            return layout.run(to_dot(self.diagram, place(self.diagram, layout)), "-Kneato", "-n2", *arguments)
        return layout.run(self.dot, *arguments)

    def svg(self) -> str:
        return self._drawn("-Tsvg").decode()

    def png(self) -> bytes:
        return self._drawn("-Tpng", "-Gdpi=144")
