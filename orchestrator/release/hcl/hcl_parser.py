"""Parses HCL files.

The grammar is tree-sitter's (an extra, see docs/dependencies.md); its tree is turned into the values of ``hcl_syntax``.
Source: HCL native syntax specification, https://github.com/hashicorp/hcl/blob/main/hclsyntax/spec.md.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Final

from orchestrator.release.hcl import hcl_templates
from orchestrator.release.hcl.hcl_syntax import (
    DEPTH_LIMIT,
    REMEDY,
    AttributeExpression,
    BinaryExpression,
    CallExpression,
    ConditionalExpression,
    Expression,
    FilePlace,
    ForExpression,
    HclBlock,
    HclBody,
    IndexExpression,
    LiteralExpression,
    ObjectExpression,
    SplatExpression,
    TupleExpression,
    UnaryExpression,
    VariableExpression,
)
from orchestrator.release.hcl.hcl_templates import TemplateDirective, TemplateInterpolation, TemplatePart, TemplateText
from orchestrator.release.hcl.hcl_values import ValueRefused, parse_number
from orchestrator.yaml_settings import SettingsSource
from platforms.errors import EnvironmentUnfit, UsageError, printable

if TYPE_CHECKING:
    from tree_sitter import Node

_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}
_ESCAPE: Final = re.compile(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)|\$\$\{|%%\{|(\n)", re.DOTALL)
_DOUBLED: Final = re.compile(r"\$\$\{|%%\{")
_TEMPLATE_NODES: Final = frozenset(
    (
        "template_interpolation",
        "template_if_intro",
        "template_else_intro",
        "template_if_end",
        "template_for_start",
        "template_for_end",
    )
)


def parse(data: bytes, file: str) -> HclBody:
    """Return what the HCL file ``file`` has. Raises ``UsageError``; ``EnvironmentUnfit`` without the grammar."""
    text = _decoded(data, file)
    reader = _Reader(text, file)
    root = _tree(data)
    reader.refuse_faults(root)
    bodies = [each for each in root.named_children if each.type == "body"]
    return reader.body(bodies[0] if bodies else root)


def parse_template(text: str, place: FilePlace) -> Expression:
    """Return the template that ``text`` is, of a string in a JSON file. Errors have the place of the string."""
    if "${" not in text and "%{" not in text:
        return LiteralExpression(place, text)
    quoted = f'x = "{_quoted(text)}"\n'
    reader = _Reader(quoted, place.source.file, place)
    root = _tree(quoted.encode())
    reader.refuse_faults(root)
    found = reader.body(next(each for each in root.named_children if each.type == "body"))
    return found.attributes["x"]


def _quoted(text: str) -> str:
    """Return ``text`` with what stands outside of interpolations escaped as in a quoted template."""
    parts: list[str] = []
    depth, quoted, at = 0, False, 0
    while at < len(text):
        two = text[at : at + 2]
        if depth == 0:
            if two in ("${", "%{") and text[at - 1 : at] != two[0]:
                depth, at = 1, at + 2
                parts.append(two)
                continue
            parts.append(json.dumps(text[at], ensure_ascii=False)[1:-1] if ord(text[at]) >= 32 else _escaped(text[at]))
        else:
            character = text[at]
            parts.append(character)
            if character == "\\" and quoted:
                at += 1
                parts.append(text[at : at + 1])
            elif character == '"':
                quoted = not quoted
            elif not quoted:
                depth += {"{": 1, "}": -1}.get(character, 0)
        at += 1
    return "".join(parts)


def _escaped(character: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character, f"\\u{ord(character):04x}")


def _decoded(data: bytes, file: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not HCL", why="it is not UTF-8") from error


def _tree(data: bytes) -> Node:
    try:
        import tree_sitter
        import tree_sitter_hcl
    except ImportError as error:
        raise EnvironmentUnfit("cannot read HCL", why="a library for it is not installed", remedy=REMEDY) from error
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_hcl.language()))
    return parser.parse(data).root_node


class _Reader:
    """Turns the nodes of one syntax tree into values."""

    def __init__(self, text: str, file: str, within: FilePlace | None = None) -> None:
        self._data = text.encode()
        self._lines = self._data.split(b"\n")
        self._source = SettingsSource(file, tuple(text.splitlines()))
        self._within = within
        self._depth = 0

    def place(self, node: Node) -> FilePlace:
        """Return where ``node`` begins."""
        if self._within is not None:
            return self._within
        row, offset = node.start_point
        return FilePlace(self._source, row + 1, len(self._lines[row][:offset].decode(errors="replace")) + 1)

    def text(self, node: Node) -> str:
        """Return the text of ``node``."""
        return self._data[node.start_byte : node.end_byte].decode()

    def refuse_faults(self, root: Node) -> None:
        """Raise ``UsageError`` for the first place that the grammar does not explain, and for deep nesting."""
        cursor, depth = root.walk(), 0
        while True:
            node = cursor.node
            assert node is not None
            if node.is_error or node.is_missing:
                raise self._fault(node)
            if depth > 12 * DEPTH_LIMIT:
                raise self.place(node).refusal("it is nested too deeply")
            if cursor.goto_first_child():
                depth += 1
                continue
            while not cursor.goto_next_sibling():
                if not cursor.goto_parent():
                    return
                depth -= 1

    def _fault(self, node: Node) -> UsageError:
        if node.is_missing:
            return self.place(node).refusal("it is not HCL", why=f"{node.type.replace('_', ' ')} is missing")
        # An error reaches over all that could not be understood: what comes last in it is the nearest to the fault.
        inner = next((each for each in node.children if each.is_error), None)
        fault = inner or node
        while fault.end_point[0] > fault.start_point[0] and fault.children:
            fault = fault.children[-1]
        found = printable(self.text(fault), 40)
        return self.place(fault).refusal("it is not HCL", why=f"this is not expected: {found}" if found else "")

    def body(self, node: Node) -> HclBody:
        """Return the attributes and blocks below ``node``."""
        attributes: dict[str, Expression] = {}
        names: dict[str, FilePlace] = {}
        blocks: list[HclBlock] = []
        last = -1
        for each in node.named_children:
            if each.type not in ("attribute", "block"):
                continue
            place = self.place(each)
            if each.start_point[0] == last:
                raise place.refusal("it is not HCL", why="a new line is expected before this")
            last = each.end_point[0] if each.end_point[1] else each.end_point[0] - 1
            if each.type == "block":
                blocks.append(self._block(each))
                continue
            name_node, value = _named(each)
            name = self.text(name_node)
            if name in attributes:
                raise place.refusal(f'"{printable(name)}" is set twice', why=f"it is set in line {names[name].line}")
            attributes[name], names[name] = self.expression(value), place
        return HclBody(self.place(node), attributes, names, tuple(blocks))

    def _block(self, node: Node) -> HclBlock:
        kind, *rest = _named(node)
        labels = [each for each in rest if each.type in ("string_lit", "identifier")]
        bodies = [each for each in rest if each.type == "body"]
        place = self.place(node)
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise place.refusal("it is nested too deeply")
        body = self.body(bodies[0]) if bodies else HclBody(place, {}, {}, ())
        self._depth -= 1
        return HclBlock(place, self.text(kind), tuple(map(self._label, labels)), body)

    def _label(self, node: Node) -> str:
        return self._literal(node) if node.type == "string_lit" else self.text(node)

    def expression(self, node: Node) -> Expression:
        """Return the expression that ``node`` is."""
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise self.place(node).refusal("it is nested too deeply")
        children = [each for each in node.children if each.type != "comment"]
        found = self._terms(children, self.place(node))
        self._depth -= 1
        return found

    def _terms(self, nodes: list[Node], place: FilePlace) -> Expression:
        """Return the expression of a term and what is applied to it."""
        if nodes and nodes[0].type == "(":
            found, rest = self.expression(nodes[1]), nodes[3:]
        else:
            found, rest = self._term(nodes[0]), nodes[1:]
        for each in rest:
            found = self._applied(found, each, place)
        return found

    def _applied(self, of: Expression, node: Node, place: FilePlace) -> Expression:
        """Return the expression with one attribute, index or splat after it."""
        if node.type == "get_attr":
            return AttributeExpression(place, of, self.text(_named(node)[0]))
        if node.type == "index":
            inner = _named(node)[0]
            if inner.type == "legacy_index":
                return IndexExpression(
                    place, of, LiteralExpression(self.place(inner), int(self.text(inner).lstrip(". ")))
                )
            return IndexExpression(place, of, self.expression(_named(inner)[0]))
        if node.type != "splat":
            raise self.place(node).refusal(
                "it is not HCL", why=f"this is not expected: {printable(self.text(node), 40)}"
            )
        inner = _named(node)[0]
        steps = _named(inner)
        within = len(steps)
        if inner.type == "attr_splat":  # an index in brackets ends it: it is applied to the result
            within = next((at for at, each in enumerate(steps) if _brackets(each)), within)
        each: Expression = VariableExpression(place, "*")
        for step in steps[:within]:
            each = self._applied(each, step, place)
        found: Expression = SplatExpression(place, of, each)
        for step in steps[within:]:
            found = self._applied(found, step, place)
        return found

    def _term(self, node: Node) -> Expression:
        place = self.place(node)
        match node.type:
            case "literal_value":
                return self._scalar(_named(node)[0])
            case "template_expr":
                return self._template_expression(_named(node)[0])
            case "variable_expr":
                return VariableExpression(place, self.text(_named(node)[0]))
            case "function_call":
                return self._call(node)
            case "collection_value":
                return self._collection(_named(node)[0])
            case "for_expr":
                return self._for(_named(node)[0])
            case "operation":
                return self._operation(_named(node)[0])
            case "conditional":
                return self._conditional(node)
            case "expression":
                return self.expression(node)
        raise place.refusal("it is not HCL", why=f"this is not expected: {printable(self.text(node), 40)}")

    def _conditional(self, node: Node) -> ConditionalExpression:
        """Return a conditional. The grammar groups a chain of them from the left, the language from the right."""
        branches: list[tuple[Node, Node]] = []
        condition: Node | None = node
        while condition is not None:
            first, yes, no = _named(condition)
            branches.append((yes, no))
            inner = [each for each in first.children if each.type != "comment"]
            condition = inner[0] if len(inner) == 1 and inner[0].type == "conditional" else None
        conditions = [first, *(no for _, no in reversed(branches[1:]))]
        found = self.expression(branches[0][1])
        for (yes, _), each in zip(branches, reversed(conditions), strict=True):
            found = ConditionalExpression(self.place(each), self.expression(each), self.expression(yes), found)
        assert isinstance(found, ConditionalExpression)
        return found

    def _scalar(self, node: Node) -> Expression:
        place, text = self.place(node), self.text(node)
        if node.type == "string_lit":
            return LiteralExpression(place, self._literal(node))
        if node.type == "numeric_lit":
            try:
                return LiteralExpression(place, parse_number(text))
            except ValueRefused as error:
                raise place.refusal("it is not a number", why=str(error)) from error
        return LiteralExpression(place, {"true": True, "false": False}.get(text))

    def _literal(self, node: Node) -> str:
        return self._unescaped(self._data[node.start_byte + 1 : node.end_byte - 1].decode(), self.place(node))

    def _unescaped(self, text: str, place: FilePlace) -> str:
        def replace(match: re.Match[str]) -> str:
            if match[2]:
                raise place.refusal("it is not HCL", why="a quoted text does not reach over lines", remedy="use \\n")
            if match[1] is None:
                return match[0][1:]
            if match[1] in _ESCAPES:
                return _ESCAPES[match[1]]
            code = int(match[1][1:], 16) if match[1][0] in "uU" and len(match[1]) > 1 else 0x110000
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise place.refusal("it is not HCL", why=f"no such escape sequence: {printable(match[0])}")
            return chr(code)

        return unicodedata.normalize("NFC", _ESCAPE.sub(replace, text))

    def _call(self, node: Node) -> CallExpression:
        name, *rest = _named(node)
        arguments = [each for one in rest if one.type == "function_arguments" for each in _named(one)]
        expressions = tuple(self.expression(each) for each in arguments if each.type == "expression")
        expand = any(each.type == "ellipsis" for each in arguments)
        return CallExpression(self.place(node), self.text(name), expressions, expand)

    def _collection(self, node: Node) -> Expression:
        place, children = self.place(node), _named(node)
        if node.type == "tuple":
            return TupleExpression(
                place, tuple(self.expression(each) for each in children if each.type == "expression")
            )
        pairs = (_named(each) for each in children if each.type == "object_elem")
        return ObjectExpression(place, tuple((self._key(key), self.expression(value)) for key, value in pairs))

    def _key(self, node: Node) -> Expression:
        """Return the key of an entry of an object: a name stands for itself, unless it is in parentheses."""
        children = [each for each in node.children if each.type != "comment"]
        if len(children) == 1 and children[0].type == "variable_expr":
            return LiteralExpression(self.place(node), self.text(node))
        if len(children) > 1 and children[0].type == "variable_expr":
            raise self.place(node).refusal("the key is ambiguous", remedy="put it in parentheses or in quotes")
        return self.expression(node)

    def _for(self, node: Node) -> ForExpression:
        children = _named(node)
        intro = next(each for each in children if each.type == "for_intro")
        *names, collection = _named(intro)
        results = [self.expression(each) for each in children if each.type == "expression"]
        condition = next((each for each in children if each.type == "for_cond"), None)
        return ForExpression(
            self.place(node),
            self.text(names[0]) if len(names) > 1 else "",
            self.text(names[-1]),
            self.expression(collection),
            results[0] if node.type == "for_object_expr" else None,
            results[-1],
            self.expression(_named(condition)[0]) if condition else None,
            any(each.type == "ellipsis" for each in children),
        )

    def _operation(self, node: Node) -> Expression:
        place = self.place(node)
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise place.refusal("it is nested too deeply")
        children = [each for each in node.children if each.type != "comment"]
        if node.type == "unary_operation":
            operand = self._terms(children[1:], self.place(children[1]))
            found: Expression = UnaryExpression(place, self.text(children[0]), operand)
        else:
            at = next(at for at, each in enumerate(children) if not each.is_named and each.type not in ("(", ")"))
            left = self._terms(children[:at], place)
            right = self._terms(children[at + 1 :], self.place(children[at + 1]))
            found = BinaryExpression(place, self.text(children[at]), left, right)
        self._depth -= 1
        return found

    def _template_expression(self, node: Node) -> Expression:
        place = self.place(node)
        if node.type == "quoted_template":
            begin, end, children = node.start_byte + 1, node.end_byte - 1, _named(node)
            parts = self._parts(_template_nodes(children), begin, end, by_line=False)
            if len(parts) == 1 and isinstance(parts[0], TemplateInterpolation):
                return parts[0].expression  # it keeps the type of its value
            return hcl_templates.template(parts, place)
        start, name, *children = _named(node)
        closing = children[-1]
        begin = self._data.index(b"\n", name.end_byte) + 1
        end = self._data.rindex(b"\n", begin - 1, closing.start_byte) + 1
        parts = self._parts(_template_nodes(children[:-1]), begin, max(begin, end), by_line=True)
        return hcl_templates.template(hcl_templates.flushed(parts) if self.text(start) == "<<-" else parts, place)

    def _parts(self, nodes: list[Node], begin: int, end: int, *, by_line: bool) -> list[TemplatePart]:
        """Return the parts of a template between two offsets, with white space removed where markers say so."""
        found: list[TemplatePart] = []
        trim = False
        for node in [*nodes, None]:
            upto = node.start_byte if node is not None else end
            # In a heredoc every line is a literal of its own, and a marker concerns the next one only.
            text = self._data[begin:upto].decode()
            for line in text.splitlines(keepends=True) if by_line else [text] if text else []:
                here = self.place(node) if node is not None else self._end_place(begin)
                plain = self._plain(line, here, by_line=by_line)
                found.append(TemplateText(plain.lstrip() if trim else plain, here))
                trim = False
            if node is None:
                break
            markers = [each for each in node.children if each.type == "strip_marker"]
            first, last = _marked(node, markers)
            if first and found and isinstance(found[-1], TemplateText):
                found[-1] = TemplateText(found[-1].text.rstrip(), found[-1].place)
            trim, begin = last, node.end_byte
            found.append(self._part(node))
        return found

    def _end_place(self, offset: int) -> FilePlace:
        if self._within is not None:
            return self._within
        before = self._data[:offset]
        line = before.count(b"\n") + 1
        return FilePlace(self._source, line, len(before[before.rfind(b"\n") + 1 :].decode(errors="replace")) + 1)

    def _plain(self, text: str, place: FilePlace, *, by_line: bool) -> str:
        if by_line:
            return unicodedata.normalize("NFC", _DOUBLED.sub(lambda match: match[0][1:], text))
        return self._unescaped(text, place)

    def _part(self, node: Node) -> TemplatePart:
        place = self.place(node)
        children = _named(node)
        expressions = [each for each in children if each.type == "expression"]
        match node.type:
            case "template_interpolation":
                return TemplateInterpolation(place, self.expression(expressions[0]))
            case "template_if_intro":
                return TemplateDirective(place, "if", condition=self.expression(expressions[0]))
            case "template_for_start":
                names = tuple(self.text(each) for each in children if each.type == "identifier")
                return TemplateDirective(place, "for", condition=self.expression(expressions[0]), names=names)
            case "template_else_intro":
                return TemplateDirective(place, "else")
            case "template_if_end":
                return TemplateDirective(place, "endif")
        return TemplateDirective(place, "endfor")


def _named(node: Node) -> list[Node]:
    return [each for each in node.named_children if each.type != "comment"]


def _brackets(node: Node) -> bool:
    return node.type == "index" and any(each.type == "new_index" for each in node.named_children)


def _template_nodes(nodes: list[Node]) -> list[Node]:
    """Return the interpolations and directives of a template in the order of the text, one level deep."""
    found: list[Node] = []
    waiting = list(reversed(nodes))
    while waiting:
        node = waiting.pop()
        if node.type in ("template_directive", "template_if", "template_for"):
            waiting += reversed(node.named_children)
        elif node.type in _TEMPLATE_NODES:
            found.append(node)
    return found


def _marked(node: Node, markers: list[Node]) -> tuple[bool, bool]:
    """Return whether white space before and after ``node`` is to be removed."""
    middle = (node.start_byte + node.end_byte) / 2
    first = any(each.start_byte <= node.start_byte + 2 for each in markers)
    last = any(each.end_byte >= node.end_byte - 1 and each.start_byte > middle for each in markers)
    return first, last
