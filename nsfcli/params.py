"""params.yaml -> typed sections (`nsfcli.sections`); options given on the command line win."""

import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from nsfcli.sections import SECTIONS, TAGS, DistributedSection, Section
from stages.errors import BadParameter, MissingFile

STANDARD_PATH = Path("params.yaml")

# ------------------------------------------------------------------------------------------------ options of a command

Command = TypeVar("Command", bound=Callable[..., Any])


def option_name(section: str, key: str, command: str) -> str:
    """The option of a parameter: `--steps` in its own command, `--data-root` for what several commands share."""
    prefix = "" if section == command else f"{section}-"
    return f"--{prefix}{key}".replace("_", "-")


def options(*sections: str) -> Callable[[Command], Command]:
    """Give a command one option for each parameter of these sections; their values arrive as keyword arguments.

    All of them are strings here: `load` reads each as its parameter wants it, and checks it like params.yaml itself.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        given = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        for section in sections:
            fields = {key: field for kind in SECTIONS[section] for key, field in kind.model_fields.items()}
            for key, field in fields.items():
                option = typer.Option(
                    option_name(section, key, command.__name__),
                    # Rich takes square brackets for markup.
                    help=(field.description or "").replace("[", "\\["),
                    metavar=_metavar(section, key),
                    rich_help_panel=f"Parameters (default: section {section} of params.yaml)",
                    show_default=False,
                )
                given.append(
                    inspect.Parameter(
                        f"{section}__{key}",
                        inspect.Parameter.KEYWORD_ONLY,
                        default=None,
                        annotation=Annotated[str | None, option],
                    )
                )
        command.__signature__ = signature.replace(parameters=given)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in given}
        return command

    return decorate


def _metavar(section: str, key: str) -> str:
    choices = [choice for kind in SECTIONS[section] if key in kind.model_fields
               for choice in get_args(kind.model_fields[key].annotation)]  # fmt: skip
    if choices and all(isinstance(choice, str) for choice in choices):
        return "|".join(dict.fromkeys(choices))
    return "VALUE"


# ------------------------------------------------------------------------------------------------------------- reading


def load(command: str, overrides: Mapping[str, str | None], path: Path | None = None) -> dict[str, Section]:
    """The sections that a command uses, from params.yaml and the options given beside it.

    Args:
        command: the subcommand, for the options' names.
        overrides: "section__key" -> the option's value, None where it was not given; which sections the command uses is
            read off their names.
        path: the file; by default params.yaml in the current folder where there is one.

    Raises:
        MissingFile: `path` was named and is not there.
        BadParameter: bad YAML, an unknown section or key, a wrong type or range, a missing key.
    """
    content = _read_yaml(path)
    where = str(path or STANDARD_PATH)
    for name in content:
        if name not in SECTIONS:
            raise BadParameter(f"unknown section '{name}'", where=where, do=_nearest(str(name), SECTIONS, "sections"))
    given: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        owner, key = name.split("__")
        if value is not None:
            given.setdefault(owner, {})[key] = value
    used = [command, *dict.fromkeys(name.split("__")[0] for name in overrides)]
    # Every section of the file is checked, so that a typo is not found only when the pipeline comes to its stage; only
    # those that the command uses need be there.
    sections: dict[str, Section] = {}
    for name in SECTIONS:
        if name in content or name in given or name in used:
            sections[name] = _section(name, content.get(name), given.get(name, {}), where, command)
    return sections


def launch(path: Path | None = None) -> str | None:
    """What starts the processes of a stage, from `distributed.launch` of params.yaml; None for one process.

    Raises:
        MissingFile, BadParameter: as `load`.
    """
    section = _section("distributed", _read_yaml(path).get("distributed"), {}, str(path or STANDARD_PATH), "distributed")
    assert isinstance(section, DistributedSection)
    return section.launch


def check(content: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Section]:
    """Every section that can be made of this content, with its defaults; data is left out where it has none.

    Raises:
        BadParameter: as `load`.
    """
    names = [name for name in SECTIONS if name in content or TAGS.get(name, ("", "a default"))[1] is not None]
    return {name: _section(name, dict(content.get(name, {})), {}, where, name) for name in names}


def _section(name: str, content: Any, given: Mapping[str, str], where: str, command: str) -> Section:
    if content is not None and not isinstance(content, dict):
        raise BadParameter(f"section '{name}' is {content!r}", where=where, do="indent its keys below it")
    merged = {**(content or {}), **given}
    for key in merged:
        if not isinstance(key, str):
            raise BadParameter(f"key {key!r} of section '{name}' is no text", where=where, do="put it in quotes")
    kinds = SECTIONS[name]
    kind = kinds[0]
    if len(kinds) > 1:
        tag_key, default = TAGS[name]
        tags = {get_args(each.model_fields[tag_key].annotation)[0]: each for each in kinds}
        tag = merged.get(tag_key, default)
        if tag is None:
            options = f"{option_name(name, tag_key, command)} or {name}.{tag_key}"
            raise BadParameter(f"no {name} is named: section '{name}' lacks '{tag_key}'", where=where,
                               do=f"set {options} to {', '.join(tags)}")  # fmt: skip
        if not isinstance(tag, str) or tag not in tags:
            source = option_name(name, tag_key, command) if tag_key in given else where
            raise BadParameter(f"{name}.{tag_key} is {tag!r}", where=source, do=_nearest(str(tag), tags, f"{tag_key}s"))
        kind = tags[tag]
    merged |= {key: _value(text, kind.model_fields[key]) for key, text in given.items() if key in kind.model_fields}
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise _sentence(error, name, kind, given, where, command) from error


def _sentence(
    error: ValidationError, section: str, kind: type[Section], given: Mapping[str, Any], where: str, command: str
) -> BadParameter:
    """The first of pydantic's complaints, with the key, where it was given, and what is allowed."""
    first = error.errors()[0]
    key = str(first["loc"][0])
    place = f"option {option_name(section, key, command)}" if key in given else where
    if first["type"] == "extra_forbidden":
        return BadParameter(f"unknown key '{section}.{key}'", where=place, do=_nearest(key, kind.model_fields, "keys"))
    if first["type"] == "missing":
        do = f"set it there or with {option_name(section, key, command)}"
        return BadParameter(f"lacks '{section}.{key}' ({kind.model_fields[key].description})", where=where, do=do)
    value = first["input"]
    if first["loc"][-1] == "[key]":
        return BadParameter(f"key {value!r} of {section}.{key} is no text", where=place, do="put it in quotes")
    allowed = _allowed(kind.model_json_schema()["properties"][key])
    near = get_close_matches(str(value), [str(choice) for choice in _choices(kind, key)], n=1)
    hint = f"; did you mean {near[0]}?" if near and near[0] != str(value) else ""
    return BadParameter(f"{section}.{key} is {value!r}, and allowed is {allowed}{hint}", where=place)


def _choices(kind: type[Section], key: str) -> list[Any]:
    schema = kind.model_json_schema()["properties"][key]
    parts = [schema, *schema.get("anyOf", []), schema.get("items", {})]
    return [choice for part in parts for choice in [*part.get("enum", []), *([part["const"]] if "const" in part else [])]]


def _allowed(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(_allowed(part) for part in schema["anyOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return " or ".join(str(choice) for choice in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        least, most = schema.get("minItems"), schema.get("maxItems")
        count = f" of {least}" if least is not None and least == most else f" of at least {least}" if least else ""
        return f"a list{count} (each {_allowed(schema['items'])})"
    names = {
        "object": "a map of keys to values",
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "null": "null",
        "boolean": "true or false",
    }
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    ranges = [f"{word} {schema[limit]}" for limit, word in limits.items() if limit in schema]
    named = "non-empty text" if schema.get("minLength") else names.get(str(kind), str(kind))
    return " ".join([named, *([" and ".join(ranges)] if ranges else [])])


def _nearest(name: str, known: Mapping[str, Any], what: str) -> str:
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known {what}: {', '.join(known) or 'none'}"


def check_named(path: Path | None) -> None:
    """Refuse a parameters' file that was named and is not there.

    Raises:
        MissingFile, BadParameter: it is not there, or its folder may not be looked into.
    """
    try:
        there = path is None or path.exists()
    except OSError as error:
        raise BadParameter(f"cannot be read ({error.strerror})", where=path) from error
    if not there:
        raise MissingFile("there is no such file", where=path, do="check --params")


def _read_yaml(path: Path | None) -> dict[str, Any]:
    """The file's content; empty where no file was named and there is no params.yaml."""
    chosen = path or STANDARD_PATH
    try:
        # A link that leads nowhere is not the same as no file.
        if path is None and not os.path.lexists(chosen):
            return {}
        check_named(path)
        if chosen.is_fifo():
            # The processes of `distributed.launch` read it, too.
            raise BadParameter("is a pipe, and can be read only once", where=chosen, do="name a file")
        content = _yaml().load(chosen.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadParameter(f"cannot be read ({error.strerror})", where=chosen) from error
    except UnicodeDecodeError as error:
        raise BadParameter("is no text in UTF-8", where=chosen, do="save it as UTF-8") from error
    except _yaml_error() as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        # Of a key given twice it would show both values, as Python objects.
        problem = str(getattr(error, "problem", error)).partition(" with value ")[0]
        raise BadParameter(f"is not valid YAML{line} ({problem})", where=chosen) from error
    except RecursionError as error:
        raise BadParameter("is no YAML that can be read (nested too deeply)", where=chosen) from error
    except ValueError as error:  # what looks like a date, and is none
        raise BadParameter(f"is not valid YAML ({error})", where=chosen, do="put dates and the like in quotes") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise BadParameter("holds no sections", where=chosen, do=f"give sections such as {', '.join(SECTIONS)}")
    return content


def _value(text: str, field: FieldInfo) -> Any:
    """An option's value: the first reading of the text that its parameter allows, YAML's where it allows none of them.

    Text is taken as it stands where text will do (a folder "2024", a column "#1"), and as in params.yaml elsewhere; what
    can only be a list may be words with commas between them.
    """
    if not text:
        # Nothing is no value; YAML would make it null.
        return text
    yaml = _scalar(text)
    words = [word.strip() for word in text.split(",")]
    readings = [text, yaml, words, [_scalar(word) for word in words]]
    if text == "null":
        readings = [None, text]
    elif text.startswith("["):
        readings = [yaml, text]
    adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation(), config=ConfigDict(strict=True))
    for reading in readings:
        with suppress(ValidationError):
            adapter.validate_python(reading)
            return reading
    # Of a list, what is said is which of its words is wrong.
    return words if isinstance(yaml, str) and adapter.json_schema().get("type") == "array" else yaml


def _scalar(text: str) -> Any:
    """What the text would be in params.yaml."""
    try:
        return _yaml().load(text)
    except (_yaml_error(), RecursionError, ValueError):
        return text


def _yaml() -> Any:
    # ruamel, as DVC: YAML 1.2, where 1e-3 is a number (PyYAML's 1.1 reads text) and a key given twice is an error.
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True)


def _yaml_error() -> type[Exception]:
    from ruamel.yaml.error import YAMLError

    error: type[Exception] = YAMLError
    return error
