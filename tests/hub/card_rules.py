"""What the Hub asks of a README.md's front matter: what POST /api/validate-yaml knows, from its public rules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import yaml


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LICENSES = words(
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0"
    " bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0"
    " cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0"
    " cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0"
    " cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2"
    " fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl"
    " lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by"
    " ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib"
)
TASKS = words(
    "any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition depth-estimation"
    " document-question-answering feature-extraction fill-mask graph-ml image-classification image-feature-extraction"
    " image-segmentation image-text-to-image image-text-to-text image-text-to-video image-to-3d image-to-image image-to-text"
    " image-to-video keypoint-detection mask-generation multiple-choice object-detection other question-answering"
    " reinforcement-learning robotics sentence-similarity summarization table-question-answering table-to-text"
    " tabular-classification tabular-regression tabular-to-text text-classification text-generation text-ranking"
    " text-retrieval text-to-3d text-to-audio text-to-image text-to-speech text-to-video text2text-generation"
    " time-series-forecasting token-classification translation unconditional-image-generation video-classification"
    " video-text-to-text video-to-video visual-document-retrieval visual-question-answering voice-activity-detection"
    " zero-shot-classification zero-shot-image-classification zero-shot-object-detection"
)
SPACE_SDKS = words("gradio docker static")
SPACE_COLOURS = words("red yellow green blue indigo purple pink gray")
FRONT_MATTER = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(?:\r\n|\r|\n|$))")  # huggingface_hub's own
REPO_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?(?<![.-])", re.ASCII)
FILE_NAME = re.compile(r"\.(?:csv|tsv|jsonl?|parquet|arrow|txt|ya?ml|gz|zip|bin|pt|safetensors)$")


def _text(value: Any) -> str:
    return "" if isinstance(value, str) and value else "must be a non-empty string"


def _license(value: Any) -> str:
    known = isinstance(value, str) and value in LICENSES
    return "" if known else "must be an identifier of https://huggingface.co/docs/hub/repositories-licenses"


def _language(value: Any) -> str:
    known = isinstance(value, str) and re.fullmatch(r"[a-z]{2,3}(-[\w-]+)?|code|multilingual", value)
    return "" if known else "must be an ISO 639 code, `code` or `multilingual`"


def _repo_id(value: Any) -> str:
    known = isinstance(value, str) and REPO_ID.fullmatch(value) and not FILE_NAME.search(value)
    return "" if known else "must be the id of a repository, `name` or `owner/name`"


def _number_or_text(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return "" if number or isinstance(value, str) else "must be a finite number or a string"


def _version(value: Any) -> str:
    known = isinstance(value, str) and re.fullmatch(r"\d+\.\d+\.\d+", value)
    return "" if known else "must be a version, in quotes if YAML would read a number"


def _short(value: Any) -> str:
    return "" if isinstance(value, str) and 0 < len(value) <= 60 else "must be text of at most 60 characters"


def _one_of(allowed: frozenset[str]) -> Callable[[Any], str]:
    return lambda value: (
        "" if isinstance(value, str) and value in allowed else f"must be one of {', '.join(sorted(allowed))}"
    )


def _anything(value: Any) -> str:
    return ""


# A leaf says what is wrong; [x] is a list of x, (x,) one x or a list of them; "key?" may be left out.
RESULT = {
    "task": {"type": _text, "name?": _text},
    "dataset": {"type": _text, "name": _text, "config?": _text, "split?": _text, "revision?": _text},
    "metrics": [{"type": _text, "value": _number_or_text, "name?": _text, "config?": _text}],
    "source?": {"url": _text, "name?": _text},
}
COMMON = {
    "license?": (_license,),
    "license_name?": _text,
    "license_link?": _text,
    "language?": (_language,),
    "tags?": [_text],
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "model": COMMON
    | {
        "library_name?": _text,
        "pipeline_tag?": _text,
        "datasets?": (_repo_id,),
        "base_model?": (_repo_id,),
        "metrics?": (_text,),
        "model-index?": [{"name": _text, "results": [RESULT]}],
    },
    "dataset": COMMON
    | {
        "pretty_name?": _text,
        "task_categories?": [_text],
        "configs?": [{"config_name": _text, "data_files?": _anything, "data_dir?": _text}],
        "dataset_info?": ({"features?": [{"name": _text}], "splits?": [{"name": _text}]},),
    },
    "space": COMMON
    | {
        "title": _text,
        "emoji?": _text,
        "colorFrom?": _one_of(SPACE_COLOURS),
        "colorTo?": _one_of(SPACE_COLOURS),
        "sdk": _one_of(SPACE_SDKS),
        "sdk_version?": _version,
        "app_file?": _text,
        "short_description?": _short,
        "models?": [_repo_id],
        "datasets?": [_repo_id],
    },
}


def _check(value: Any, schema: Any, path: str, errors: list[str]) -> None:
    if isinstance(schema, tuple):
        schema = [schema[0]] if isinstance(value, list) else schema[0]
    if isinstance(schema, dict) and not isinstance(value, dict):
        errors.append(f'"{path}" must be a mapping')
    elif isinstance(schema, dict):
        for key, inner in schema.items():
            name = key.removesuffix("?")
            below = f"{path}.{name}" if path else name
            if name in value:
                _check(value[name], inner, below, errors)
            elif name == key:
                errors.append(f'"{below}" is required')
    elif isinstance(schema, list) and not isinstance(value, list):
        errors.append(f'"{path}" must be a list')
    elif isinstance(schema, list):
        for index, entry in enumerate(value):
            _check(entry, schema[0], f"{path}[{index}]", errors)
    elif wrong := schema(value):
        errors.append(f'"{path}" {wrong}, not {value!r}')


class _CardLoader(yaml.SafeLoader):
    """The Hub refuses a key given twice; PyYAML alone would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                raise yaml.constructor.ConstructorError(None, None, f"duplicated key {key.value!r}", key.start_mark)
            names.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)


def check_card(content: str, repo_type: str = "model") -> tuple[list[str], list[str]]:
    """The errors and the warnings that the Hub would give for a README.md."""
    errors: list[str] = []
    matter = FRONT_MATTER.match(content)
    try:
        data = yaml.load(matter[2], _CardLoader) if matter else None
    except yaml.YAMLError as error:
        return [f"the front matter is not YAML: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["the front matter must be a mapping"], []
    _check(data, SCHEMAS[repo_type], "", errors)
    warnings = []
    if data.get("license") == "other" and "license_name" not in data:
        warnings.append('"license" is `other`: "license_name" should name it')
    tasks = data.get("pipeline_tag" if repo_type == "model" else "task_categories") or []
    for task in [tasks] if isinstance(tasks, str) else tasks if isinstance(tasks, list) else []:
        if task not in TASKS:
            warnings.append(f"{task!r} is not a task of https://huggingface.co/tasks")
    return errors, warnings
