#!/usr/bin/env python3
"""Checks how the source files depend on each other, and counts what an addition touches.

    tools/house.py [ROOT]

Fails (exit 1) where
  * files of one crate import each other in a circle, and names the files and what ties them;
  * a crate depends on one that is not below it (`FLOORS`).

Prints, for each kind of addition (architecture, method, format, loss, command), how many files outside
its own name one of its kind: 1 is the registry alone.

How a file imports another:
  * A path (`crate::a::B`, `super::B`, `self::a::B`, `a::B` with a module `a` in scope) is an import of the file that
    *defines* `B`. Names are followed through `use` and `pub use` to their definition, so that a crate's `lib.rs` or a
    folder's `mod.rs` can list names without being imported itself.
  * `mod a;` and `pub use a::B;` are no imports: they only list what there is. If the file uses `B` in its own code, it is.
  * So a contract and a registry in one `mod.rs` are a circle: the children import the contract (`super::Trait`), the
    registry imports the children. The contract belongs in a file of its own below them.
  * Code under `#[cfg(test)]` does not count. Methods are not followed: an `impl Tape` in another file than `Tape` is
    an import of `Tape` by that file only.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

# Crates from the bottom to the top. A crate may depend on those of lower floors only; crates of one floor are siblings.
FLOORS = [
    ["lowrank-testing", "lowrank-comm"],
    ["lowrank-kernels"],
    ["lowrank-engine"],
    ["lowrank-gpu", "lowrank-files"],
    ["lowrank-models", "lowrank-adapters"],
    ["lowrank-tools"],
    ["lowrank-train"],
    ["lowrank-study", "lowrank-serve"],
    ["lowrank"],
]

# Kinds of additions: the folder of its files, what marks a file (or folder) there as one, and how its name is written as a
# string elsewhere, where that is no common word.
KINDS = {
    "architecture": ("crates/lowrank-models/src/arch", r"\bimpl\s+Model\s+for\b", str.lower),
    "method": ("crates/lowrank-adapters/src/methods", r"\bimpl\s+(?:\w+::)*Method\s+for\b", str.upper),
    "format": ("crates/lowrank-tools/src/formats", r"\bconst FORMAT\b", None),
    "loss": ("crates/lowrank-train/src/objective", r"\bimpl\s+(?:\w+::)*Objective\s+for\b", None),
    "command": ("crates/lowrank/src/commands", r"\bfn\s+run\s*\(", None),
}

IDENTIFIER = r"[A-Za-z_]\w*"

# The root module of each of our libraries, by its name in code (`lowrank_engine`).
CRATES = {}


def blank_comments(text, strings):
    """`text` with comments, and string contents unless `strings`, replaced by spaces. Line breaks stay."""
    pattern = re.compile(
        r"//[^\n]*"
        r"|/\*.*?\*/"
        r'|b?r(?P<hashes>#*)".*?"(?P=hashes)'
        r'|b?"(?:\\.|[^"\\])*"'
        r"|b?'(?:\\(?:x[0-9a-fA-F]{2}|u\{[0-9a-fA-F_]+\}|.)|[^\\'\n])'",
        re.S,
    )

    def blank(match):
        found = match.group()
        if strings and not found.startswith("/"):
            return found
        return re.sub(r"[^\n]", " ", found)

    return pattern.sub(blank, text)


def closing(text, start):
    """The end of the bracket that opens at `start`."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
            if depth == 0:
                return i + 1
    return len(text)


def item_end(text, start):
    """The end of the item that begins at `start`: its `;` or its block."""
    use = re.match(r"\s*(?:pub(?:\([^)]*\))?\s+)?use\b", text[start:])
    i = start
    while i < len(text):
        if text[i] == ";":
            return i + 1
        if text[i] == "{" and not use:
            return closing(text, i)
        i = closing(text, i) if text[i] in "([{" else i + 1
    return len(text)


def without_tests(text):
    """`text` without its `#[cfg(test)]` items, and the names of the test modules that are files."""
    test_files = set()
    pattern = re.compile(r"#\[\s*(?:cfg\s*\(\s*(?:test\b|all\s*\(\s*test\b)|test\s*\])")
    while match := pattern.search(text):
        i = closing(text, match.start() + 1)
        while following := re.match(r"\s*#\[", text[i:]):
            i = closing(text, i + following.end() - 1)
        end = item_end(text, i)
        if declared := re.match(rf"\s*(?:pub(?:\([^)]*\))?\s+)?mod\s+({IDENTIFIER})\s*;", text[i:end]):
            test_files.add(declared.group(1))
        text = text[: match.start()] + re.sub(r"[^\n]", " ", text[match.start() : end]) + text[end:]
    return text, test_files


def use_tree(text):
    """The `(path, name, is_glob)` of a `use` tree."""
    text = text.strip()
    found = []

    def walk(prefix, tree):
        tree = tree.strip()
        if not tree:
            return
        brace = tree.find("{")
        if brace >= 0:
            head = [s.strip() for s in tree[:brace].split("::") if s.strip()]
            inside, depth, part = tree[brace + 1 : tree.rfind("}")], 0, ""
            for c in inside + ",":
                if c == "," and depth == 0:
                    walk(prefix + head, part)
                    part = ""
                    continue
                depth += {"{": 1, "}": -1}.get(c, 0)
                part += c
            return
        path, _, alias = tree.partition(" as ")
        path = prefix + [s.strip() for s in path.split("::") if s.strip()]
        if path[-1] == "*":
            found.append((path[:-1], None, True))
            return
        if path[-1] == "self" and len(path) > 1:
            path.pop()
        found.append((path, alias.strip() or path[-1], False))

    walk([], text)
    return found


class Module:
    """A module: a file, or an inline `mod` in one."""

    def __init__(self, name, parent, file):
        self.name, self.parent, self.file = name, parent, file
        self.children, self.items, self.uses, self.globs, self.macros = {}, set(), {}, [], set()
        self.imports = []  # (path, name, is_glob, is_public)
        self.body = ""

    @property
    def root(self):
        return self.parent.root if self.parent else self

    def all(self):
        yield self
        for child in self.children.values():
            yield from child.all()


def read_module(name, parent, file, text, folder):
    """The module of `text`, with its children; `folder` is where files of children are."""
    module = Module(name, parent, file)
    text, test_files = without_tests(text)
    # Inline modules are read first and taken out.
    pattern = re.compile(rf"\bmod\s+({IDENTIFIER})\s*\{{")
    while match := pattern.search(text):
        end = closing(text, match.end() - 1)
        inner = text[match.end() : end - 1]
        module.children[match.group(1)] = read_module(match.group(1), module, file, inner, folder / match.group(1))
        text = text[: match.start()] + " " * (end - match.start()) + text[end:]
    # `use` declarations, wherever they are.
    pattern = re.compile(r"(\bpub(?:\s*\([^)]*\))?\s+)?\buse\s+([^;]*);")
    for match in pattern.finditer(text):
        for path, alias, glob in use_tree(match.group(2)):
            module.imports.append((path, alias, glob, bool(match.group(1))))
            if glob:
                module.globs.append(path)
            elif alias != "_":
                module.uses[alias] = path
    text = pattern.sub(lambda m: " " * len(m.group()), text)
    # Items of the module itself: those outside all brackets.
    outside, depth = [], 0
    for c in text:
        outside.append(c if depth == 0 else " ")
        depth += {"{": 1, "}": -1}.get(c, 0)
    outside = "".join(outside)
    keywords = r"fn|struct|enum|union|trait|type|const|static(?:\s+mut)?"
    module.items = set(re.findall(rf"\b(?:{keywords})\s+({IDENTIFIER})", outside))
    module.macros = set(re.findall(rf"\bmacro_rules!\s*({IDENTIFIER})", outside))
    module.items |= module.macros
    for declared in re.finditer(rf"\bmod\s+({IDENTIFIER})\s*;", outside):
        child = declared.group(1)
        if child in test_files:
            continue
        for path, below in [(folder / f"{child}.rs", folder / child), (folder / child / "mod.rs", folder / child)]:
            if path.exists():
                source = blank_comments(path.read_text(), strings=False)
                module.children[child] = read_module(child, module, path, source, below)
    module.body = re.sub(rf"\bmod\s+{IDENTIFIER}\s*;", " ", text)
    return module


def resolve(module, path, seen=()):
    """What `path` means in `module`: `(module, None)` or `(defining module, item)`; None outside our crates."""
    if (id(module), tuple(path)) in seen:
        return None
    seen = (*seen, (id(module), tuple(path)))
    here = module
    for i, name in enumerate(path):
        if i == 0 and name in CRATES and name not in here.children:
            here = CRATES[name]
        elif name in ("crate", "super", "self"):
            here = {"crate": here.root, "super": here.parent, "self": here}[name]
            if here is None:
                return None
        elif name in here.children:
            here = here.children[name]
        elif name in here.items:
            return here, name
        elif name in here.uses and (found := resolve(here, here.uses[name], seen)):
            if found[1] is not None:
                return found
            return resolve(found[0], path[i + 1 :], seen) if path[i + 1 :] else found
        else:
            for glob in here.globs:
                found = resolve(here, glob, seen)
                if found and found[1] is None and (inner := resolve(found[0], path[i:], seen)):
                    return inner
            # Made by a macro, if the path was ours so far.
            return (here, name) if i > 0 and name not in here.uses else None
    return here, None


def names_of(module, seen=()):
    """All names that `use module::*` brings."""
    if id(module) in seen:
        return set()
    names = module.items | set(module.uses) | set(module.children)
    for glob in module.globs:
        found = resolve(module, glob)
        if found and found[1] is None:
            names |= names_of(found[0], (*seen, id(module)))
    return names


def imports_of(module, listed=False):
    """`(file, name)` of everything that `module` names, its own file's included; with `listed` also what it only lists."""
    words = set(re.findall(IDENTIFIER, module.body))
    for path, alias, glob, public in module.imports:
        found = resolve(module, path)
        if found is None:
            continue
        if glob:
            for name in names_of(found[0]) & words if found[1] is None else ():
                if name not in module.items and (inner := resolve(found[0], [name])) and inner[1]:
                    yield inner[0].file, name
        elif found[1] is not None and (listed or not public or alias in words):
            yield found[0].file, found[1]
    for match in re.finditer(rf"(?<![\w:])({IDENTIFIER}(?:\s*::\s*{IDENTIFIER})+)", module.body):
        path = [s.strip() for s in match.group(1).split("::")]
        if (found := resolve(module, path)) and found[1]:
            yield found[0].file, found[1]
    if listed:
        for child in module.children.values():
            yield child.file, "mod"
    # Macros that are in scope by the order of the text alone.
    invoked = set(re.findall(rf"(?<![\w:])({IDENTIFIER})!", module.body))
    for other in module.root.all() if invoked else ():
        for macro in other.macros & invoked:
            if macro not in module.macros:
                yield other.file, macro


def graph_of(roots, listed=False):
    """For each file the files it imports, and the names."""
    graph = defaultdict(lambda: defaultdict(set))
    for root in roots:
        for module in root.all():
            for file, name in imports_of(module, listed):
                if file != module.file:
                    graph[module.file][file].add(name)
    return graph


def circles(graph):
    """Sets of files that reach each other (strongly connected components, Tarjan)."""
    index, low, stack, on_stack, found = {}, {}, [], set(), []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        on_stack.add(node)
        for target in list(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in on_stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = set()
            while node not in component:
                member = stack.pop()
                on_stack.discard(member)
                component.add(member)
            if len(component) > 1:
                found.append(component)

    sys.setrecursionlimit(10000)
    for node in list(graph):
        if node not in index:
            visit(node)
    return found


def dependencies(manifest):
    """The crates of ours in `[dependencies]` of a Cargo.toml (tests may use any)."""
    section, found = "", set()
    for line in manifest.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[] ")
        elif match := re.match(r"(lowrank[\w-]*)\b", line):
            if section == "dependencies" or section.endswith(".dependencies"):
                found.add(match.group(1))
    return found


def wrong_floors(root):
    """Dependencies between crates that do not go down."""
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    for manifest in sorted(root.glob("crates/*/Cargo.toml")):
        crate = manifest.parent.name
        if crate not in floor:
            yield f"{crate}: has no floor; add it to FLOORS in tools/house.py"
            continue
        for other in sorted(dependencies(manifest)):
            if floor.get(other, -1) >= floor[crate]:
                yield f"{crate} depends on {other}, which is not below it"


def places(root, kind, graph, texts):
    """For each addition of a kind: the files outside its own that import or list it, or have its name as a string."""
    folder, mark, spelling = KINDS[kind]
    for path in sorted((root / folder).glob("*")):
        own = {path} if path.is_file() else set(path.rglob("*.rs"))
        if path.stem == "mod" or not any(re.search(mark, texts.get(file, "")) for file in own):
            continue
        hits = {file for file, targets in graph.items() if own & set(targets)}
        if spelling:
            hits |= {file for file, text in texts.items() if f'"{spelling(path.stem)}"' in text}
        yield path.stem, sorted(hits - own)


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    failed = False

    for problem in wrong_floors(root):
        failed = True
        print(f"floor: {problem}")

    trees = []
    for crate in sorted(p.parent for p in root.glob("crates/*/Cargo.toml")):
        src = crate / "src"
        for top in [src / "lib.rs", src / "main.rs", *sorted(src.glob("bin/*.rs"))]:
            if top.exists():
                tree = read_module("crate", None, top, blank_comments(top.read_text(), strings=False), src)
                trees.append((src, tree))
                if top.name == "lib.rs":
                    CRATES[crate.name.replace("-", "_")] = tree

    for src, tree in trees:
        graph = graph_of([tree])
        for component in sorted(circles(graph), key=len, reverse=True):
            failed = True
            print(f"circle of {len(component)} files in {src.parent.name}:")
            for file in sorted(component):
                for target in sorted(component & set(graph[file])):
                    names = ", ".join(sorted(graph[file][target]))
                    print(f"  {file.relative_to(src)} -> {target.relative_to(src)}: {names}")

    graph = graph_of([tree for _, tree in trees], listed=True)
    files = {module.file for _, tree in trees for module in tree.all()}
    texts = {file: without_tests(blank_comments(file.read_text(), strings=True))[0] for file in files}
    print("files outside its own that name an addition (1: the registry alone):")
    for kind in KINDS:
        counted = list(places(root, kind, graph, texts))
        if not counted:
            print(f"  {kind:<13} none in {KINDS[kind][0]}")
            continue
        numbers = sorted(len(hits) for _, hits in counted)
        print(f"  {kind:<13} median {numbers[len(numbers) // 2]}, most {numbers[-1]}, of {len(numbers)}")
        for name, hits in counted:
            if len(hits) > 1:
                listed = ", ".join(str(file.relative_to(root / "crates")) for file in hits)
                print(f"    {name}: {len(hits)}: {listed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
