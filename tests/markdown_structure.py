"""What a reader of Markdown makes of a text besides its words."""

from markdown_it import MarkdownIt


def structure(text: str) -> list[tuple]:
    """Blocks, and inside them markup, code, HTML and addresses, in their order; words are left out."""
    parser = MarkdownIt("commonmark", {"html": True})
    found: list[tuple] = []
    for token in parser.enable(["table", "strikethrough"]).parse(text):
        if token.type == "inline":
            inner = [child for child in token.children if child.type not in ("text", "text_special")]
            found += [(child.type, tuple(child.attrs.values()), child.content) for child in inner]
        else:
            found.append((token.type, token.tag, token.content))
    return found
