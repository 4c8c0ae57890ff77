"""Making Graphviz's SVG fit for any reader: texts that keep their width in any font, and titles that say something."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tinyseq.draw.colours import Theme, dark_css
from tinyseq.draw.diagram import Box, Diagram
from tinyseq.draw.labels import amount_label, fact_labels

__all__ = ["finished"]

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
FONTS = "Helvetica, Arial, Arimo, 'Liberation Sans', 'Nimbus Sans', sans-serif"
NUMBER = re.compile(r"-?[\d.]+(?:e[-+]?\d+)?")


def finished(svg: bytes, diagram: Diagram, theme: Theme) -> str:
    """The same picture, whose texts are stretched to the width that Graphviz reckoned with, whatever font is there.

    With the theme "auto" it is dark where the reader's page is.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)
    root.set("font-family", FONTS)
    root.set("class", "tinyseq")
    if theme == "auto":
        style = ElementTree.Element(f"{{{SVG}}}style")
        style.text = dark_css("svg.tinyseq")
        root.insert(0, style)
    for text in root.iter(f"{{{SVG}}}text"):
        text.attrib.pop("font-family", None)
    for group in root.iter(f"{{{SVG}}}g"):
        title = group.find(f"{{{SVG}}}title")
        if title is None:
            continue
        name, kind = title.text or "", group.get("class")
        if kind == "graph":
            group.remove(title)
        elif kind == "node" and name == "legend":
            title.text = "legend"
            _keep_widths(group)
        elif kind == "node" and diagram.boxes[int(name[1:])].kind == "flow":
            title.text = _words(diagram.boxes[int(name[1:])])
            _keep_widths(group)
        elif kind == "node":
            title.text = _words(diagram.boxes[int(name[1:])])
            _centre_texts(group)
        elif kind == "edge":
            ends = (diagram.boxes[int(end[1:])] for end in name.split("->"))
            title.text = " → ".join(box.title for box in ends)
        elif kind == "cluster":
            of = diagram.groups[int(name.removeprefix("cluster_"))]
            title.text = ", ".join((of.title, *of.lines))
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _words(box: Box) -> str:
    """What a browser shows when the mouse rests on a box: all that is known of it."""
    facts = box.facts
    more = [f"{facts.name}" if facts.name and facts.name not in box.title else ""]
    more += fact_labels(facts)
    more += [f"{name}: {amount_label(row[0])} … {amount_label(row[-1])}" for name, row in facts.flow]
    return ", ".join((box.title, *box.lines, *(text for text in more if text and text not in box.lines)))


def _keep_widths(group: ElementTree.Element) -> None:
    """Texts of a table must not become wider than their cells in another font; how wide they are is not told."""
    for text in group.iter(f"{{{SVG}}}text"):
        text.set("font-size", f"{float(text.get('font-size', '9')) * 0.98:.2f}")


def _centre_texts(group: ElementTree.Element) -> None:
    """Lines of a label start where Graphviz's font made them centred; so that tells their width."""
    shape = next(element for element in group if element.tag != f"{{{SVG}}}title")
    if shape.tag == f"{{{SVG}}}ellipse":
        centre = float(shape.get("cx", "0"))
    else:
        xs = [float(x) for x in NUMBER.findall(shape.get("points") or shape.get("d") or "")[::2]]
        centre = (min(xs) + max(xs)) / 2
    for text in list(group.iter(f"{{{SVG}}}text")):
        if not (text.text or "").strip():  # makes room only
            next(parent for parent in group.iter() if text in list(parent)).remove(text)
            continue
        width = 2 * (centre - float(text.get("x", "0")))
        text.attrib.update({"x": f"{centre:.2f}", "text-anchor": "middle"})
        text.attrib.update({"textLength": f"{width:.2f}", "lengthAdjust": "spacingAndGlyphs"})
