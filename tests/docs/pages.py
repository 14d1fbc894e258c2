"""Reads the pages for scripts/test-docs: what they name has to exist, and their shell blocks become scenarios.

  pages.py check        one line a page: every path and link in it leads somewhere
  pages.py list         the pages that have something to run
  pages.py scenario PAGE   the script that runs the page's blocks in the guest
  pages.py host PAGE    the script that runs those of its blocks that belong to the checkout; empty if there are none
"""
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COMMENT = re.compile(r"^<!-- (not run|file|run|in): (.*?) -->$")
FENCE = re.compile(r"^(`{3,})(\w*)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# A path of the checkout in backticks; capitals stand for what the reader chooses.
PATH = re.compile(r"`((?:src|scripts|contracts|systemd|tests|board|image|docs)/[a-z0-9_./-]+)`")
SHELL = ("sh", "bash", "console")


def all_pages():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    pages += sorted((ROOT / "docs").glob("*.md")) + [ROOT / "image/README.md", ROOT / "image/container/README.md"]
    pages += [ROOT / "board/README.md", ROOT / "contracts/README.md"]
    return [p for p in pages if p.exists()]


class Block:
    def __init__(self, line, language):
        self.line, self.language, self.lines, self.comments = line, language, [], {}

    def script(self):
        """What is typed: of a console only what follows the prompt."""
        if self.language != "console":
            return "\n".join(self.lines)
        return "\n".join(l[2:] for l in self.lines if l.startswith(("$ ", "# ")))


def parts(page):
    """Blocks and hidden commands of a page, in their order."""
    block, above, out = None, {}, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence, comment = FENCE.match(line), COMMENT.match(line)
        if block is not None:
            if fence and not fence[2]:
                out.append(block)
                block = None
            else:
                block.lines.append(line)
        elif fence:
            block = Block(number, fence[2])
            block.comments, above = above, {}
        elif comment and comment[1] == "run":
            out.append((number, comment[2]))
        elif comment:
            above[comment[1]] = comment[2]
        elif line.strip():
            above = {}
    return out


def assembled(head, steps, shown=()):
    """A script: what it starts with, the lines it prints first, and its steps."""
    out = ["#!/bin/bash", *head]
    out += [f"echo {shlex.quote(what)}" for what in shown]
    out += [f"to_run {shlex.quote(what)}" for what, _, counted in steps if counted]
    for what, script, counted in steps:
        out.append(f"begin {shlex.quote(what)}\n{{\n{script}\n}} >\"$said\" 2>&1\n{'passed' if counted else 'prepared'}")
    return "\n".join([*out, "finished=yes" if steps else ""]) + "\n"


def in_checkout(part):
    return isinstance(part, Block) and part.comments.get("in") == "the checkout" and part.language in SHELL


def host(page):
    name = page.relative_to(ROOT)
    steps = [(f"{name}:{p.line}", p.script(), True) for p in parts(page) if in_checkout(p)]
    return assembled([". tests/docs/blocks.bash"], steps) if steps else ""


def scenario(page):
    name = page.relative_to(ROOT)
    setup = ROOT / f"tests/docs/{page.stem}.bash"
    steps, shown = [], []
    if setup.exists() and page.parent.name != "image":
        steps.append((f"{name}: the machine is prepared", f". /usr/lib/tests/docs/{setup.name}", False))
    for part in parts(page):
        if isinstance(part, tuple):
            steps.append((f"{name}:{part[0]}: {part[1]}", part[1], False))
        elif in_checkout(part):
            continue
        elif "file" in part.comments:
            path = part.comments["file"]
            body = "\n".join(part.lines)
            steps.append((f"{name}:{part.line}: {path} is written", f"cat >{path} <<'FILE'\n{body}\nFILE", False))
        elif part.language in SHELL and "not run" in part.comments:
            shown.append(f"NOT CHECKED - {name}:{part.line}: {part.comments['not run']}")
        elif part.language in SHELL:
            steps.append((f"{name}:{part.line}", part.script(), True))
    head = [". /usr/lib/tests/docs/blocks.bash", ". /usr/lib/tests/docs/world.bash"] if steps else []
    return assembled(head, steps, shown)


def anchors(page):
    """Headings as GitHub links to them."""
    out, fenced = set(), False
    for line in page.read_text().splitlines():
        fenced ^= bool(FENCE.match(line))
        if not fenced and line.startswith("#"):
            text = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower().replace("`", ""))
            out.add(text.replace(" ", "-"))
    return out


def faults(page):
    text = page.read_text()
    for number, line in enumerate(text.splitlines(), 1):
        for path in PATH.findall(line):
            if not (ROOT / path).exists():
                yield f"{number}: there is no {path}"
        for target in LINK.findall(re.sub(r"`[^`]*`", "", line)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            leads_to = (page.parent / path).resolve() if path else page
            if not leads_to.exists():
                yield f"{number}: {target} leads nowhere"
            elif anchor and anchor not in anchors(leads_to):
                yield f"{number}: {target}: no such heading"
    if page.name == "architecture.md":
        rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
        run = [ROOT / "src/node/run.rs", *(ROOT / "src/node/run").glob("*.rs")]
        for task in sorted(t for f in run for t in re.findall(r'\.(?:restarting|vital)\("([^"]+)"', f.read_text())):
            if not re.search(rf"^\| `{re.escape(task)}` \| (vital|restarting)", text, re.MULTILINE):
                yield f"1: the table of tasks lacks {task}"
        for crate in sorted(c.parent.name for c in (ROOT / "src").glob("*/Cargo.toml")):
            if crate not in rows:
                yield f"1: the table of crates lacks {crate}"
    for part in parts(page):
        if isinstance(part, Block) and part.language == "":
            yield f"{part.line}: a block without a language"


def main():
    if sys.argv[1] == "check":
        failed = False
        for page in all_pages():
            found = list(faults(page))
            failed |= bool(found)
            print(f"{'not ok' if found else 'ok'} - {page.relative_to(ROOT)}: paths and links")
            for fault in found:
                print(f"    {page.relative_to(ROOT)}:{fault}")
        sys.exit(failed)
    if sys.argv[1] == "list":
        for page in all_pages():
            if any(isinstance(p, Block) and p.language in SHELL for p in parts(page)):
                print(page.relative_to(ROOT))
    if sys.argv[1] in ("scenario", "host"):
        make = {"scenario": scenario, "host": host}[sys.argv[1]]
        print(make((ROOT / sys.argv[2]).resolve()), end="")


main()
