"""Download one file of a package with pip's own settings: `python pip_fetch.py NAME FILE`.

`pip download` runs the setup.py of a source distribution to learn what it depends on. This takes pip's finder
and session, and so its index, proxy and certificates, but leaves the file as it is.
"""

import sys
from optparse import Values
from pathlib import Path

from pip._internal.commands.download import DownloadCommand


class Fetch(DownloadCommand):
    def run(self, options: Values, args: list[str]) -> int:
        name, file = args
        with self.get_default_session(options) as session:
            finder = self._build_package_finder(options=options, session=session)
            links = [each.link for each in finder.find_all_candidates(name)]
            url = next((link.url_without_fragment for link in links if link.filename == file), None)
            if url is None:
                print(f"the index has no {file}", file=sys.stderr)
                return 1
            answer = session.get(url)
            answer.raise_for_status()
            Path(file).write_bytes(answer.content)
            return 0


if __name__ == "__main__":
    sys.exit(
        Fetch("fetch", "one file of a package").main([*sys.argv[1:], "--ignore-requires-python"])
    )
