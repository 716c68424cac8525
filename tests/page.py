"""An HTML page as a browser without JavaScript has it, and as a screen reader finds it."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "link", "br", "img", "input", "wbr"}
_ROLES = {
    "button": "button",
    "h1": "heading",
    "h2": "heading",
    "h3": "heading",
    "img": "img",
    "table": "table",
}


@dataclass
class Element:
    """An element with the text inside it, other elements' included."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    inside: "list[Element]" = field(default_factory=list)


class Page(HTMLParser):
    """Parses a page, whose elements all have to be closed.

    Attributes:
        elements: in their order.
        open: those that are not closed, none in a sound page.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        for outer in self.open:
            outer.inside.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, tag: str) -> list[Element]:
        """Returns the elements of a tag."""
        return [element for element in self.elements if element.tag == tag]

    def by_id(self, name: str) -> Element:
        """Returns the element of an id, which has to be the only one."""
        (found,) = [one for one in self.elements if one.attributes.get("id") == name]
        return found

    def roles(self) -> set[tuple[str, str]]:
        """Returns roles with accessible names, explicit ones and the usual implicit ones."""
        return {(role, self._name(one)) for one in self.elements if (role := _role(one))}

    def _name(self, element: Element) -> str:
        attributes = element.attributes
        if "aria-labelledby" in attributes:
            return self.by_id(attributes["aria-labelledby"]).text.strip()
        if "aria-label" in attributes or "alt" in attributes:
            return attributes.get("aria-label") or attributes.get("alt", "")
        captions = [inner.text.strip() for inner in element.inside if inner.tag == "caption"]
        return captions[0] if captions else " ".join(element.text.split())


def _role(element: Element) -> str:
    if "hidden" in element.attributes and element.tag == "input":
        return ""
    if element.tag == "section" and "aria-labelledby" in element.attributes:
        return "region"
    if element.tag == "th":
        return {"row": "rowheader"}.get(element.attributes.get("scope", ""), "columnheader")
    return element.attributes.get("role") or _ROLES.get(element.tag, "")


def fetched(text: str) -> list[str]:
    """Returns what a page would have a browser fetch by itself."""
    return re.findall(
        r"""(?:(?:src|href|action|data)=["'](?!data:)|url\(|@import|https?://(?!www\.w3\.org/2000/svg)).*""",
        text,
    )
