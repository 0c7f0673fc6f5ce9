"""The documents as `make docs` builds them, opened from a disk as a reader would.

Nothing is cut at the widths of a laptop and a phone, formulas are typeset, search finds, nothing is fetched.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from markdown_pages import PAGES, ROOT

SITE = ROOT / "build/site"
BUILT = sorted(page for page in SITE.rglob("*.html") if page.name != "404.html")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# Code that belongs into a file, and BibTeX, keep their lines.
MAY_SCROLL = {"adding-an-optimizer.html", "citations.html"}


def why_not() -> str | None:
    if not BUILT:
        return "build/site is not there: `make docs` builds it"
    built = min(page.stat().st_mtime for page in BUILT)
    newer = [page for page in PAGES if "docs" in page.parts and page.stat().st_mtime > built]
    return f"build/site is older than {newer[0].name}: `make docs` builds it" if newer else None


pytestmark = [pytest.mark.deep, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def dom_of(url: str, folder: Path, *flags: str) -> str:
    """The document at a URL, after its scripts have run."""
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=120000", *flags),
        *("--dump-dom", url),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


MEASURE = """<!doctype html><body><script>
const scrolls = (e) => ["auto", "scroll"].includes(e.ownerDocument.defaultView.getComputedStyle(e).overflowX);
const isInScroller = (e) => e && (scrolls(e) || isInScroller(e.parentElement));

function problems(page, width) {
  const found = [], content = page.querySelector(".md-content");
  const say = (what, e) => found.push(`${what}: ${e.tagName} ${e.textContent.trim().slice(0, 60)}`);
  if (page.documentElement.scrollWidth > width) say("the page is wider than the window", content);
  for (const e of content.querySelectorAll("*:not(svg *)")) {
    if (e.closest(".katex-mathml")) continue;
    const cut = e.getBoundingClientRect().right > width + 1;
    if (cut && !isInScroller(e.parentElement)) say("cut", e);
    if (width > 1000 && scrolls(e) && e.scrollWidth > e.clientWidth + 1) say("scrolls", e);
  }
  return found;
}

async function measure(pages, widths) {
  const found = {}, frame = document.body.appendChild(document.createElement("iframe"));
  frame.height = 900;
  for (const page of pages)
    for (const width of widths) {
      frame.width = width;
      await new Promise((loaded) => { frame.onload = loaded; frame.src = page; });
      await frame.contentDocument.fonts.ready;
      found[`${page} at ${width}`] = problems(frame.contentDocument, width);
    }
  document.body.textContent = JSON.stringify(found);
}
measure(PAGES, [1280, 400]);
</script>"""


@in_chromium
def test_nothing_is_cut(tmp_path):
    pages = [page.as_uri() for page in BUILT]
    measure = tmp_path / "measure.html"
    measure.write_text(MEASURE.replace("PAGES", json.dumps(pages)))
    flags = ("--allow-file-access-from-files", "--window-size=1400,1000", "--hide-scrollbars")
    text = re.search(
        r"<body>(\{.*\})</body>", dom_of(measure.as_uri(), tmp_path, *flags), re.DOTALL
    )
    assert text, "the pages were not measured to their end"
    found = json.loads(text[1])
    assert len(found) == 2 * len(pages)
    problems = {
        page: [
            p
            for p in all_of_it
            if not (Path(page.split()[0]).name in MAY_SCROLL and "scrolls" in p)
        ]
        for page, all_of_it in found.items()
    }
    assert {page: those for page, those in problems.items() if those} == {}


@in_chromium
def test_search_finds(tmp_path):
    found = dom_of(f"{(SITE / 'index.html').as_uri()}?q=friction", tmp_path)
    assert re.search(r"\d+ matching documents", found)


def test_formulas_are_typeset():
    typeset = 0
    for page in BUILT:
        html = page.read_text()
        typeset += html.count('class="katex"')
        code = r"<(script|pre|code|annotation)\b.*?</\1>"
        assert "$" not in re.sub(code, "", html, flags=re.DOTALL), page.name
    assert typeset > 100


def test_nothing_is_fetched():
    for page in BUILT:
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text())
        assert [tag for tag in tags if re.search(r'(?:src|href)="(?:https?:)?//', tag)] == []
    for style in SITE.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", style.read_text()), style.name
