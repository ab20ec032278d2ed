"""The built site stands alone: ``python docs/check_site.py site``.

Every link, source and anchor inside it leads somewhere, no page or stylesheet loads anything from elsewhere (links that a reader may follow
are no requests), and every picture has a text in its place. Prints what is wrong; exit status 1 if anything is.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src", "audio": "src", "embed": "src", "object": "data"}
# what the theme's own scripts would fetch something from elsewhere for, if a page held it
FETCHED = {"mermaid": "class", "source": "data-md-component"}
OUT = re.compile(r"^(https?:)?//", flags=re.IGNORECASE)


class Page(HTMLParser):
    """What a page links to, loads and offers as anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.without_alt: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given and tag != "meta"}
        self.fetched += [name for name, attribute in FETCHED.items() if name in given.get(attribute, "").split()]
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and "canonical" not in given.get("rel", ""):
            self.loaded.append(given.get("href", ""))
        if tag in LOADS and LOADS[tag] in given:
            self.loaded.append(given[LOADS[tag]])
        self.loaded += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]
        self.loaded += re.findall(r"url\(['\"]?([^'\")]+)", given.get("style", ""))
        if tag == "img" and not given.get("alt", "").strip():
            self.without_alt.append(given.get("src", ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "style":
            self.loaded += re.findall(r"url\(['\"]?([^'\")]+)", data)


@cache
def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def problems(site: Path) -> list[str]:
    """One line for everything that is wrong."""
    found = []
    for path in sorted(site.rglob("*.html")):
        page, name = read(path), path.relative_to(site)
        found += [f"{name}: loads {address} from elsewhere" for address in page.loaded if OUT.match(address)]
        found += [f"{name}: holds {kind}, for which the theme loads something from elsewhere" for kind in page.fetched]
        found += [f"{name}: the picture {source} has no alt text" for source in page.without_alt]
        for address in [*page.links, *page.loaded]:
            if problem := _leads_nowhere(site, path, address):
                found.append(f"{name}: {address} {problem}")
    for path in sorted(site.rglob("*.css")):
        loaded = re.findall(r"(?:url\(|@import\s+)['\"]?([^'\")\s;]+)", path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)}: loads {address} from elsewhere" for address in loaded if OUT.match(address)]
    return found


def _leads_nowhere(site: Path, page: Path, address: str) -> str:
    """Why an address inside the site is wrong, or nothing."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return ""
    if parts.path.startswith("/"):
        target = site / unquote(parts.path).lstrip("/")  # the page of errors is served from anywhere
    else:
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target = target / "index.html"
    if not target.exists():
        return "leads nowhere"
    if parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in read(target).anchors and not parts.fragment.startswith("__"):
        return "is no anchor there"
    return ""


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    wrong = problems(folder)
    print("\n".join(wrong) or f"{len(list(folder.rglob('*.html')))} pages: every link leads somewhere, nothing is loaded from elsewhere")
    sys.exit(bool(wrong))
