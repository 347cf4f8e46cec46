"""A working folder, as `nsf init` sets it up: params.yaml, dvc.yaml and what each watches, .gitignore and .dvc."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import suppress
from pathlib import Path
from typing import Any

from nsfcli import params
from nsfcli.command import HEAD, TEST, VAL
from nsfcli.sections import SECTIONS
from stages.errors import CannotWrite, MissingFile, UserError

# Where the comments of params.yaml begin.
COMMENT_COLUMN = 34


def seen_from(folder: Path, path: Path | str) -> Path:
    """A path as seen from a folder that may not be there yet, absolute."""
    return Path(os.path.normpath((folder / path).absolute()))


def params_yaml(sections: Mapping[str, Mapping[str, Any]], trains: bool) -> str:
    """params.yaml: every parameter with its value, and in a comment what it is."""
    from io import StringIO

    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    checked = params.check(sections, where="init")
    used = [name for name in SECTIONS if name in sections or name not in ("data", "model", "train", "extract")]
    if "data" in sections:
        used = [name for name in SECTIONS if name != "train" or trains]
    document = CommentedMap()
    for name in used:
        section = checked[name]
        document[name] = CommentedMap()
        for key, field in type(section).model_fields.items():
            value = getattr(section, key)
            if isinstance(value, list):
                value = CommentedSeq(value)
                value.fa.set_flow_style()
            document[name][key] = value
            # Above a list: DVC writes lists anew, line by line, and would take what stands behind one for its end.
            if isinstance(value, CommentedSeq):
                document[name].yaml_set_comment_before_after_key(key, before=field.description, indent=2)
            else:
                document[name].yaml_add_eol_comment(field.description or "", key, column=COMMENT_COLUMN)
        document.yaml_set_comment_before_after_key(name, before=f"\n{(type(section).__doc__ or '').strip()}")
    yaml, text = YAML(), StringIO()
    yaml.width = 10_000
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    yaml.dump(document, text)
    return f"# Written by `nsf init`; in a git repository, `dvc params diff` shows what you change.\n{text.getvalue()}"


def dvc_yaml(
    folder: Path,
    sections: Mapping[str, Mapping[str, Any]],
    *,
    watched: Sequence[str],
    code: Sequence[str],
    trains: bool,
    features: Path | None,
    test_features: Path | None,
    train_features: Path | None,
    head: Path | None,
) -> str:
    """dvc.yaml: the stages, and what each of them depends on."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from stages.outputs import named_in

    own = features is not None
    for path in (features, test_features, train_features if own else None, head):
        if path is not None and not seen_from(folder, path).is_file():
            found = "is a folder" if seen_from(folder, path).is_dir() else "is not there"
            raise MissingFile(found, where=folder / path, do="name a file, as seen from the folder to set up")
    environment = Environment(
        loader=PackageLoader("nsfcli"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["yaml"] = _scalar
    model = sections.get("model", {})
    weights = [str(path) for path in named_in(model) if seen_from(folder, path).exists()]
    return environment.get_template("dvc.yaml.j2").render(
        data=None if own else watched,
        train=trains,
        weights=weights,
        code=code,
        val=_files_of(folder, features) if own else [str(VAL)],
        test=_files_of(folder, test_features) if own else [str(TEST)],
        seen=_files_of(folder, train_features),
        head=str(head or "") if own else str(HEAD),
        flags={
            "val": f" --features {shlex.quote(str(features))}" if own else "",
            "test": f" --features {shlex.quote(str(test_features))}" if own else "",
            "seen": f" --train-features {shlex.quote(str(train_features))}" if train_features else "",
            "head": f" --head {shlex.quote(str(head))}" if own and head else "",
        },
    )


def code(folder: Path, model: Mapping[str, Any]) -> list[str]:
    """The file in this folder of the function that makes the model; none where there is no such function or file."""
    module = str(model.get("function") or "").partition(":")[0].replace(".", "/")
    return [name for name in (f"{module}/__init__.py", f"{module}.py") if module and seen_from(folder, name).is_file()][:1]


def watched(folder: Path, data: Mapping[str, Any]) -> tuple[list[str], str]:
    """The files and folders of the data for DVC to watch, and what is to be said where images are in none of them.

    Never a folder around `folder` itself, where the pipeline writes.
    """
    if not data.get("file"):
        return [str(data["root"])], ""
    table = Path(str(data["file"]))
    tables = sorted(seen_from(folder, table.parent).glob(table.name.replace("{split}", "*")))
    if "{split}" in table.name and seen_from(folder, table.parent) not in _around(folder):
        files = [str(table.parent)]
    else:
        # One file, or one per split.
        files = [str(table.parent / path.name) for path in tables]
    if data.get("text_column"):
        return files, ""
    images, beside = _image_folders(folder, Path(str(data.get("root") or table.parent)), _folder_names(tables, data))
    unwatched = "" if images else "dvc.yaml does not watch the images; add their folder to the deps of "
    if beside:
        places = " and ".join(f"'{path}'" for path in beside)
        unwatched = (
            f"dvc.yaml does not watch the images right in {places}, which holds what the pipeline writes, too; move them "
            "into a folder of their own, and add it to the deps of "
        )
    return list(dict.fromkeys([*files, *images])), unwatched


def _around(folder: Path) -> set[Path]:
    """The folder itself and all that it lies in."""
    work = seen_from(folder, "")
    return {above for path in (work, work.resolve()) for above in (path, *path.parents)}


def _folder_names(tables: Sequence[Path], data: Mapping[str, Any]) -> set[Path]:
    """The folders of the images that these tables name, as they stand there; none of a table that cannot be read."""
    # Here, for it brings in NumPy, and `nsf --help` does without.
    from stages.data.table import ROWS

    column, names = str(data.get("path_column", "path")), set[Path]()
    for table in tables:
        # What is wrong with it, `nsf doctor` says.
        with suppress(UserError):
            rows = ROWS[data["format"]](table, {column: None}).rows
            names |= {Path(name).parent for name in rows[column].str.strip() if name}
    return names


def _image_folders(folder: Path, start: Path, names: set[Path]) -> tuple[list[str], list[str]]:
    """The folders to watch for images in folders of these names, seen from `start`; and those that hold `folder` itself.

    To watch is `start`, or where the pipeline writes in it what lies right in it; and the common folder of images elsewhere.
    """
    work, base, around = seen_from(folder, ""), seen_from(folder, start), _around(folder)
    near, far = set() if names or base in around else {base}, set()
    for name in names:
        place = Path(os.path.normpath(base / name))
        parts = place.relative_to(base).parts if place.is_relative_to(base) else None
        top = base.joinpath(*(parts or ())[: base in around])
        if parts is None or top in around:
            far.add(place)
        else:
            near.add(top)

    def shown(path: Path) -> str:
        if path.is_relative_to(work):
            return str(path.relative_to(work))
        if path.is_relative_to(base):
            return str(start / path.relative_to(base))
        # As the table has it, relative or absolute.
        return str(path) if any(name.is_absolute() for name in names) else os.path.relpath(path, work)

    found = [path for path in [*sorted(near), *_common(far - around, around)] if path == base or path.is_dir()]
    return [shown(path) for path in found], [shown(path) for path in sorted(far & around)]


def _common(places: set[Path], around: set[Path]) -> list[Path]:
    """The folder that holds all of these; where it is one of `around`, the folders in it that hold those with one top."""
    if not places:
        return []
    common = Path(os.path.commonpath(places))
    if common not in around:
        return [common]
    tops: dict[str, set[Path]] = {}
    for place in places:
        tops.setdefault(place.relative_to(common).parts[0], set()).add(place)
    return [path for top in sorted(tops) for path in _common(tops[top], around)]


def _files_of(folder: Path, features: Path | None) -> list[str]:
    """A features file, or an index of features in shards and the files that it names; none where there are no features."""
    from stages.artifacts import INDEX_SUFFIX, shards

    if features is None:
        return []
    parts = shards(seen_from(folder, features)) if features.name.endswith(INDEX_SUFFIX) else None
    return [str(features), *(str(features.with_name(part.name)) for part in parts or ())]


def _scalar(text: str) -> str:
    """A string as it stands in dvc.yaml: plain where nothing in it means anything to YAML, in double quotes elsewhere."""
    # ${...} is DVC's own templating.
    text = text.replace("${", "\\${")
    if re.fullmatch(r"[A-Za-z./_-][\w./ -]*(?<! )", text, flags=re.ASCII) and re.search(r"[./ ]|[a-z]{6}", text):
        return text
    return json.dumps(text, ensure_ascii=False)


def set_up(folder: Path, texts: Mapping[str, str], *, force: bool) -> list[str]:
    """Write these files, and put the folder under version control; returns the names of all that was made.

    Raises:
        CannotWrite: one of the files is there already, unless `force`, or the folder cannot be made or set up.
        UnicodeEncodeError: a path in them is no UTF-8, and could not be found again; nothing is made.
    """
    for name in texts:
        if (folder / name).exists() and not force:
            raise CannotWrite("is there already", where=folder / name, do="use --force to overwrite it, or another folder")
    for text in texts.values():
        text.encode()
    made = _version_control(folder)
    return [*_write(folder, texts), *made]


def _write(folder: Path, texts: Mapping[str, str]) -> list[str]:
    """Write the files, all or none; returns their names."""
    from stages.outputs import outputs

    with outputs() as files:
        for name, text in texts.items():
            files.text(folder / name, text)
    return list(texts)


def _version_control(folder: Path) -> list[str]:
    """Set up DVC (with git or without) and have git ignore the artifacts; returns the names of the files made."""
    made: list[str] = []
    ignore = folder / ".gitignore"
    if not folder.is_dir() and os.path.lexists(folder):
        raise CannotWrite("is no folder", where=folder, do="name another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lines = ignore.read_text(encoding="utf-8").splitlines() if ignore.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise CannotWrite("cannot be read as text", where=ignore, do="mend or remove it") from error
    if (folder / ".dvc").is_file():
        raise CannotWrite("is a file, and DVC keeps a folder of that name", where=folder / ".dvc", do="rename it")
    # DVC tracks the artifacts, and writes what `dvc plots` draws.
    if lacking := [line for line in ("/artifacts/", "/dvc_plots/") if line not in lines]:
        made += _write(folder, {".gitignore": "\n".join([*lines, *lacking]) + "\n"})
    top = _git_top(folder)
    if top is not None and top != folder.resolve() and _ignored(folder):
        # DVC would refuse to keep its own files where git does not see them.
        top = None
    above = [folder.resolve(), *folder.resolve().parents]
    inside = above[: above.index(top) + 1] if top in above else above[:1]
    if any((parent / ".dvc").is_dir() for parent in inside):
        # Set up before there was git.
        if top == folder.resolve() and _without_git(folder):
            _dvc(folder, "config", "--unset", "core.no_scm")
            made.append(".dvc")
        return made
    mode = ["--no-scm"] if top is None else [] if top == folder.resolve() else ["--subdir"]
    _dvc(folder, "init", "--quiet", *mode)
    _dvc(folder, "config", "core.analytics", "false")
    if top is None:
        # As DVC itself where there is git, for the day when there is.
        _write(folder / ".dvc", {".gitignore": "".join(f"/{name}\n" for name in ("config.local", "tmp", "cache"))})
    return [*made, ".dvc"]


def _without_git(folder: Path) -> bool:
    """Whether DVC's settings of this folder say that there is no git to work with."""
    settings = ConfigParser(interpolation=None)
    try:
        settings.read(folder / ".dvc" / "config", encoding="utf-8")
        return settings.getboolean("core", "no_scm", fallback=False)
    except (ConfigParserError, OSError, ValueError):
        return False


def _git_top(folder: Path) -> Path | None:
    """The top folder of the git repository that `folder` lies in."""
    try:
        done = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=folder, capture_output=True, text=True)
    except OSError:
        return None
    return Path(done.stdout.strip()).resolve() if done.returncode == 0 else None


def _ignored(folder: Path) -> bool:
    """Whether the repository around the folder has git ignore it."""
    done = subprocess.run(["git", "check-ignore", "--quiet", "."], cwd=folder, capture_output=True)
    return done.returncode == 0


def _dvc(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        text = " ".join((done.stderr or done.stdout).split()).removeprefix("ERROR: ")
        raise CannotWrite(f"`dvc {arguments[0]}` failed ({text})", where=folder / ".dvc", do="set DVC up by hand: dvc init")
