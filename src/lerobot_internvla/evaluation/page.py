"""A page of headings, sentences, tables and pictures, as Markdown with files beside it and as one HTML file.

The HTML is self-contained: pictures are inside, styles too, nothing is fetched when it is opened. Text is escaped, so a
dataset's task or a file's name cannot become markup.
"""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Sentences:
    """Paragraphs, or the items of a list."""

    texts: Sequence[str]
    as_list: bool = False


@dataclass(frozen=True)
class TableBlock:
    """Numbers are given as text; every column but the first is set flush right."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    """(row, column) of cells to set in bold."""


@dataclass(frozen=True)
class Picture:
    name: str
    """Of its file beside the Markdown."""
    png: bytes
    caption: str


Block = Heading | Sentences | TableBlock | Picture


@dataclass(frozen=True)
class Page:
    """One report."""

    title: str
    blocks: Sequence[Block]

    @property
    def pictures(self) -> list[Picture]:
        return [block for block in self.blocks if isinstance(block, Picture)]

    def to_markdown(self) -> str:
        """With links to the pictures' files."""
        parts = [f"# {_plain(self.title)}"]
        for block in self.blocks:
            match block:
                case Heading():
                    parts.append(f"## {_plain(block.text)}")
                case Sentences():
                    if block.as_list:
                        parts.append("\n".join(f"- {_plain(text)}" for text in block.texts))
                    else:
                        parts += [_plain(text) for text in block.texts]
                case TableBlock():
                    parts.append(_markdown_table(block))
                case Picture():
                    parts.append(f"![{_plain(block.caption)}]({block.name})\n\n*{_plain(block.caption)}*")
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """With the pictures inside."""
        title = html.escape(self.title).replace("{", "&#123;")
        body = "\n".join([f"<h1>{title}</h1>", *(_html(block) for block in self.blocks)])
        return _TEMPLATE.replace("{title}", title).replace("{body}", body)


def _plain(text: str) -> str:
    r"""Characters that Markdown would read as markup, escaped; "snake_case" stays readable."""
    text = " ".join(text.split())
    return re.sub(r"([\\`*<>|\[\]#]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _markdown_table(table: TableBlock) -> str:
    rows = [
        [f"**{_plain(cell)}**" if (i, j) in table.best else _plain(cell) for j, cell in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    rule = ["---", *["---:"] * (len(table.headings) - 1)]
    lines = [[_plain(heading) for heading in table.headings], rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h2>{html.escape(block.text)}</h2>"
        case Sentences():
            if block.as_list:
                return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in block.texts) + "</ul>"
            return "\n".join(f"<p>{html.escape(text)}</p>" for text in block.texts)
        case TableBlock():
            head = "".join(f"<th>{html.escape(heading)}</th>" for heading in block.headings)
            body = "".join(
                "<tr>"
                + "".join(
                    f"<td{' class=best' * ((i, j) in block.best)}>{html.escape(cell)}</td>"
                    for j, cell in enumerate(row)
                )
                + "</tr>"
                for i, row in enumerate(block.rows)
            )
            return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        case Picture():
            data = base64.b64encode(block.png).decode()
            caption = html.escape(block.caption)
            return (
                f'<figure><img src="data:image/png;base64,{data}" alt="{caption}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1b1f24; background: #fff; max-width: 1080px;
       margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin-bottom: .3rem; }
h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #c9d1d9; padding-bottom: .2rem; }
p, ul { max-width: 52rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #eceff2; white-space: nowrap; }
th { color: #66707b; font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
td.best { font-weight: 700; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
figcaption { color: #66707b; font-size: .9rem; }
</style>
</head>
<body>
{body}
</body>
</html>
"""
