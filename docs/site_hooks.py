"""What the built pages need beyond the files in docs/: the root's own pages, pictures of results, and links
that leave docs/.

Pages are written for a forge, where `../csrc/rules.h` is a link. In the built site such a file is not
there: its link becomes its name. A link to a file that does not exist stays, and fails a strict build.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
FROM_THE_ROOT = ("CHANGELOG.md", "CONTRIBUTING.md")
LINK = re.compile(
    r"\[(?P<text>[^\]\n]+)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[\w-]*)?\)"
)


def on_files(files, config):
    for name in FROM_THE_ROOT:
        files.append(
            File.generated(config, name, abs_src_path=str(ROOT / name))
        )
    for picture in (ROOT / "bench/results").rglob("*.png"):
        name = picture.relative_to(ROOT).as_posix()
        files.append(
            File.generated(config, name, abs_src_path=str(picture))
        )
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
        if files.get_file_from_path(page_name.as_posix()) is None:
            return match["text"]
        path = os.path.relpath(page_name, here)
        return f"[{match['text']}]({path}{match['anchor'] or ''})"

    return LINK.sub(as_seen_here, markdown)
