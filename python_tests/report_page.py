"""A report's page taken apart, for tests."""

from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """Text, sources, table rows and tag balance of a page."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.sources, self.rows, self.words = [], [], [], []
        self.images = []
        self.html = path.read_text()
        self.feed(self.html)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "img":
            self.images.append(dict(attrs))
        self.sources += [v for k, v in attrs if k in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += f" {data}"

    def row(self, label, column):
        """The cells of the first row with that label that has ``column`` in its table's head."""
        head = []
        for cells in self.rows:
            cells = [" ".join(c.split()) for c in cells]
            if column in cells:
                head = cells
            if head and cells and cells[0].startswith(label):
                return dict(zip(head, cells, strict=True))
        raise AssertionError(f"no row {label} with {column}")
