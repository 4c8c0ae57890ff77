"""Making Graphviz's SVG fit for any reader: texts that keep their width in any font, and titles that say something."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tinyseq.draw.diagram import Box, Diagram

__all__ = ["finished"]

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
FONTS = "Helvetica, Arial, Arimo, 'Liberation Sans', 'Nimbus Sans', sans-serif"
NUMBER = re.compile(r"-?[\d.]+(?:e[-+]?\d+)?")


def finished(svg: bytes, diagram: Diagram) -> str:
    """The same picture, whose texts are stretched to the width that Graphviz reckoned with, whatever font is there."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)
    root.set("font-family", FONTS)
    for text in root.iter(f"{{{SVG}}}text"):
        text.attrib.pop("font-family")
    for group in root.iter(f"{{{SVG}}}g"):
        title = group.find(f"{{{SVG}}}title")
        if title is None:
            continue
        name, kind = title.text or "", group.get("class")
        if kind == "graph":
            group.remove(title)
        elif kind == "node":
            title.text = _words(diagram.boxes[int(name[1:])])
            _centre_texts(group)
        elif kind == "edge":
            ends = (diagram.boxes[int(end[1:])] for end in name.split("->"))
            title.text = " → ".join(box.title for box in ends)
        elif kind == "cluster":
            title.text = diagram.strips[int(name.removeprefix("cluster_"))].title or ""
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _words(box: Box) -> str:
    return ", ".join((box.title, *box.lines))


def _centre_texts(group: ElementTree.Element) -> None:
    """Lines of a label start where Graphviz's font made them centred; so that tells their width."""
    shape = next(element for element in group if element.tag != f"{{{SVG}}}title")
    if shape.tag == f"{{{SVG}}}ellipse":
        centre = float(shape.get("cx", "0"))
    else:
        xs = [float(x) for x in NUMBER.findall(shape.get("points") or shape.get("d") or "")[::2]]
        centre = (min(xs) + max(xs)) / 2
    for text in group.iter(f"{{{SVG}}}text"):
        width = 2 * (centre - float(text.get("x", "0")))
        text.attrib.update({"x": f"{centre:.2f}", "text-anchor": "middle"})
        text.attrib.update({"textLength": f"{width:.2f}", "lengthAdjust": "spacingAndGlyphs"})
