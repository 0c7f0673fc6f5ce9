"""What the built pages need beyond the files in docs/: the root's own pages, pictures of results, links that
leave docs/, typeset formulas, and what of npm's packages makes the pages work without a server or a network.

Pages are written for a forge, where `../csrc/rules.h` is a link. In the built site such a file is not
there: its link becomes its name. A page that a link calls by its file name is called by its title. A link to
a file that does not exist stays, and fails a strict build.
"""

import html
import json
import os
import re
import subprocess
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
NPM = ROOT / "build/npm/node_modules"
FROM_THE_ROOT = ("CHANGELOG.md", "CONTRIBUTING.md")
FROM_NPM = (
    "iframe-worker/shim/index.js",
    "katex/dist/katex.min.css",
    "katex/dist/fonts/*.woff2",
)
LINK = re.compile(
    r"\[(?P<text>[^\]\n]+)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[\w-]*)?\)"
)


def on_config(config):
    if not NPM.is_dir():
        raise PluginError(
            f"{NPM} is not there: `make docs` installs it, and builds"
        )


def on_files(files, config):
    def add(name, path):
        files.append(File.generated(config, name, abs_src_path=str(path)))

    for name in FROM_THE_ROOT:
        add(name, ROOT / name)
    for picture in (ROOT / "bench/results").rglob("*.png"):
        add(picture.relative_to(ROOT).as_posix(), picture)
    for pattern in FROM_NPM:
        for file in NPM.glob(pattern):
            add(f"npm/{file.relative_to(NPM).as_posix()}", file)
    return files


def on_page_markdown(markdown, page, config, files):
    source = Path(page.file.abs_src_path)
    here = Path(page.file.src_uri).parent

    def as_seen_here(match):
        target = (source.parent / match["path"]).resolve()
        if not target.is_relative_to(ROOT) or not target.exists():
            return match[0]  # mkdocs warns of it
        name = target.relative_to(ROOT)
        page_name = (
            name.relative_to("docs")
            if name.parts[:1] == ("docs",)
            else name
        )
        file = files.get_file_from_path(page_name.as_posix())
        if file is None:
            return match["text"]
        path = os.path.relpath(page_name, here)
        is_file_name = match["text"] == name.name and file.page
        text = file.page.title if is_file_name else match["text"]
        return f"[{text}]({path}{match['anchor'] or ''})"

    return LINK.sub(as_seen_here, markdown)


def on_page_content(content, page, config, files):
    return typeset(without_second_defaults(content), page)


SECOND_DEFAULT = re.compile(
    r", default:\s*<code>.*?</code>\s*(?=\)\s*\N{EN DASH})", re.DOTALL
)


def without_second_defaults(content):
    """Docstrings say defaults, and signatures show them."""
    return SECOND_DEFAULT.sub("", content)


FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)
TYPESET = """
const katex = require("katex");
const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));
const breakable = (tex) => tex.replaceAll("\\\\qquad", "\\\\qquad\\\\allowbreak ");
const typeset = ([tex, displayMode]) =>
  katex.renderToString(breakable(tex), {displayMode, strict: "error"});
process.stdout.write(JSON.stringify(formulas.map(typeset)));
"""


def typeset(content, page):
    """Formulas, as pymdownx.arithmatex found them, typeset by KaTeX.

    They may break at a \\qquad. (\\allowbreak in a page would be an error on some forges.)
    """
    formulas = [
        (html.unescape(found["tex"]), found["tag"] == "div")
        for found in FORMULA.finditer(content)
    ]
    if not formulas:
        return content
    run = subprocess.run(
        ["node", "-e", TYPESET],
        cwd=NPM,
        input=json.dumps(formulas),
        capture_output=True,
        text=True,
    )
    if run.returncode != 0:
        raise PluginError(f"{page.file.src_uri}: {run.stderr}")
    made = iter(json.loads(run.stdout))

    def in_its_place(found):
        tag = found["tag"]
        return f"<{tag} data-search-exclude>{next(made)}</{tag}>"

    return FORMULA.sub(in_its_place, content)
