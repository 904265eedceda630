"""The site from the repository: README, CONTRIBUTING, CHANGELOG and the results are pages too, and so is every source file
that a page links to.

Every page keeps the links that it has in the repository, where they work as well; here they are rewritten.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/RESULTS.md")
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files, config):
    """Adds the pages outside of docs/, what they show, and a page per source file that any page links to."""
    linked, todo = set(), [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    while todo:
        name = todo.pop()
        linked.add(name)
        if name.endswith(".md"):
            text = (ROOT / name).read_text()
            targets = {_target(name, link[0]) for link in LINK.findall(text)}
            todo += sorted(target for target in targets - linked if (ROOT / target).is_file())
    for name in sorted(linked):
        if files.get_file_from_path(_place(name)) is None:
            files.append(_file(name, config))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links as the site has them; a bar in code, which tables of GitHub's Markdown need escaped, without its backslash."""
    source = next((name for name in (*PAGES, _name(page.file)) if _place(name) == page.file.src_uri), None)
    if source is None or page.file.src_uri.startswith("source/"):
        return markdown

    def rewritten(match):
        place = _place(_target(source, match[1]))
        if files.get_file_from_path(place) is None:
            return match[0]
        return posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".") + (match[2] or "")

    markdown = CODE.sub(lambda match: match[0].replace(r"\|", "|"), markdown)
    return LINK.sub(rewritten, markdown)


def _target(page: str, link: str) -> str:
    """Repository path of what a page of the repository links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _name(file: File) -> str:
    """Repository path of a page of the site."""
    return file.src_uri if file.src_uri.startswith("experiments/") else f"docs/{file.src_uri}"


def _place(name: str) -> str:
    """The site's path of a file of the repository."""
    if name == "README.md":
        return "index.md"
    if name.startswith("docs/") and not name.endswith(".py"):
        return name.removeprefix("docs/")
    if name.endswith((".md", ".png", ".json", ".csv")):
        return name
    return f"source/{name}.md"


def _file(name: str, config) -> File:
    place = _place(name)
    if not place.startswith("source/"):
        return File.generated(config, place, abs_src_path=str(ROOT / name))
    language = {".py": "python", ".sh": "bash", ".yml": "yaml"}.get(Path(name).suffix, Path(name).suffix[1:] or "text")
    text = (ROOT / name).read_text()
    fence = "`" * 6
    return File.generated(
        config, place, content=f"---\nsearch:\n  exclude: true\n---\n# {name}\n\n{fence}{language}\n{text}\n{fence}\n"
    )
