#!/usr/bin/env python3
"""The book in docs/: writes the pages of the commands, checks links and command lines, and builds it.

    tools/book.py check                  check README and docs; needs no binary
    tools/book.py commands [LOWRANK]     write docs/commands/ from `lowrank COMMAND --help` (default: target/release/lowrank)
    tools/book.py build                  check, then `mdbook build` where mdbook is installed

`check` fails (exit 1) where
  * a relative link of README, docs or the other Markdown files names no file, or no heading of that file;
  * docs/SUMMARY.md does not list a page of docs, or lists one twice;
  * a command line has a command or an option that docs/commands does not have.

`cargo test --test readme` checks the values of the options as well, and that docs/commands is what the command says.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
COMMANDS = DOCS / "commands"
FENCE = re.compile(r"^ *(```|~~~)(.*)$")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(<?([^()\s>]+(?:\([^()]*\))?)>?(?:\s+\"[^\"]*\")?\)")
HTML_LINK = re.compile(r"<(?:img|a|source)\b[^>]*?\b(?:src|href|srcset)=\"([^\"]+)\"")
OUTSIDE = re.compile(r"^[a-z][a-z0-9+.-]*:|^//")


def pages():
    """The Markdown files that are checked."""
    names = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
    places = [ROOT / name for name in names]
    for folder in ("docs", "bench", "examples", "tools"):
        places += sorted((ROOT / folder).rglob("*.md"))
    places.append(ROOT / "python/README.md")
    return [place for place in places if place.is_file()]


def prose(text):
    """`text` with blocks of code and code spans blanked."""
    out, inside = [], False
    for line in text.split("\n"):
        if FENCE.match(line):
            inside = not inside
            line = ""
        out.append("" if inside else re.sub(r"(`+)(?:(?!\1).)+?\1", lambda m: " " * len(m.group()), line))
    return "\n".join(out)


def anchors(path):
    """The anchors of the headings of a page, as GitHub and mdBook name them."""
    found, inside = set(), False
    for line in path.read_text().split("\n"):
        if FENCE.match(line):
            inside = not inside
        heading = None if inside else re.match(r"#{1,6}\s+(.*?)\s*#*$", line)
        if heading:
            title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.group(1)).replace("`", "").lower()
            slug = "".join(c for c in title if c.isalnum() or c in " -_").replace(" ", "-")
            name, count = slug, 0
            while name in found:
                count += 1
                name = f"{slug}-{count}"
            found.add(name)
        found.update(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", line))
    return found


def check_links():
    """What is wrong with the links of all pages."""
    for page in pages():
        text = prose(page.read_text())
        for match in (*LINK.finditer(text), *HTML_LINK.finditer(text)):
            target = match.group(1)
            if OUTSIDE.match(target):
                continue
            name, _, anchor = target.partition("#")
            place = (page.parent / name).resolve() if name else page
            where = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.end()) + 1}"
            if ROOT not in place.parents:
                yield f"{where}: {target} leaves the repository"
            elif not place.exists():
                yield f"{where}: there is no {target}"
            elif anchor and place.suffix == ".md" and anchor not in anchors(place):
                yield f"{where}: {name or page.name} has no heading #{anchor}"


def check_summary():
    """What is wrong with the table of contents."""
    listed = [
        (DOCS / target).resolve()
        for target in LINK.findall((DOCS / "SUMMARY.md").read_text())
        if not OUTSIDE.match(target)
    ]
    for page in sorted(set(listed)):
        if listed.count(page) > 1:
            yield f"docs/SUMMARY.md: {page.relative_to(DOCS)} is listed twice"
    for page in sorted(DOCS.rglob("*.md")):
        if page not in listed and page.name != "SUMMARY.md":
            yield f"docs/SUMMARY.md: {page.relative_to(DOCS)} is not listed"


def command_lines(page):
    """The `lowrank` command lines of a page, as (line number, words), from blocks of `sh`."""
    inside, pending, start = False, "", 0
    for number, line in enumerate(page.read_text().split("\n"), 1):
        fence = FENCE.match(line)
        if fence:
            inside = not inside and fence.group(2).strip() in ("sh", "bash", "console")
            continue
        if not inside:
            continue
        start = start if pending else number
        pending += line.removeprefix("$ ")
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        if re.match(r"\s*lowrank\s", pending):
            yield start, shlex.split(pending, comments=True)
        pending = ""


def known_options():
    """The flags of every command, by what docs/commands says, and the other names of those of `train`."""
    known = {}
    for page in COMMANDS.glob("*.md"):
        if page.stem != "README":
            known[page.stem] = set(re.findall(r"^- `.*?(--[a-z0-9-]+)", page.read_text(), re.M))
    aliases = re.search(r"ALIASES[^=]*= &\[(.*?)\n\];", (ROOT / "crates/lowrank/src/options.rs").read_text(), re.S)
    for option, others in re.findall(r'\("(\w+)", &\[(.*?)\]\)', aliases.group(1)) if aliases else []:
        flag = "--" + option.replace("_", "-")
        for flags in known.values():
            if flag in flags:
                flags.update("--" + name.replace("_", "-") for name in re.findall(r'"(\w+)"', others))
    return known


def check_commands():
    """Command lines that have an unknown command or option."""
    known = known_options()
    for page in pages():
        if page.name == "CHANGELOG.md":
            continue
        for number, words in command_lines(page):
            where = f"{page.relative_to(ROOT)}:{number}"
            for end in ("|", ">", "&&", ";"):
                words = words[: words.index(end)] if end in words else words
            if words[1].startswith("-"):
                continue
            if words[1] not in known:
                yield f"{where}: there is no command {words[1]}"
                continue
            for word in words[2:]:
                flag = word.split("=")[0]
                if flag.startswith("--") and flag not in known[words[1]] and flag != "--help":
                    yield f"{where}: lowrank {words[1]} has no option {flag}"


def check():
    problems = [*check_links(), *check_summary(), *check_commands()]
    for problem in problems:
        print(problem)
    lines = sum(1 for page in pages() for _ in command_lines(page))
    print(f"book: {len(pages())} pages, {lines} command lines, {len(problems)} problems")
    return 1 if problems else 0


def stage(folder):
    """Copies docs to `folder`, and to `folder`/more the files outside of docs that its pages link to; mdBook knows one folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("README.md"))
    titles, todo, done = {}, sorted(DOCS.rglob("*.md")), set()

    def place_of(path):
        inside = path.is_relative_to(DOCS)
        place = folder / path.relative_to(DOCS) if inside else folder / "more" / path.relative_to(ROOT)
        # mdBook writes README.md to index.html, and leaves links to it as they are.
        return place.with_name("index.md") if path.name == "README.md" else place

    while todo:
        page = todo.pop(0)
        if page in done:
            continue
        done.add(page)
        text = page.read_text()

        def link(match, page=page):
            target, _, anchor = match.group(1).partition("#")
            path = (page.parent / target).resolve()
            if OUTSIDE.match(match.group(1)) or not target or not path.exists():
                return match.group()
            # A folder has no page, and the table of contents stands beside every page.
            if path.is_dir() or path.name == "SUMMARY.md":
                return re.sub(r"^!?\[(.*)\]\(.*$", r"\1", match.group(), flags=re.S)
            if not path.is_relative_to(DOCS) and path not in done:
                if path.suffix == ".md":
                    todo.append(path)
                else:
                    place_of(path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, place_of(path))
            new = os.path.relpath(place_of(path), place_of(page).parent) + ("#" + anchor if anchor else "")
            return match.group().replace(f"({match.group(1)}", f"({new}").replace(f'"{match.group(1)}"', f'"{new}"')

        place_of(page).parent.mkdir(parents=True, exist_ok=True)
        place_of(page).write_text(HTML_LINK.sub(link, LINK.sub(link, text)))
        if not page.is_relative_to(DOCS):
            titles[place_of(page).relative_to(folder)] = re.search(r"^# (.+)$", text, re.M).group(1)
    rows = "".join(f"- [{title}]({path})\n" for path, title in sorted(titles.items()))
    with open(folder / "SUMMARY.md", "a") as summary:
        summary.write(f"\n# In the repository\n\n{rows}")


def help_of(binary, *command):
    words = ["lowrank", *command, "--help"]
    return subprocess.run(words, executable=binary, capture_output=True, text=True, check=True).stdout


def page_of(name, text):
    """The help text of a command as a page. Every line of it is there as it is."""
    out, usage, code = [f"# lowrank {name}", ""], False, False
    for line in text.rstrip().split("\n"):
        words, indent = line.strip(), len(line) - len(line.lstrip())
        if not words:
            out += [""] if out[-1] else []
        elif words.startswith("Usage: "):
            out += ["```text", words, "```"]
        elif indent == 0 and words.endswith(":") and usage:
            out += [f"## {words[:-1]}", ""]
        elif indent in (2, 6) and usage and re.match(r"-|<", words):
            out += [f"- `{words}`"]
        elif usage:
            out += ["" if out[-1].startswith("- ") else None, "  " + escaped(words)]
        else:
            out += [escaped(words)]
        usage = usage or words.startswith("Usage: ")
    lines = [line for line in out if line is not None]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def escaped(words):
    """Help text that Markdown must not read as HTML."""
    return words.replace("<", "\\<")


def write_commands(binary):
    listing = help_of(binary)
    names = re.findall(r"^  ([a-z-]+) +(.+)$", listing.split("Commands:")[1].split("Options:")[0], re.M)
    names = [(name, what) for name, what in names if name != "help"]
    COMMANDS.mkdir(exist_ok=True)
    for old in COMMANDS.glob("*.md"):
        old.unlink()
    for name, _ in names:
        (COMMANDS / f"{name}.md").write_text(page_of(name, help_of(binary, name)))
    rows = "".join(f"| [`{name}`]({name}.md) | {what} |\n" for name, what in names)
    codes = next(line for line in listing.split("\n") if line.startswith("Exit codes:"))
    head = "# Commands\n\nWritten by `python3 tools/book.py commands` from `lowrank COMMAND --help`; `lowrank COMMAND -h` is shorter.\n"
    (COMMANDS / "README.md").write_text(f"{head}\n| command | what it does |\n|---|---|\n{rows}\n{codes}\n")
    rows = "".join(f"  - [{name}](commands/{name}.md)\n" for name, _ in names)
    summary = (DOCS / "SUMMARY.md").read_text()
    listed = re.compile(r"(- \[Commands\]\(commands/README\.md\)\n)(?:  - \[.*\n)*")
    (DOCS / "SUMMARY.md").write_text(listed.sub(lambda m: m.group(1) + rows, summary))
    print(f"docs/commands: {len(names)} pages")


def main(args):
    if args[:1] == ["check"]:
        return check()
    if args[:1] == ["commands"]:
        write_commands(Path(args[1] if len(args) > 1 else ROOT / "target/release/lowrank").resolve())
        return 0
    if args[:1] == ["build"]:
        failed = check()
        if shutil.which("mdbook") is None:
            print("book: mdbook is not installed (cargo install mdbook): checked only; docs/ is also read as it is")
            return failed
        stage(ROOT / "target/book-src")
        build = {**os.environ, "MDBOOK_BOOK__SRC": "target/book-src"}
        return failed or subprocess.run(["mdbook", "build", str(ROOT)], env=build, check=False).returncode
    print(__doc__.strip())
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
